"""A resumed run equals the uninterrupted run, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small import LABELS, Sentences, bert
from torch import Tensor

from lightning_pelt import Adapter, GateMonitor, GateSchedule, LoRA, PELTModule, Prefix, UniPELT
from lightning_pelt.training.phases import Phase

EPOCHS = 3  # of 5 batches: 4 rows each, the last one of 3


class Interrupted(Exception):
    """Ends a run before its last step."""


class Interrupt(Callback):
    """Raises at the start of a batch, when the last checkpoint is older."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            raise Interrupted


class Draws(Callback):
    """Draws from the global generator, a different number of times in each run."""

    def __init__(self, numbers: int) -> None:
        self.numbers = numbers

    def on_train_batch_end(self, *args: Any) -> None:
        torch.rand(self.numbers)


def fit(
    folder: Path,
    backbone: str,
    *,
    every: int = 1,
    interrupt: int | None = None,
    resume: Path | None = None,
    checkpoint_activations: bool = False,
    **options: Any,
) -> dict[str, Tensor]:
    """The state at the end of training: weights, gates, and the optimizer's state."""
    plan = UniPELT(methods=[Adapter(bottleneck=4), Prefix(length=2, mlp=8), LoRA(r=2, dropout=0.2)])
    torch.manual_seed(7 if resume is None else 8)  # the run's seed comes from the checkpoint
    module = PELTModule(
        backbone,
        plan,
        labels=LABELS,
        lr=1e-2,
        warmup=0.1,
        checkpoint_activations=checkpoint_activations,
    )
    phases = {
        "prefix": [Phase(until=1, state="closed"), Phase(until=2, state="ramp")],
        "lora": [Phase(until=1, held=True), Phase(lr_factor=0.5)],
    }
    callbacks: list[Callback] = [
        GateSchedule(phases, prune_below=0.05),
        GateMonitor(every_n_steps=2, heatmap=False, over_time=False),
        Draws(3 if resume is None else 5),
        ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1),
    ]
    if interrupt is not None:
        callbacks.append(Interrupt(interrupt))
    options = {"max_epochs": EPOCHS, "enable_checkpointing": True, **options}
    run = trainer(folder, *callbacks, **options)
    data = Sentences(backbone, rows_of_train=19)
    if interrupt is not None:
        with pytest.raises(Interrupted):
            run.fit(module, data, ckpt_path=resume, weights_only=True)
        return {}
    run.fit(module, data, ckpt_path=resume, weights_only=True)
    (optimizer,) = run.optimizers
    moments = {
        f"{name}/{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
    return {**module.state_dict(), **moments}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the uninterrupted run, with a checkpoint of every step."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, backbone: str) -> dict[str, Tensor]:
    return fit(folder, backbone)


def assert_identical(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


@pytest.mark.slow
def test_dropout_matters_to_the_run(tmp_path, uninterrupted):
    """Otherwise the tests below would not test the random numbers."""
    without = bert(tmp_path / "dry", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    dry = fit(tmp_path, without)
    assert dry.keys() == uninterrupted.keys()
    assert not torch.equal(dry["model.classifier.weight"], uninterrupted["model.classifier.weight"])


@pytest.mark.parametrize(
    "step", [4, 5, 12, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 3, 6, 10, 14))]
)
@pytest.mark.sample(3)
def test_resumed_after_any_step(tmp_path, backbone, folder, uninterrupted, step):
    """Within an epoch, before its last batch, at its end, with a method held, ramped or free."""
    resumed = fit(tmp_path, backbone, resume=folder / f"step={step}.ckpt")
    assert_identical(resumed, uninterrupted)


@pytest.mark.slow
def test_interrupted_twice_and_resumed_from_some_steps_before(tmp_path, backbone, uninterrupted):
    fit(tmp_path, backbone, every=2, interrupt=3)
    assert not (tmp_path / "step=4.ckpt").exists()
    fit(tmp_path, backbone, every=4, interrupt=11, resume=tmp_path / "step=2.ckpt")
    resumed = fit(tmp_path, backbone, resume=tmp_path / "step=8.ckpt")
    assert_identical(resumed, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3, 4])
def test_resumed_while_gradients_accumulate(tmp_path, backbone, step):
    """Two batches per step, the fifth of an epoch alone: steps end after batches 2, 4, 5, 7."""
    options = {"accumulate_grad_batches": 2, "max_epochs": 2}
    whole = fit(tmp_path / "whole", backbone, **options)
    resume = tmp_path / "whole" / f"step={step}.ckpt"
    assert_identical(fit(tmp_path / "rest", backbone, resume=resume, **options), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 2},
        {"precision": "bf16-mixed", "checkpoint_activations": True},
        {"gradient_clip_val": 0.1, "reload_dataloaders_every_n_epochs": 1},
    ],
    ids=["validations-inside-the-epoch", "bf16-recomputed", "clipped-reloaded"],
)
def test_resumed_with_options(tmp_path, backbone, options):
    options = {"max_epochs": 2, **options}
    whole = fit(tmp_path / "whole", backbone, **options)
    resume = tmp_path / "whole" / "step=7.ckpt"
    assert_identical(fit(tmp_path / "rest", backbone, resume=resume, **options), whole)
