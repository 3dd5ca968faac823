"""The command: a real search on a tiny model, with a worker process."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import simulated
import yaml
from callbacks import offline_wandb
from search.parsing import parse

from lightning_pelt.cli import search as command
from lightning_pelt.search import controller
from lightning_pelt.search.queue import worker
from lightning_pelt.search.queue.job import Outcome
from lightning_pelt.search.queue.ledger import Ledger
from lightning_pelt.search.queue.worker_pool import WorkerPool
from lightning_pelt.search.report.summary import best_plan, candidate_scores


def rows(folder: Path) -> dict[str, str]:
    """Rows with a word that determines the label."""
    files = {}
    for split, count in (("train", 40), ("dev", 12)):
        lines = [{"text": f"{'good' if i % 2 else 'bad'} {i % 5}", "label": i % 2}
                 for i in range(count)]  # fmt: skip
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(map(json.dumps, lines)))
    return files


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    (folder / "backbone").mkdir()
    data = {
        "class_path": "TextClassification",
        "init_args": {**rows(folder), "batch_size": 8, "max_length": 8},
    }
    settings = {
        "backbone": simulated.backbone(folder / "backbone"),
        "storage": str(folder / "ledger.journal"),
        "name": "tiny",
        "tasks": {"words": {"data": data}},
        "fit": {"max_steps": 1},
        "search_budget": 10_000,  # whichever methods the gates keep can meet it
        "groups": 2,
        "patterns": ["uniform", "increasing"],
        "subsets": ["AP", "L"],
        "racing": {"first": 2, "step": 1, "cap": 2},
        "fresh": 2,
        "holdout": 0.5,
        "final_seeds": [0],
        "compare": ["L"],
        "threads": 1,
        "accelerator": "cpu",
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run(recipe: Path, *options: str) -> None:
    command.main([f"--config={recipe}", *options])


@pytest.fixture(scope="module")
def searched(recipe: Path) -> Path:
    """The folder of a finished search."""
    run(recipe)
    return recipe.parent / "tiny"


def finished(recipe: Path) -> dict[str, Outcome]:
    return controller.open_ledger(parse([f"--config={recipe}"]).settings).outcomes()


@pytest.mark.slow
def test_a_search_ends_with_a_report_and_a_recipe_of_the_best_plan(searched, recipe):
    report = (searched / "report.md").read_text()
    pictures = [line.partition("](")[2].rstrip(")") for line in report.splitlines() if "![" in line]
    assert pictures and all((searched / picture).stat().st_size for picture in pictures)
    state = controller.make_search(parse([f"--config={recipe}"]).settings).replay(finished(recipe))
    assert state.finished and state.comparison is not None
    best = best_plan(candidate_scores(state.comparison, finished(recipe)))
    (design,) = [c.design for c in state.comparison.candidates if best and c.name == best.name]
    winner = yaml.safe_load((searched / "winner_words.yaml").read_text())
    assert winner["model"]["plan"]["init_args"]["strategies"] == list(design.strategies)


@pytest.mark.slow
def test_a_finished_search_repeats_no_fit(searched, recipe, capsys):
    before = finished(recipe)
    run(recipe, "--workers=0")  # no process could run a fit
    assert finished(recipe) == before
    assert f"report: {searched / 'report.md'}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def by_gates(searched, recipe) -> dict[str, Outcome]:
    """The fits that a search by gates adds to the ledger; it logs them to W&B."""
    before = finished(recipe)
    options = ("--method=gates", "--wandb.fits=true", "--wandb.offline=true")
    run(recipe, f"--output={recipe.parent / 'gates'}", *options)
    return {key: outcome for key, outcome in finished(recipe).items() if key not in before}


@pytest.mark.slow
def test_a_search_by_gates_shares_the_ledger(by_gates, recipe):
    gated = [outcome for outcome in by_gates.values() if any("gate/" in n for n in outcome.metrics)]
    assert len(gated) == 1 and len(by_gates) <= 2  # the gated run and the found design
    assert "Gates" in (recipe.parent / "gates" / "report.md").read_text()


@pytest.mark.slow
def test_the_fits_of_all_workers_are_runs_in_the_group_of_the_search(by_gates, recipe):
    ledger = controller.open_ledger(parse([f"--config={recipe}"]).settings)
    folder = recipe.parent / "gates" / "wandb"
    runs = [offline_wandb.run(each) for each in folder.glob("offline-run-*")]
    assert {each.run_group for each in runs} == {ledger.group}
    assert sorted(each.job_type for each in runs) == ["fit"] * len(by_gates) + ["search"]


@pytest.mark.slow
def test_other_settings_are_refused_by_name(searched, recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        run(recipe, "--fit.lr=0.5", "--workers=0")
    assert stop.value.code == 2
    assert "fit.lr: 0.001 -> 0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_a_budget_that_no_design_meets_is_refused_before_training(recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        run(recipe, "--search_budget=10", "--name=poor", "--workers=0")
    assert stop.value.code == 2
    assert "budget=10" in capsys.readouterr().err


@pytest.mark.slow
def test_a_controller_leads_a_search_whose_jobs_another_process_runs(recipe, monkeypatch, capsys):
    """Here another thread, with simulated scores, so that nothing is trained."""
    monkeypatch.setattr(controller, "POLL", 0.01)
    monkeypatch.setattr(worker, "POLL", 0.01)
    folder = recipe.parent / "simulated"
    settings = parse([f"--config={recipe}", "--name=simulated", "--workers=0"]).settings
    open_ledger, score = controller.open_ledger, simulated.score
    jobs = Thread(
        target=lambda: worker.work(open_ledger(settings), lambda job: Outcome(score(job), 1.0))
    )
    jobs.start()
    state = controller.lead(settings, ["no command"])
    jobs.join()
    assert state.finished and state.found is not None
    assert open_ledger(settings).finished
    assert f"report: {folder / 'report.md'}" in capsys.readouterr().out
    report = (folder / "report.md").read_text()
    assert report.splitlines()[2].startswith("**Use ")
    assert "The search is not finished" not in report
    assert (folder / "winner_words.yaml").exists()


def test_a_controller_stops_when_another_process_has_taken_the_lead(recipe, monkeypatch):
    """As if its heartbeats came too late, which `test_ledger` lets happen."""
    settings = parse([f"--config={recipe}", "--name=taken", "--workers=0"]).settings
    ledger = controller.open_ledger(settings)
    monkeypatch.setattr(ledger, "lead", lambda: nullcontext(SimpleNamespace(lost=True)))
    monkeypatch.setattr(controller, "open_ledger", lambda _: ledger)
    with pytest.raises(RuntimeError, match="another process leads the search 'taken' now"):
        controller.lead(settings, ["no command"])


def test_passwords_are_not_in_the_settings_and_messages():
    command = ["search", "--storage=postgresql://ann:secret@host/db"]
    with pytest.raises(RuntimeError) as caught, WorkerPool(1, ["false", *command]) as pool:
        while True:
            pool.refill(0)
    assert "false search --storage=postgresql://ann:***@host/db" in str(caught.value)


def test_workers_that_have_taken_no_job_are_counted(recipe):
    settings = parse([f"--config={recipe}", "--name=counted", "--workers=0"]).settings
    ledger = controller.open_ledger(settings)
    with WorkerPool(2, ["sleep", "60"]) as pool:
        assert controller._counts(ledger, pool).idle == pool.alive == 0
        pool.refill(0)
        assert controller._counts(ledger, pool).idle == pool.alive == 2
    assert pool.alive == 0


def test_an_interrupted_search_prints_how_to_continue(recipe, monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(controller, "lead", interrupted)
    with pytest.raises(SystemExit) as stop:
        command.main([f"--config={recipe}", "--name=interrupted"])
    assert stop.value.code == 130
    assert "run the same command to continue" in capsys.readouterr().err


def test_without_the_extra_the_command_names_the_package_to_install(recipe, monkeypatch, capsys):
    monkeypatch.setattr("lightning_pelt.search.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        command.main([f"--config={recipe}"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "a search needs optuna: pip install 'lightning-pelt[search]'" in error


@pytest.mark.slow
def test_workers_that_die_at_once_end_the_search(recipe, monkeypatch):
    monkeypatch.setattr(controller, "POLL", 0.0)
    settings = parse([f"--config={recipe}", "--name=dying"]).settings
    with pytest.raises(RuntimeError, match=r"workers have died .*start one by hand"):
        controller.lead(settings, [sys.executable, "-c", "raise SystemExit(1)"])
    ledger = Ledger(settings.storage, "dying", settings.fingerprint())
    assert ledger.counts().waiting == 2  # the jobs stay in the ledger
