"""What can be imported from the package, and at what price."""

from __future__ import annotations

import subprocess
import sys

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


def test_folders_can_be_reached_through_the_package():
    code = "import lightning_pelt; lightning_pelt.methods.LoRA, lightning_pelt.plans.Plan"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_listed_name_exists():
    for name in lightning_pelt.__all__:
        assert getattr(lightning_pelt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'UniPLT'"):
        lightning_pelt.UniPLT  # noqa: B018


@pytest.mark.slow
def test_attaching_does_not_import_lightning_nor_the_module_peft(repository):
    code = """
import sys
from lightning_pelt import LoRA, UniPELT, attach
from transformers import BertConfig, BertModel
config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=8)
assert attach(BertModel(config), UniPELT()).gates
heavy = {"lightning", "pytorch_lightning", "torchmetrics", "datasets", "wandb", "matplotlib"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
from lightning_pelt import PELTModule
assert not {"peft", "bitsandbytes"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(lightning_pelt.__all__))
def test_a_public_class_shows_an_example(name):
    found = getattr(lightning_pelt, name)
    assert not isinstance(found, type) or "Example:" in (found.__doc__ or "")
