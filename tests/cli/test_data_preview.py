"""``--print_data``: prints rows, and neither loads a model nor trains."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from chat import saved, says, tokenizer
from lightning.pytorch.cli import LightningCLI

from lightning_pelt.cli.base import main

pytestmark = pytest.mark.slow

CHATS = [[says("user", f"Hi {n}"), says("assistant", f"Paris {n}")] for n in range(4)]
RECIPE = Path(__file__).parents[2] / "recipes" / "chat.yaml"


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    tokenizer().save_pretrained(tmp_path / "base")  # without a model
    rows = saved(tmp_path / "rows.jsonl", CHATS)
    return [
        f"--config={RECIPE}",
        f"--model.backbone={tmp_path / 'base'}",
        f"--data.train={rows}",
        "--data.dev_share=0",
        "--data.chat_template=zephyr",
    ]


def printed(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code in (0, None)
    return capsys.readouterr().out


def test_the_first_rows_are_printed_and_nothing_is_built(
    options: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(LightningCLI, "instantiate_classes", None)
    out = printed(["fit", *options, "--print_data=3"], capsys)
    assert [f"{{+Paris {n}<|endoftext|>+}}" in out for n in range(4)] == [True] * 3 + [False]
    assert "\033" not in out  # not a terminal
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "\033[1;32mParis 0<|endoftext|>\033[0m" in printed(
        ["fit", *options, "--print_data=1"], capsys
    )
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in printed(["fit", *options, "--print_data=1"], capsys)


def test_a_test_prints_its_own_rows(
    options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    others = saved(tmp_path / "test.jsonl", [[says("user", "Hi"), says("assistant", "Rome")]])
    args = ["test", *options, f"--data.test={others}", "--untrained=true", "--print_data=3"]
    out = printed(args, capsys)
    assert "{+Rome<|endoftext|>+}" in out and "Paris" not in out


@pytest.mark.parametrize(
    ("command", "more", "error"),
    [
        ("fit", ["--print_data=0"], "0 rows cannot be shown"),
        ("predict", ["--print_data=1", "--untrained=true"], "predict uses rows without labels"),
    ],
)
def test_rows_that_cannot_be_shown_are_refused(
    options: list[str], command: str, more: list[str], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        main([command, *options, *more])
