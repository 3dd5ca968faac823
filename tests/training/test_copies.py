"""Callbacks that average weights, wherever they stand in the list of callbacks."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.test_pelt import Lazy, UserModule, user_module
from callbacks.tiny import loader, trainer
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from small import LABELS, Sentences, bert

from lightning_pelt import LoRA, PELTCallback, PELTModule, Plan, UniPELT

PLAN = Plan.uniform(LoRA(r=2))


def averaging() -> StochasticWeightAveraging:
    return StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)


class Starts(Callback):
    """The trained weights at the start of each epoch, which are what is averaged."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.weights.append(trained(pl_module))


def trained(module: Any) -> dict[str, torch.Tensor]:
    named = module.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def assert_averaged(module: Any, starts: Starts) -> None:
    assert any("pelt" in name for name in trained(module))
    for name, weight in trained(module).items():
        mean = torch.stack([weights[name] for weights in starts.weights]).mean(0)
        torch.testing.assert_close(weight, mean)
        assert not torch.equal(starts.weights[0][name], starts.weights[-1][name]), name


@pytest.mark.parametrize("kind", [UserModule, Lazy])
@pytest.mark.parametrize("first", [True, False])
def test_swa_averages_what_a_callback_attaches(tmp_path, kind, first):
    module, starts = user_module(kind), Starts()
    callbacks = [averaging(), PELTCallback(PLAN)]
    run = trainer(tmp_path, *(callbacks if first else reversed(callbacks)), starts, max_epochs=3)
    run.fit(module, loader(2))
    assert_averaged(module, starts)


@pytest.mark.slow
def test_swa_averages_a_pelt_module(tmp_path):
    backbone, starts = bert(tmp_path), Starts()
    module = PELTModule(backbone, UniPELT(), labels=LABELS, lr=0.05)
    trainer(tmp_path, averaging(), starts, max_epochs=3).fit(module, Sentences(backbone))
    assert_averaged(module, starts)


def ema(folder: Path, order: list[int], epochs: int, checkpoint: Path | None = None) -> UserModule:
    module = user_module()
    average = EMAWeightAveraging(decay=0.5, update_every_n_steps=1)
    callbacks: list[Any] = [PELTCallback(PLAN), average]
    kept = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    run = trainer(
        folder, *(callbacks[i] for i in order), kept, max_epochs=epochs, enable_checkpointing=True
    )
    run.fit(module, loader(2), ckpt_path=checkpoint, weights_only=True)
    return module


@pytest.mark.slow
def test_an_average_that_is_listed_first_is_that_of_one_listed_last(tmp_path):
    last, first = ema(tmp_path / "a", [0, 1], 2), ema(tmp_path / "b", [1, 0], 2)
    resumed = ema(tmp_path / "c", [1, 0], 2, tmp_path / "b" / "epoch=0.ckpt")
    for name, tensor in last.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name]), name
        assert torch.equal(tensor, resumed.state_dict()[name]), name


class OwnAverage(Callback):
    """A user's callback, which copies the module in ``setup``."""

    def __init__(self) -> None:
        self.setups = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.setups += 1
        self.copy = deepcopy(pl_module)


def test_a_copy_of_an_unknown_callback_is_named(tmp_path):
    own = OwnAverage()
    with pytest.warns(UserWarning, match=r"OwnAverage holds a copy of UserModule.*on_fit_start"):
        trainer(tmp_path, own, PELTCallback(PLAN)).fit(user_module(), loader(1))
    assert own.setups == 1


def test_a_copy_with_the_plan_is_not(tmp_path, recwarn):
    trainer(tmp_path, PELTCallback(PLAN)).fit(module := user_module(), loader(1))
    trainer(tmp_path, OwnAverage(), PELTCallback(PLAN)).fit(module, loader(1))
    assert not any("OwnAverage" in str(warning.message) for warning in recwarn)
