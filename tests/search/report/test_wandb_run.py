"""Each fit of a search as a run of W&B: one group, the same outcome as without, faults."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import wandb
from callbacks import offline_wandb
from small import Sentences, bert

from lightning_pelt import Gate, LoRA, Plan
from lightning_pelt.search.fit_job import FitModule, Fitter
from lightning_pelt.search.queue.job import Job
from lightning_pelt.search.queue.ledger import Ledger
from lightning_pelt.search.report.wandb_run import describe, fit_run
from lightning_pelt.search.settings import FitSettings, Settings, TaskSettings
from lightning_pelt.search.task_settings import WandbSettings
from lightning_pelt.tasks import Classification

PLAN = Plan.uniform(LoRA(r=2, gate=Gate())).to_config()
JOBS = [
    Job(PLAN, "length", 3, parameters=512, label="grouping: uniform, block 2"),
    Job(PLAN, "length", 4, label="seed 4"),
]


def settings(folder: Path, **of_wandb: Any) -> Settings:
    return Settings(
        bert(folder / "backbone"),
        {"length": TaskSettings(partial(Sentences, rows_of_train=40), Classification())},
        FitSettings(max_epochs=2, lr=1e-2),
        accelerator="cpu",
        holdout=0.25,
        output=str(folder / "search"),
        wandb=WandbSettings(offline=True, fits=True, **of_wandb),
    )


@pytest.fixture(autouse=True)
def ended() -> Any:
    yield
    wandb.teardown()


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "search/wandb").glob("offline-run-*"))


@pytest.mark.slow
def test_fits_are_runs_of_one_group_and_have_the_same_outcomes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = settings(tmp_path, project="mine")
    logged = Fitter(asked, lambda: "search-1a2b")
    plain = Fitter(dataclasses.replace(asked, wandb=None))
    outcomes = [logged(job) for job in JOBS]
    for job, outcome in zip(JOBS, outcomes, strict=True):
        same = plain(job)
        timed = {"steps_per_second": 0.0}
        assert {**outcome.metrics, **timed} == {**same.metrics, **timed}
        assert outcome.score == same.score
    wandb.teardown()  # finish() alone may return before all of the file is written
    folders = {offline_wandb.run(folder).display_name: folder for folder in runs(tmp_path)}
    names = ["grouping: uniform, block 2, length", "seed 4, length"]  # in the order of the jobs
    assert folders.keys() == set(names)
    for folder, outcome in zip(map(folders.__getitem__, names), outcomes, strict=True):
        record = offline_wandb.run(folder)
        assert (record.run_group, record.job_type, record.project) == ("search-1a2b", "fit", "mine")
        assert offline_wandb.exit_code(folder) == 0
        logged_names = {name for row in offline_wandb.history(folder) for name in row}
        assert {"train/loss", "gate/mean/lora", "lr-AdamW/lora", "val/accuracy"} <= logged_names
        assert offline_wandb.summary(folder)["score"] == outcome.score
        assert offline_wandb.defined(folder)["*"].step_metric == "trainer/global_step"
    first = offline_wandb.config(folders[names[0]])
    assert first["job"] == {**describe(JOBS[0]), "key": JOBS[0].key, "seed": 3}
    assert first["plan"] == PLAN
    assert first["parameters/lora/trained"] == 2 * 2 * (2 * 16 * 2)  # blocks, sites, A and B
    assert {path.name for path in tmp_path.iterdir()} == {"backbone", "search"}


@pytest.mark.slow
def test_a_run_of_the_user_in_the_same_process_goes_on(tmp_path):
    own = wandb.init(mode="offline", dir=tmp_path)
    with fit_run(
        WandbSettings(offline=True, fits=True), JOBS[0], folder=tmp_path / "search", group=str
    ) as run:
        assert run is not None and run.logger.experiment.id != own.id
        run.logger.log_metrics({"x": 1.0}, step=2)
    assert wandb.run is own
    own.finish()
    wandb.teardown()
    (folder,) = runs(tmp_path)
    (row,) = [row for row in offline_wandb.history(folder) if "x" in row]
    assert (row["x"], row["trainer/global_step"]) == (1.0, 2)


@pytest.mark.slow
def test_a_fit_that_fails_is_marked(tmp_path, monkeypatch):
    def fails(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(FitModule, "training_step", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        Fitter(settings(tmp_path))(JOBS[0])
    wandb.teardown()
    (folder,) = runs(tmp_path)
    assert offline_wandb.exit_code(folder) == 1
    assert offline_wandb.run(folder).run_group == "search"  # the name of the search


@pytest.mark.slow
def test_a_fit_goes_on_without_a_run_that_cannot_be_opened(tmp_path, monkeypatch, caplog):
    def fails(**_: Any) -> None:
        raise wandb.errors.CommError("the server does not answer")

    monkeypatch.setattr("wandb.init", fails)
    assert Fitter(settings(tmp_path))(JOBS[0]).score is not None
    assert "grouping: uniform, block 2 is not logged to W&B: the server does" in caplog.text


def test_without_the_option_no_run_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.init", None)
    for none in (None, WandbSettings(offline=True)):
        with fit_run(none, JOBS[0], folder=tmp_path / "search", group=str) as run:
            assert run is None
    assert not (tmp_path / "search").exists()


def test_a_label_is_taken_apart():
    assert describe(JOBS[0]) == {
        "stage": "grouping",
        "option": "uniform",
        "block": 2,
        "task": "length",
        "parameters": 512,
    }


@pytest.mark.slow
def test_the_group_is_one_for_all_processes_of_a_search_and_no_other(tmp_path):
    def ledger(name: str, storage: str = "a.journal") -> Ledger:
        return Ledger(str(tmp_path / storage), name, {"backbone": "bert"})

    worker = ledger("mine")
    assert worker.group == "mine"  # nobody has led the search
    with ledger("mine").lead():
        first = worker.group
    with ledger("mine").lead():  # the search goes on
        assert worker.group == ledger("mine").group == first
    with ledger("other").lead(), ledger("mine", "b.journal").lead():
        groups = {first, ledger("other").group, ledger("mine", "b.journal").group}
    assert len(groups) == 3 and first.startswith("mine-")
