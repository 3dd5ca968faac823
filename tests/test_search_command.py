"""The command: a real search of a tiny model, with a worker process of its own."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import simulated
import yaml

from lightning_pelt.cli import script
from lightning_pelt.search import command
from lightning_pelt.search.cell import Outcome
from lightning_pelt.search.ledger import Ledger
from lightning_pelt.search.settings import parse


def rows(folder: Path) -> dict[str, str]:
    """Rows of which a word says the label."""
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
        "search_budget": 6000,
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
    """The folder of a search that has been led to its end."""
    run(recipe)
    return recipe.parent / "tiny"


def finished(recipe: Path) -> dict[str, Outcome]:
    return command.ledger_of(parse([f"--config={recipe}"]).settings).outcomes()


@pytest.mark.slow
def test_a_search_ends_with_a_report_and_a_recipe_of_what_it_found(searched, recipe):
    report = (searched / "report.md").read_text()
    pictures = [line.partition("](")[2].rstrip(")") for line in report.splitlines() if "![" in line]
    assert pictures and all((searched / picture).stat().st_size for picture in pictures)
    walk = command.course_of(parse([f"--config={recipe}"]).settings).walk(finished(recipe))
    winner = yaml.safe_load((searched / "winner_words.yaml").read_text())
    assert walk.over and walk.found is not None
    assert winner["model"]["plan"]["init_args"]["strategies"] == list(walk.found.strategies)


@pytest.mark.slow
def test_led_again_it_repeats_nothing(searched, recipe, capsys):
    before = finished(recipe)
    run(recipe, "--workers=0")  # nobody is there who could fit anything
    assert finished(recipe) == before
    assert f"report: {searched / 'report.md'}" in capsys.readouterr().out


@pytest.mark.slow
def test_gates_search_the_same_ledger(searched, recipe, capsys):
    before = finished(recipe)
    run(recipe, "--method=gates", f"--output={recipe.parent / 'gates'}")
    new = {key: outcome for key, outcome in finished(recipe).items() if key not in before}
    gated = [
        outcome for outcome in new.values() if any("gate/" in name for name in outcome.metrics)
    ]
    assert len(gated) == 1 and len(new) <= 2  # the run with every method, and what it found
    assert "Gates" in (recipe.parent / "gates" / "report.md").read_text()


@pytest.mark.slow
def test_other_settings_are_refused_by_their_names(searched, recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        run(recipe, "--fit.lr=0.5", "--workers=0")
    assert stop.value.code == 2
    assert "fit.lr: 0.001 -> 0.5" in capsys.readouterr().err


def test_a_budget_that_no_design_meets_is_refused_before_anything_is_trained(recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        run(recipe, "--search_budget=10", "--name=poor", "--workers=0")
    assert stop.value.code == 2
    assert "budget=10" in capsys.readouterr().err


def test_interrupted_it_says_how_to_go_on(recipe, monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "lead", interrupted)
    with pytest.raises(SystemExit) as stop:
        command.main([f"--config={recipe}", "--name=interrupted"])
    assert stop.value.code == 130
    assert "the same command goes on where it was" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("lightning_pelt.search")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["lightning-pelt", "search", "--help"])
    with pytest.raises(SystemExit) as stop:
        script()
    assert stop.value.code == 2
    assert "pip install 'lightning-pelt[search]'" in capsys.readouterr().err


def test_workers_that_die_at_once_end_the_search(recipe, monkeypatch):
    monkeypatch.setattr(command, "POLL", 0.0)
    settings = parse([f"--config={recipe}", "--name=dying"]).settings
    with pytest.raises(RuntimeError, match=r"workers have died .*start one by hand"):
        command.lead(settings, [sys.executable, "-c", "raise SystemExit(1)"])
    ledger = Ledger(settings.storage, "dying", settings.cells_depend_on())
    assert ledger.counts().waiting == 2  # what was asked for stays
