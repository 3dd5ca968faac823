"""The README and the manual: their Python runs, and their commands, recipes and names exist."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import lightning.pytorch
import pytest

import lightning_pelt
from lightning_pelt.cli import base, dashboard, export, main, plan, profiles, report, search

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "guides").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> list[str]:
    """The command lines of the package, without redirections and comments."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    found = [line.partition("&& ")[2] if " && " in line else line for line in text.splitlines()]
    return [line.split(" > ")[0] for line in found if line.startswith("lightning-pelt ")]


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
COMMANDS = list(dict.fromkeys(line for page in PAGES for line in commands(page)))


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_the_python_of_a_page_runs(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In one namespace, with fewer batches."""
    if "onnx" in page.read_text(encoding="utf-8"):
        pytest.importorskip("onnxscript")
    short = {"limit_train_batches": 2, "limit_val_batches": 1, "accelerator": "cpu"}
    trainer = functools.partial(lightning.pytorch.Trainer, **short)
    monkeypatch.setattr(lightning.pytorch, "Trainer", trainer)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "page", page_module := ModuleType("page"))
    space = page_module.__dict__  # classes of the page find their module
    for block in blocks(page, "python"):
        exec(compile(block, name(page), "exec"), space)


class Parsed(BaseException):
    """The command line is right; what it asks for does not run."""


def stop(*args: Any, **options: Any) -> NoReturn:
    raise Parsed


def stopping(function: Callable[..., Any]) -> Callable[..., NoReturn]:
    """With the signature of ``function``, from which its options are read."""
    return functools.wraps(function)(lambda *args, **options: stop())


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Parses a command line in an empty folder, and stops where it would begin."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    for method in ("instantiate_classes", "_parse_ckpt_path"):  # the checkpoint would be read
        monkeypatch.setattr(base.PELTCLI, method, stop)
    monkeypatch.setattr(plan.ShowPlan, "instantiate_classes", stop)
    for command in profiles.recipes.COMMANDS.values():  # some would read the checkpoint before
        monkeypatch.setattr(command, "before_instantiate_classes", stop)
    monkeypatch.setattr(search.search_settings, "from_namespace", stop)
    monkeypatch.setattr(export, "export", stopping(export.export))
    monkeypatch.setattr(dashboard, "save", stopping(dashboard.save))
    monkeypatch.setattr(report, "report", stopping(report.report))
    functions = profiles._function
    monkeypatch.setattr(profiles, "_function", lambda name: stopping(functions(name)))

    def run(line: str) -> None:
        monkeypatch.setattr("sys.argv", shlex.split(line, comments=True))
        with pytest.raises((Parsed, SystemExit)) as end:
            main.script()
        assert end.type is Parsed or end.value.code == 0  # --print_config has ended it

    return run


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_parsed(line: str, parse: Callable[[str], None]) -> None:
    parse(line)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_recipes_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for recipe in re.findall(r"recipes/(\w+)\.yaml", text):
        assert recipe == "NAME" or (ROOT / "recipes" / f"{recipe}.yaml").is_file(), recipe
    for link in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link


def test_the_reference_has_every_public_name() -> None:
    pages = (ROOT / "docs" / "reference").glob("*.md")
    found = re.findall(r"^::: (\S+)", "\n".join(p.read_text(encoding="utf-8") for p in pages), re.M)
    assert {path.rpartition(".")[2] for path in found} >= {*lightning_pelt.__all__}


def test_recipes_are_in_the_table() -> None:
    table = (ROOT / "docs" / "guides" / "recipes.md").read_text(encoding="utf-8")
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert f"`{recipe.stem}`" in table, recipe.stem


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 180
