"""What can be imported from the package, at what price, and that imports run one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_pelt

NAMES = [
    "attach",
    "detach",
    "Plan",
    "Group",
    "UniPELT",
    "FullFineTuning",
    "HeadOnly",
    "LoRA",
    "Adapter",
    "Prefix",
    "BitFit",
    "IA3",
    "Gate",
    "PELTModule",
    "PELTCallback",
    "GateSchedule",
    "GateMonitor",
    "ParameterCount",
    "save_adapters",
    "load_adapters",
    "merge",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_can_be_imported(name):
    assert callable(getattr(lightning_pelt, name))
    assert name in lightning_pelt.__all__
    scope: dict = {}
    exec(f"from lightning_pelt import {name}", scope)
    assert scope[name] is getattr(lightning_pelt, name)


def test_every_listed_name_exists():
    for name in lightning_pelt.__all__:
        assert getattr(lightning_pelt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'UniPLT'"):
        lightning_pelt.UniPLT  # noqa: B018


def test_attaching_does_not_import_lightning(repository):
    code = """
import sys
from lightning_pelt import LoRA, UniPELT, attach
from transformers import BertConfig, BertModel
config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=8)
assert attach(BertModel(config), UniPELT()).gates
heavy = {"lightning", "pytorch_lightning", "torchmetrics", "datasets", "wandb", "matplotlib"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# Each may import from those before it, and from its own.
LAYERS = [
    ("errors", "files", "configured", "submodule", "backbone"),
    ("anatomy",),
    ("masks", "attention"),
    ("gate",),
    ("method",),
    ("placement", "bottleneck", "kronecker"),
    ("forge", "profiles"),
    ("methods",),
    ("plan",),
    ("design_space",),
    ("ownership",),
    ("attachment",),
    ("build",),
    ("attach",),
    ("exchange", "schedule", "seeding", "sharding", "optim", "testing", "plots"),
    # Below this line there is Lightning.
    ("tasks", "data"),
    ("module",),
    ("callbacks",),
    ("serving", "parser"),
    ("cli",),
    ("profiles_cli", "plan_cli"),
    ("search",),
    ("benchmark",),
    ("__main__",),
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
LIGHTNING = RANK["tasks"]
PACKAGE = Path(lightning_pelt.__file__).parent


def imported(tree: ast.AST) -> set[str]:
    """Modules that are imported when the module is; not for type checking, not inside functions."""
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names |= imported(node)
    return names


def files() -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", files())
def test_imports_run_one_way(file):
    part = Path(file).parts[0].removesuffix(".py")
    found = imported(ast.parse((PACKAGE / file).read_text()))
    own = {name.split(".")[1] for name in found if name.startswith("lightning_pelt.")}
    if file == "__init__.py":
        assert all(RANK[name] < LIGHTNING for name in own - {"__version__"})
        return
    if part not in RANK:
        pytest.fail(f"{file} is in no layer: say in LAYERS where it belongs")
    later = {name for name in own if name in RANK and RANK[name] > RANK[part]}
    assert not later, f"{file} imports {later}, which come after it"
    if RANK[part] < LIGHTNING:
        assert not {name for name in found if name.split(".")[0] in ("lightning", "torchmetrics")}
