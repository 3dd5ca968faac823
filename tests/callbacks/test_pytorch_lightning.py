"""The callbacks in a trainer of pytorch_lightning, the other name of the library."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as other
import torch
from callbacks.test_pelt import UserModule
from callbacks.tiny import loader
from torch import Tensor, nn
from zoo import WIDTH, build

from lightning_pelt import (
    FiniteGuard,
    GateMonitor,
    GateSchedule,
    ParameterCount,
    PELTCallback,
    UniPELT,
)
from lightning_pelt.attach import find_attachment
from lightning_pelt.callbacks.finite_guard import NonFiniteError
from lightning_pelt.training.checkpoint_io import WholeFiles


class Module(other.LightningModule):
    logits: Any = UserModule.logits
    training_step: Any = UserModule.training_step
    configure_optimizers: Any = UserModule.configure_optimizers

    def __init__(self) -> None:
        super().__init__()
        self.net: Any = build("bert", task=False)
        self.head = nn.Linear(WIDTH, 3)
        self.register_buffer("seen", torch.zeros(()))

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.log("loss", self.logits(batch).mean())


def trainer(folder: Any, *callbacks: Any, **options: Any) -> Any:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "default_root_dir": folder,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": list(callbacks),
    }
    return other.Trainer(**{**defaults, **options})


@pytest.mark.slow
def test_all_callbacks_work_and_checkpoints_load(tmp_path):
    torch.manual_seed(0)
    module = Module()
    watching = [GateMonitor(), GateSchedule(prune_below=0.01), ParameterCount(), FiniteGuard()]
    run = trainer(tmp_path, PELTCallback(UniPELT()), *watching)
    run.fit(module, loader(2), loader(1))
    assert find_attachment(module) is not None
    assert (tmp_path / "gates.png").is_file()
    assert type(run.strategy.checkpoint_io) is WholeFiles
    path = run.checkpoint_callback.best_model_path
    again = Module.load_from_checkpoint(path)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_no_checkpoint_follows_a_loss_that_is_not_finite(tmp_path):
    class Explodes(Module):
        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return self.logits(batch).mean() * float("nan" if index else "1")

    kept = other.callbacks.OnExceptionCheckpoint(tmp_path / "exception")
    with pytest.raises(NonFiniteError):
        trainer(tmp_path, PELTCallback(UniPELT()), FiniteGuard(), kept).fit(Explodes(), loader(2))
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_after_processes_the_weights_are_in_the_main_one(tmp_path):
    module = Module()
    run = trainer(tmp_path, PELTCallback(UniPELT()), strategy="ddp_fork")
    run.fit(module, loader(2))
    again = Module.load_from_checkpoint(run.checkpoint_callback.best_model_path)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_averages_of_either_name_are_copied_again(tmp_path):
    average = other.callbacks.StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)
    module = Module()
    run = trainer(tmp_path, average, PELTCallback(UniPELT()), max_epochs=2)
    run.fit(module, loader(1))
    assert average._average_model is not None
    averaged = dict(average._average_model.named_parameters())
    assert averaged.keys() == dict(module.named_parameters()).keys()
