"""Every recipe runs as it is, only shorter: two batches of training, one of each other kind."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path

import datasets
import pytest
import wandb
from recipe_data import offline
from scripts import output_of_module

from lightning_pelt.cli.base import main

EVERY = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
RECIPES = [path for path in EVERY if not path.stem.startswith("search_")]  # not for `fit`
# In a process, as a user runs them: W&B with gates, and text to text.
PROCESSES = ("quickstart", "compacter_t5")
# In the quick run: one method, gated methods, and profiles.
QUICK = ("lora",)
MONITOR = re.compile(r"monitor: val/(\w+)")
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


def fit_options(recipe: Path, folder: Path) -> list[str]:
    """The command line of a short fit without a network."""
    return ["fit", f"--config={recipe}", *SHORT, *offline(recipe, folder)]


def in_a_process(options: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    status, output = output_of_module("lightning_pelt", *options)
    assert status == 0, output[-3000:]
    return output


def in_this_process(options: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    main(options)
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, _isolated: None, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    wandb.finish()  # or the next logger would write to this run


@pytest.mark.parametrize(
    ("recipe", "run"),
    [
        pytest.param(
            recipe,
            in_a_process if recipe.stem in PROCESSES else in_this_process,
            marks=() if recipe.stem in QUICK else pytest.mark.slow,
            id=recipe.stem,
        )
        for recipe in RECIPES
    ],
)
@pytest.mark.slow
def test_recipe_fits_and_tests(
    recipe: Path, run: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(fit_options(recipe, tmp_path), capsys)
    (logged,) = (tmp_path / "runs" / recipe.stem).glob("version_*/metrics.csv")
    with logged.open() as file:
        rows = list(csv.DictReader(file))
    name = MONITOR.findall(recipe.read_text())[0]
    (score,) = [float(row[f"test/{name}"]) for row in rows if row[f"test/{name}"]]
    assert isfinite(score)
    assert [row["step"] for row in rows if row[f"val/{name}"]] == ["1"]
    gated = "GateMonitor" in recipe.read_text()
    picture = logged.parent / "gates.png"
    assert picture.exists() == gated
    assert (str(picture.relative_to(tmp_path)) in out) == gated
    assert any(re.match(r"gate/\d\d/", column) for column in rows[0]) == gated


def test_every_single_method_has_a_recipe() -> None:
    names = {path.stem for path in RECIPES}
    assert {"lora", "adapter", "prefix", "bitfit", "ia3", "full_finetune", "head_only"} <= names
    assert {"compacter_sst2", "compacterpp_sst2", "compacter_t5", "compacterpp_t5"} <= names
    assert {"phm_adapter", "low_rank_adapter", "adapterdrop", "unipelt_compacter"} <= names
