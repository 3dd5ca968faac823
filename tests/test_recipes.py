"""Every recipe runs as it stands, only shorter: two batches of training, one of each other kind."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import wandb

from lightning_pelt.cli import main

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
SHORT = [
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--model.backbone=sentence-transformers/all-MiniLM-L6-v2",
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
def test_recipe_fits_and_tests(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offline = sentiment(tmp_path / "glue") if recipe.stem.startswith("unipelt_") else []
    cli = main(["fit", f"--config={recipe}", *SHORT, *offline])
    wandb.teardown()
    assert cli.trainer.global_step == 2
    assert 0 <= float(cli.trainer.callback_metrics["test/accuracy"]) <= 1
    (logged,) = (tmp_path / "runs" / recipe.stem).glob("version_*/metrics.csv")
    with logged.open() as file:
        columns = set(csv.DictReader(file).fieldnames or ())
    assert {"val/accuracy", "test/accuracy"} <= columns
    gated = "GateMonitor" in recipe.read_text()
    picture = logged.parent / "gates.png"
    assert picture.exists() == gated
    assert (str(picture.relative_to(tmp_path)) in capsys.readouterr().out) == gated
    assert any(column.startswith("gate/00/") for column in columns) == gated


def test_every_single_method_has_a_recipe() -> None:
    names = {path.stem for path in RECIPES}
    assert {"lora", "adapter", "prefix", "bitfit", "ia3", "full_finetune", "head_only"} <= names
