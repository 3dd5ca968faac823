"""Checkpoints of runs: the file, and the state dict that the load hooks get."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzz.target import Target
from fuzz.targets.adapters import content
from torch import Tensor

from lightning_pelt import Gate, LoRA, Plan, attach
from lightning_pelt.cli.checkpoint_files import read_checkpoint
from lightning_pelt.testing.models import awaken, tiny_bert
from lightning_pelt.utils.adapter_format import digest_of


class Checkpoint(Target):
    name = "read_checkpoint"

    def write(self, folder: Path) -> None:
        plan = Plan.uniform(LoRA(r=2))
        model = tiny_bert()
        attach(model, plan)
        found = {
            "pytorch-lightning_version": "2.6.6",
            "hyper_parameters": {"backbone": "tiny", "plan": plan.to_config()},
            "state_dict": {f"model.{name}": each for name, each in model.state_dict().items()},
            "optimizer_states": [],
        }
        torch.save(found, folder / "last.ckpt")

    def load(self, folder: Path) -> Any:
        found = read_checkpoint(str(folder / "last.ckpt"))
        tensors = found.get("state_dict")
        if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
            return repr(tensors)[:500]
        return digest_of({str(name): each for name, each in tensors.items()})


class StateDict(Target):
    """The state dict of an attached model with names, shapes, dtypes and values changed."""

    name = "load_state_dict"
    errors = (ValueError, RuntimeError)  # Lightning and torch raise RuntimeError for wrong keys

    def __init__(self) -> None:
        self.model = tiny_bert()
        awaken(attach(self.model, Plan.uniform(LoRA(r=2, gate=Gate()))))
        self.given: dict[str, Any] = dict(deepcopy(self.model.state_dict()))

    def write(self, folder: Path) -> None:
        (folder / "none").touch()

    def state(self) -> Any:
        return content(self.model)

    def change(self, folder: Path, draw: Random) -> str:
        self.given = dict(deepcopy(self.model.state_dict()))
        name = draw.choice(sorted(self.given))
        value: Tensor = self.given.pop(name)
        kind = draw.choice(
            ["absent", "renamed", "longer", "flat", "text", "none", "complex", "int"]
        )
        if kind == "renamed":
            self.given[draw.choice([name + ".x", "", name[:-1], "../" + name, "x" * 999])] = value
        elif kind != "absent":
            self.given[name] = {
                "longer": torch.cat([value, value]) if value.dim() else value.repeat(2),
                "flat": value.reshape(-1)[:1],
                "text": "x",
                "none": None,
                "complex": value.to(torch.complex64),
                "int": value.to(torch.int8),
            }[kind]
        return f"{name}: {kind}"

    def load(self, folder: Path) -> Any:
        model = deepcopy(self.model)
        model.load_state_dict(self.given)
        return content(model)[0]
