"""Mistakes end with one line and status 2, in every command; a bug shows its traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from small import bert

from lightning_pelt import PELTModule
from lightning_pelt.cli.errors import is_mistake, one_line_errors
from lightning_pelt.cli.main import script
from lightning_pelt.utils.errors import unknown


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert(tmp_path_factory.mktemp("backbone") / "bert")


@pytest.fixture(autouse=True)
def _files(monkeypatch: pytest.MonkeyPatch, _isolated: None, tmp_path: Path, backbone: str) -> None:
    """Rows, and a backbone that is not made during a test, since that prints."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    Path("rows.csv").write_text("text,label\none,low\nred,high\n")


QUIET = [f"--trainer.{name}=false" for name in ("logger", "enable_progress_bar")]
ROWS = ["--data=TextClassification", "--data.train=rows.csv", "--data.max_length=16", *QUIET]


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    monkeypatch.setattr("sys.argv", ["lightning-pelt", *args])
    with pytest.raises(SystemExit) as ended:
        script()
    assert ended.value.code == 2
    return capsys.readouterr().err


MISTAKES = {
    "file": (["--data.train=rowz.csv"], "rowz.csv"),
    "blocks": (
        [
            "--model.plan=Plan",
            '--model.plan.groups=[{"methods": [{"class_path": "LoRA"}], "blocks": [7]}]',
        ],
        "7",
    ),
    "group of a rate": (["--model.lrs.loora=1"], "unknown parameter group 'loora': did you mean"),
    "rate": (["--model.lr=-1"], "lr is -1.0, expected a finite number from 0 on"),
    "backbone": (["--model.backbone=no/where/at/all"], "there is no such folder"),
    "no GPU": (["--trainer.accelerator=gpu"], "gpu"),
    "strategy": (["--trainer.strategy=dpp"], "strategy='dpp'"),
    "length": (["--data.max_length=9000"], "max_length is 9000"),
    "argument of a plan": (
        ["--model.plan=Design", "--model.plan.strategies=[L]", "--model.plan.budget=-1"],
        "budget=-1.0 is not a number of parameters",
    ),
    "metric": (["--model.task=Classification", "--model.task.metrics=[f2]"], "unknown metric 'f2'"),
    "monitor": (
        ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val_loss"],
        "'val_loss': did you mean 'val/loss'?",
    ),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
@pytest.mark.parametrize(("given", "message"), MISTAKES.values(), ids=MISTAKES)
@pytest.mark.slow
def test_a_mistake_is_one_line(monkeypatch, capsys, backbone, given, message):
    options = [f"--model.backbone={backbone}", *ROWS, *given]
    printed = run(monkeypatch, capsys, "fit", *options)
    assert "Traceback" not in printed
    line = printed.splitlines()[-1]
    assert line.startswith("lightning-pelt fit: ")
    assert message in line


COMMANDS = {
    "fit": (["fit"], "backbone './no': there is no such folder"),
    "validate": (["validate", "--untrained=true"], "backbone './no': there is no such folder"),
    "test": (["test", "--untrained=true"], "TextClassification has no test split"),
    "predict": (["predict"], "predict needs a trained model"),
    "plan": (["plan"], "backbone './no': there is no such folder"),
    "profiles train": (["profiles", "train", "--store=s"], "TextClassification has no profiles"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_in_the_same_way(monkeypatch, capsys, backbone, name):
    if "profiles" in name:
        pytest.importorskip("sqlalchemy")
    command, reason = COMMANDS[name]
    unknown = [f"--model.backbone={backbone}", *ROWS, "--model.task=Classifications"]
    printed = run(monkeypatch, capsys, *command, *unknown)
    assert printed.startswith(
        f"lightning-pelt {name}: model.task: 'Classifications' is not a task ("
    )
    assert printed.endswith("): did you mean 'Classification'?\n")
    assert len(printed.splitlines()) == 1
    missing = ["--model.backbone=./no", *ROWS, "--data.labels=[low, high]"]
    printed = run(monkeypatch, capsys, *command, *missing)
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith(f"lightning-pelt {name}: {reason}")


@pytest.mark.slow
def test_a_search_ends_in_the_same_way(monkeypatch, capsys):
    recipe = {
        "backbone": "./no",
        "tasks": {"t": {"data": {"class_path": "TextClassification", "init_args": {}}}},
        "fit": {"max_epochs": 1, "lr": 0.1},
    }
    Path("search.yaml").write_text(json.dumps(recipe))
    printed = run(monkeypatch, capsys, "search", "--config=search.yaml")
    assert "TextClassification needs rows: give train, dev, test or predict" in printed
    assert printed.startswith("lightning-pelt search: ") and len(printed.splitlines()) == 1
    printed = run(monkeypatch, capsys, "search", "--config=search.yaml", "--seeed=1")
    assert printed == "lightning-pelt search: unknown option 'seeed': did you mean 'seed'?\n"


@pytest.mark.slow
def test_debug_adds_the_traceback(monkeypatch, capsys):
    options = ["--model.backbone=./no", *ROWS]
    printed = run(monkeypatch, capsys, "fit", *options, "--debug")
    assert "Traceback" in printed and "resolve_backbone" in printed
    assert printed.splitlines()[-1].startswith("lightning-pelt fit: backbone './no'")
    printed = run(monkeypatch, capsys, "--debug", "plan", *options, "--data.labels=[a, b]")
    assert "Traceback" in printed
    assert "Traceback" not in run(monkeypatch, capsys, "fit", *options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug", [RuntimeError("bug"), ValueError("bug"), KeyError("bug"), AssertionError("bug")]
)
def test_a_bug_shows_its_traceback(monkeypatch, backbone, bug):
    def broken(*_: Any) -> None:
        raise bug

    monkeypatch.setattr(PELTModule, "training_step", broken)
    options = [f"--model.backbone={backbone}", *ROWS]
    monkeypatch.setattr("sys.argv", ["lightning-pelt", "fit", *options])
    with pytest.raises(type(bug)) as raised:
        script()
    assert raised.value is bug


def caught(action: Any) -> Exception:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("no error")


def test_what_counts_as_a_mistake():
    def by_torch() -> None:
        torch.zeros(2) + torch.zeros(3)

    def by_lightning() -> None:
        raise MisconfigurationException("no GPU")

    def unknown_module() -> None:
        raise ModuleNotFoundError("No module named 'optuna'", name="optuna")

    def own_module() -> None:
        raise ModuleNotFoundError("No module named 'lightning_pelt.x'", name="lightning_pelt.x")

    assert is_mistake(caught(lambda: Path("none").read_text()))
    assert is_mistake(caught(by_lightning))
    assert is_mistake(caught(unknown_module))
    assert is_mistake(caught(lambda: PELTModule("x", labels=["a", "a"])))
    assert not is_mistake(caught(own_module))
    assert not is_mistake(caught(by_torch))
    assert not is_mistake(caught(lambda: int("x")))
    # Not raised by a statement of this package, but by one of its expressions.
    assert not is_mistake(caught(lambda: unknown("kind", "name", 5)))  # type: ignore[arg-type]


def test_a_line_without_words_names_the_error(capsys):
    with pytest.raises(SystemExit), one_line_errors("prog"):
        raise TimeoutError
    assert capsys.readouterr().err == "prog: TimeoutError\n"
