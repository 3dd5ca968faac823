"""``lightning-pelt recipes`` and ``methods``: what there is, and ``pelt://`` names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lightning_pelt import Gate, LoRA
from lightning_pelt.cli import methods, recipes, shipped_recipes
from lightning_pelt.cli.parser import SuggestingParser

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_all_recipes_are_listed_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    recipes.main([])
    lines = capsys.readouterr().out.splitlines()
    described = {line.split()[0]: line for line in lines if line[:1].strip()}
    for file in FILES:
        assert len(described[file.stem].split()) > 3


def test_a_recipe_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    recipes.main(["lora"])
    assert capsys.readouterr().out == (ROOT / "recipes" / "lora.yaml").read_text()


def test_an_unknown_recipe_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        recipes.main(["quikstart"])
    assert end.value.code == 2
    assert "'quikstart': did you mean 'quickstart'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [["--config=pelt://lora"], ["--config", "pelt://lora"], ["-c", "pelt://lora.yaml"]],
)
def test_a_recipe_is_found_by_name(given: list[str]) -> None:
    found = shipped_recipes.with_files(["fit", *given])
    path = Path(found[-1].removeprefix("--config="))
    assert yaml.safe_load(path.read_text())["model"]["plan"]["class_path"] == "Plan"
    assert shipped_recipes.with_files(["--note=see pelt://lora", 3]) == [
        "--note=see pelt://lora",
        3,
    ]


def test_a_parser_reads_a_recipe_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    parser = SuggestingParser(prog="some command")
    parser.add_argument("--config")
    assert parser.parse_args(["--config=pelt://s4"]).config.endswith("s4.yaml")
    with pytest.raises(SystemExit):
        parser.parse_args(["--config=pelt://s5"])
    assert "some command: unknown recipe of lightning_pelt 's5'" in capsys.readouterr().err


def test_all_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    methods.main([])
    printed = capsys.readouterr().out
    names = ["LoRA", "Adapter", "Compacter", "Prefix", "XPEFT", "IA3", "BitFit", "NewTokens"]
    assert all(f"\n{name} " in printed for name in names)
    assert ":math:" not in printed


@pytest.mark.parametrize(("name", "kind"), [("lora", LoRA), ("Gate", Gate)])
def test_the_options_of_a_method_have_their_defaults(
    capsys: pytest.CaptureFixture[str], name: str, kind: type
) -> None:
    methods.main([name])
    lines = capsys.readouterr().out.splitlines()
    rows = [re.split(r"  +", line) for line in lines]
    defaults = {row[0]: yaml.safe_load(row[1]) for row in rows if len(row) == 3 and row[0]}
    for field, value in vars(kind()).items():
        assert defaults[field] == (list(value) if isinstance(value, tuple) else value), field


def test_an_unknown_method_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        methods.main(["Lorra"])
    assert "unknown method 'Lorra': did you mean 'LoRA'?" in capsys.readouterr().err
