"""Every recipe runs as it stands, only shorter: two batches of training, one of each other kind."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small import t5

EVERY = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
RECIPES = [path for path in EVERY if not path.stem.startswith("search_")]  # not for `fit`
SHORT = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.batch_size=4",
]


def sentiment(folder: Path) -> list[str]:
    """A folder of GLUE files, large enough for the low-resource protocol, and its options."""
    folder.mkdir()
    rows = [
        {"text": f"film number {i} is {'good' if i % 2 else 'bad'}", "label": i % 2}
        for i in range(1110)
    ]
    for split, count in (("train", 1110), ("dev", 20)):
        lines = [json.dumps(row) for row in rows[:count]]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [f"--data.folder={folder}"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_fits_and_tests(recipe: Path, tmp_path: Path) -> None:
    """In a process of its own, as a user runs it; W&B keeps one service per process."""
    offline = sentiment(tmp_path / "glue") if "class_path: GLUE" in recipe.read_text() else []
    to_text = "TextToText" in recipe.read_text()
    backbone = t5(tmp_path / "t5") if to_text else "sentence-transformers/all-MiniLM-L6-v2"
    offline += [f"--model.backbone={backbone}", *(["--data.max_length=32"] if to_text else [])]
    command = [sys.executable, "-m", "lightning_pelt", "fit", f"--config={recipe}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, *SHORT, *offline], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (logged,) = (tmp_path / "runs" / recipe.stem).glob("version_*/metrics.csv")
    with logged.open() as file:
        rows = list(csv.DictReader(file))
    (accuracy,) = [float(row["test/accuracy"]) for row in rows if row["test/accuracy"]]
    assert 0 <= accuracy <= 1
    assert [row["step"] for row in rows if row["val/accuracy"]] == ["1"]
    gated = "GateMonitor" in recipe.read_text()
    picture = logged.parent / "gates.png"
    assert picture.exists() == gated
    assert (str(picture.relative_to(tmp_path)) in done.stdout) == gated
    assert any(column.startswith("gate/00/") for column in rows[0]) == gated


def test_every_single_method_has_a_recipe() -> None:
    names = {path.stem for path in RECIPES}
    assert {"lora", "adapter", "prefix", "bitfit", "ia3", "full_finetune", "head_only"} <= names
    assert {"compacter_sst2", "compacterpp_sst2", "compacter_t5", "compacterpp_t5"} <= names
    assert {"phm_adapter", "low_rank_adapter", "adapterdrop", "unipelt_compacter"} <= names
