"""Weights that cannot learn are named once, and a run that learns is left in peace."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import loader, trainer
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import LearningRateFinder
from small import LABELS, Sentences, bert
from torch import Tensor, nn
from zoo import WIDTH, build

from lightning_pelt import (
    XPEFT,
    Adapter,
    FullFineTuning,
    GateSchedule,
    HeadOnly,
    LoRA,
    PELTCallback,
    PELTModule,
    Phase,
    Plan,
    RandomBank,
    UniPELT,
)

PLAN = Plan.uniform(LoRA(r=2), Adapter(bottleneck=2))


class Stranger(LightningModule):
    """A module with its own head and the usual optimizer."""

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.net: Any = build("bert", task=False)
        self.head = nn.Linear(WIDTH, 3)

    def states(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["input_ids"], batch["attention_mask"]).last_hidden_state

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.states(batch)[:, 0]), batch["labels"])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=self.lr)


class BuiltInInit(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)

    def configure_optimizers(self) -> Any:
        return self.optimizer


class HeadInOptimizer(Stranger):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.head.parameters(), lr=1e-3)


class FrozenAtStart(Stranger):
    def on_fit_start(self) -> None:
        self.net.requires_grad_(False)


class NoGrad(Stranger):
    def states(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return super().states(batch)


class UpperBlockOnly(Stranger):
    """The lower block runs without gradients, in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net.encoder.layer[1].register_forward_pre_hook(self.cut)

    def cut(self, module: nn.Module, args: tuple) -> tuple:
        return (args[0].detach(), *args[1:]) if module.training else args


class Outsider(Stranger):
    def __init__(self) -> None:
        super().__init__()
        self.criteria = [nn.Linear(3, 1)]

    def configure_optimizers(self) -> Any:
        own = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW([*own, *self.criteria[0].parameters()], lr=1e-3)


class Decreasing(Stranger):
    """A warmup that starts at a rate of zero."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        curve = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 2))
        return [optimizer], [{"scheduler": curve, "interval": "step"}]


def told(folder: Path, module: LightningModule, *callbacks: Any, **options: Any) -> list[str]:
    """The warnings of this package in a fit of five steps."""
    callbacks = callbacks or (PELTCallback(PLAN),)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(folder, *callbacks, **options).fit(module, loader(5))
    words = ("learn", "no checkpoint saves")
    return [str(w.message) for w in caught if any(word in str(w.message) for word in words)]


@pytest.mark.parametrize("plan", [PLAN, UniPELT(norms=True), HeadOnly(), FullFineTuning()])
@pytest.mark.slow
def test_a_run_that_learns(tmp_path, plan):
    assert told(tmp_path, Stranger(), PELTCallback(plan)) == []
    assert told(tmp_path, Decreasing(), PELTCallback(plan)) == []


@pytest.mark.parametrize("kind", [BuiltInInit, HeadInOptimizer])
def test_an_optimizer_without_the_submodules(tmp_path, kind):
    lora, adapter = told(tmp_path, kind())
    assert lora.startswith("no optimizer holds the 6 parameters of lora, so they do not learn")
    assert "such as net.encoder.layer.0" in lora
    assert adapter.startswith("no optimizer holds the 8 parameters of adapter")


def test_a_model_that_is_frozen_after_attaching(tmp_path):
    messages = told(tmp_path, FrozenAtStart())
    assert [m.partition(",")[0] for m in messages] == [
        "the 6 parameters of lora are frozen",
        "the 8 parameters of adapter are frozen",
    ]


def test_a_backbone_without_gradients(tmp_path):
    messages = told(tmp_path, NoGrad())
    assert [m.partition(",")[0] for m in messages] == [
        "the 6 parameters of lora got no gradient",
        "the 8 parameters of adapter got no gradient",
    ]
    assert all("no_grad" in message for message in messages)


def test_a_part_without_gradients(tmp_path):
    messages = told(tmp_path, UpperBlockOnly())
    assert [m.partition(",")[0] for m in messages] == [
        "3 of 6 parameters of lora got no gradient",
        "4 of 8 parameters of adapter got no gradient",
    ]
    assert all("(such as net.encoder.layer.0." in message for message in messages)


class Skipping(UpperBlockOnly):
    """Every other step leaves the lower block out, as LayerDrop does by chance."""

    steps = 0

    def cut(self, module: nn.Module, args: tuple) -> tuple:
        self.steps += 1
        return super().cut(module, args) if self.steps % 2 else args


def test_a_part_that_is_skipped_by_chance(tmp_path):
    assert told(tmp_path, Skipping()) == []


def test_parameters_outside_the_module(tmp_path):
    (message,) = told(tmp_path, Outsider())
    assert "holds 2 parameters that Outsider does not hold, so no checkpoint saves" in message


@pytest.mark.parametrize("lr", [2e-5, 5e-5])
def test_a_rate_of_full_fine_tuning(tmp_path, lr):
    (message,) = told(tmp_path, Stranger(lr))
    assert f"the learning rate of lora, adapter is {lr:g}, which suits full fine-tuning" in message
    assert told(tmp_path, Stranger(lr), PELTCallback(FullFineTuning())) == []


def test_a_schedule_that_holds_gates_and_methods(tmp_path):
    schedule = GateSchedule({"adapter": [Phase(until=3, state="closed", held=True)]})
    assert told(tmp_path, Stranger(), PELTCallback(UniPELT([LoRA(), Adapter()])), schedule) == []


def test_a_search_for_the_rate_is_not_judged(tmp_path):
    finder = LearningRateFinder(num_training_steps=5, min_lr=1e-8, early_stop_threshold=None)
    messages = told(tmp_path, Stranger(), finder, PELTCallback(PLAN), enable_checkpointing=True)
    assert not any("1e-08" in message for message in messages)


def test_two_models_are_told_apart(tmp_path):
    class Two(Stranger):
        def __init__(self) -> None:
            super().__init__()
            self.other = build("bert", seed=1, task=False)

    callbacks = [PELTCallback(Plan.uniform(LoRA(r=2)), path=path) for path in ("net", "other")]
    messages = told(tmp_path, Two(), *callbacks)
    assert [m.partition(",")[0] for m in messages] == [
        "the 6 parameters of other: lora got no gradient"
    ]


def test_the_own_module_is_checked_too(tmp_path):
    backbone = bert(tmp_path / "backbone")
    module = PELTModule(backbone, PLAN, labels=LABELS, lr=2e-5)
    with pytest.warns(UserWarning, match="the learning rate of lora, adapter is 2e-05"):
        trainer(tmp_path, limit_train_batches=2).fit(module, Sentences(backbone))


class OneProfile(Stranger):
    """All rows of a run belong to the first of many profiles."""

    def states(self, batch: dict[str, Tensor]) -> Tensor:
        first = torch.zeros(len(batch["labels"]), dtype=torch.long)
        return self.net(batch["input_ids"], batch["attention_mask"], profile=first)[0]


def test_profiles_that_are_in_no_batch(tmp_path):
    plan = Plan.uniform(XPEFT(RandomBank(size=4), profiles=5, k=2))
    assert told(tmp_path, OneProfile(), PELTCallback(plan)) == []
