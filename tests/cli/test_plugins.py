"""Methods of other installed packages in recipes, by their short names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from small import bert

from lightning_pelt.cli import methods
from lightning_pelt.cli.base import main
from lightning_pelt.cli.plugins import load_plugins
from lightning_pelt.cli.schema import schema_of

SOURCE = '''
"""A package with a method."""
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_pelt import LoRA


@dataclass(frozen=True)
class TheirLoRA(LoRA):
    """LoRA of another package."""

    r: int = 3
    name: str = "theirs"
'''
ENTRIES = """[lightning_pelt.methods]
TheirLoRA = their_package:TheirLoRA
Broken = their_package:Missing
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip would install it."""
    site = tmp_path / "site"
    info = site / "their_package-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "their_package.py").write_text(SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(site)
    yield
    sys.modules.pop("their_package", None)


def test_a_broken_entry_point_is_named_and_the_others_are_loaded(installed: None) -> None:
    with pytest.warns(UserWarning, match="Broken = their_package:Missing cannot be loaded"):
        loaded = load_plugins()
    assert loaded["TheirLoRA"]().r == 3


@pytest.mark.filterwarnings("ignore:.*cannot be loaded")
def test_the_method_is_listed(installed: None, capsys: pytest.CaptureFixture[str]) -> None:
    methods.main(["theirlora"])
    assert "LoRA of another package." in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*cannot be loaded")
def test_the_schema_has_the_method(installed: None) -> None:
    check = Draft202012Validator(schema_of("fit"))
    for arguments, fits in ({"r": 4}, True), ({"rank": 4}, False):
        groups = [{"methods": [{"class_path": "TheirLoRA", "init_args": arguments}]}]
        plan = {"class_path": "Plan", "init_args": {"groups": groups}}
        assert check.is_valid({"model": {"plan": plan}}) == fits


@pytest.mark.filterwarnings("ignore:.*cannot be loaded")
@pytest.mark.usefixtures("_isolated")
def test_a_recipe_names_the_method(installed: None, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model:\n  plan:\n    class_path: Plan\n    init_args:\n      groups:\n"
        "        - methods: [{class_path: TheirLoRA}]\n"
    )
    (tmp_path / "rows.csv").write_text("text,label\none,a\ntwo,b\n")
    options = [f"--config={recipe}", f"--model.backbone={bert(tmp_path / 'bert')}"]
    data = ["--data=TextClassification", f"--data.train={tmp_path / 'rows.csv'}"]
    built = main([*options, *data, "--trainer.logger=false"], run=False)
    (method,) = built.model.plan.groups[0].methods
    assert (type(method).__name__, method.r) == ("TheirLoRA", 3)
