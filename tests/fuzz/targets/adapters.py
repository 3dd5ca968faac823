"""Folders of adapters: this package's, PEFT's and AdapterHub's."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import small
import torch
from exchange.adapterhub import FIXTURES, base
from fuzz.target import Target
from transformers import PreTrainedModel

from lightning_pelt import (
    Gate,
    LoRA,
    Plan,
    attach,
    load_adapterhub,
    load_adapters,
    load_peft,
    load_pelt,
    save_adapters,
    save_peft,
)
from lightning_pelt.testing.models import awaken, hook_counts, tiny_bert
from lightning_pelt.utils.adapter_format import digest_of


def content(model: PreTrainedModel) -> tuple[str, dict[str, int]]:
    """Digest of all tensors of a model, and its numbers of hooks."""
    return digest_of(model.state_dict()), hook_counts(model)


class _Model(Target):
    """A loader that changes a given model, which a refusal must leave as it was."""

    def __init__(self) -> None:
        self.model = tiny_bert()

    def state(self) -> Any:
        return content(self.model)

    def load(self, folder: Path) -> Any:
        before = self.model
        self.model = deepcopy(before)
        self.read(folder)
        loaded, self.model = self.model, before
        if problem := self.not_finite(loaded):
            raise AssertionError(problem)
        return content(loaded)[0]

    def read(self, folder: Path) -> None:
        raise NotImplementedError

    def not_finite(self, model: PreTrainedModel) -> str:
        names = [name for name, one in model.state_dict().items() if not one.isfinite().all()]
        return f"values that are not finite were accepted: {names[:3]}" if names else ""


class AdapterFolder(_Model):
    name = "load_adapters"
    detects = True

    def write(self, folder: Path) -> None:
        model = tiny_bert()
        awaken(attach(model, Plan.uniform(LoRA(r=2, gate=Gate()))))
        save_adapters(model, folder)

    def read(self, folder: Path) -> None:
        load_adapters(self.model, folder)


class WholePredictor(Target):
    name = "load_pelt"
    seconds = 20.0
    detects = True

    def write(self, folder: Path) -> None:
        small.bert(folder.parent / "base")
        from transformers import AutoModelForSequenceClassification

        torch.manual_seed(0)
        base = str(folder.parent / "base")
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        awaken(attach(model, Plan.uniform(LoRA(r=2))))
        save_adapters(model, folder)

    def load(self, folder: Path) -> Any:
        predictor = load_pelt(folder)
        return predictor.attachment.plan.to_config(), predictor("one two three")


class PeftFolder(_Model):
    name = "load_peft"

    def write(self, folder: Path) -> None:
        model = tiny_bert()
        awaken(attach(model, Plan.uniform(LoRA(r=2))))
        save_peft(model, folder)

    def read(self, folder: Path) -> None:
        load_peft(self.model, folder)


class AdapterHubFolder(_Model):
    name = "load_adapterhub"

    def __init__(self) -> None:
        self.model = base("bert")

    def write(self, folder: Path) -> None:
        shutil.copytree(FIXTURES / "bert" / "seq_bn", folder, dirs_exist_ok=True)

    def read(self, folder: Path) -> None:
        load_adapterhub(self.model, folder)
