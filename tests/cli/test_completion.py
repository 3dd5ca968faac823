"""Completion in a shell: the outline of the command line, and the script for bash."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_pelt.cli import completion
from lightning_pelt.cli.overview import OTHERS, TRAINER


@pytest.fixture(scope="module")
def commands() -> dict:
    (action,) = [each for each in completion.outline()._actions if each.choices]
    return dict(action.choices)


def test_the_outline_has_commands_options_and_names(commands: dict) -> None:
    assert list(commands) == [*TRAINER, *OTHERS]
    assert {"--model.plan", "--trainer.max_epochs", "--config"} <= set(
        commands["fit"]._option_string_actions
    )
    (names,) = [each.choices for each in commands["methods"]._actions]
    assert {"LoRA", "Adapter", "Gate"} <= set(names)
    (names,) = [each.choices for each in commands["recipes"]._actions]
    assert "quickstart" in names


def test_without_shtab_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as end:
        completion.main(["bash"])
    assert end.value.code == 2
    assert "pip install shtab" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(completion.script("bash"), encoding="utf-8")
    words = "lightning-pelt fit --model.pla"
    given = f"source ./script; COMP_WORDS=({words}); COMP_CWORD=2; "
    given += "_shtab_lightning_pelt; echo ${COMPREPLY[@]}"
    command = ["bash", "-c", given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "--model.plan" in done.stdout.split()
