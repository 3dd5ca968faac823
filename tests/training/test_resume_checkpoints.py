"""Resuming from the checkpoints that Lightning writes by itself, and on exceptions and signals."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, OnExceptionCheckpoint
from small import bert
from training.continued import assert_continues, assert_same_end, tuned


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert(tmp_path_factory.mktemp("backbone"))


# -- each way of ModelCheckpoint ------------------------------------------------------------------

HALVES = {"batches": 4, "val_check_interval": 0.5, "max_epochs": 2}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "default-max-steps": ({}, {"max_steps": 9}),
    "default-max-steps-unvalidated": ({}, {"max_steps": 9, "limit_val_batches": 0}),
    "default-second-epoch": ({}, {"check_val_every_n_epoch": 2, "max_steps": 9}),
    "default-halves": ({"filename": "{step}"}, HALVES),
    "default-halves-max-steps": ({"filename": "{step}"}, {**HALVES, "max_steps": 8}),
    "default-within-a-window": (
        {"filename": "{step}"},
        {"batches": 6, "val_check_interval": 0.5, "accumulate_grad_batches": 2},
    ),
    "validation-end": ({"save_on_train_epoch_end": False}, {}),
    "validation-end-max-steps": ({"save_on_train_epoch_end": False}, {"max_steps": 9}),
    "every-second-epoch": ({"every_n_epochs": 2, "save_last": True}, {}),
    "monitored-steps": (
        {"monitor": "val/accuracy", "every_n_train_steps": 1, "filename": "{step}"},
        {},
    ),
    "every-moment": ({"train_time_interval": timedelta(0), "filename": "{step}"}, {}),
}
SLOW = {
    "default-second-epoch",
    "default-halves-max-steps",
    "validation-end",
    "every-second-epoch",
    "monitored-steps",
    "every-moment",
}


@pytest.mark.parametrize(
    ("saving", "options"),
    [pytest.param(*w, id=n, marks=[pytest.mark.slow] * (n in SLOW)) for n, w in WAYS.items()],
)
@pytest.mark.sample(3)
def test_resumed_from_each_checkpoint(tmp_path, backbone, saving, options):
    writer = ModelCheckpoint(tmp_path, save_top_k=-1, **saving)
    whole = tuned(tmp_path, backbone, writer, **options)
    last = whole.trainer.global_step
    checkpoints = [p for p in tmp_path.glob("*.ckpt") if f"step={last}" not in p.name]
    assert checkpoints
    for checkpoint in checkpoints:
        resumed = tuned(tmp_path / "rest", backbone, resume=checkpoint, **options)
        assert_continues(resumed, whole)


# -- saved in any hook ----------------------------------------------------------------------------

HOOKS = [
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_end",
]


class SaveInHook(Callback):
    def __init__(self, hook: str, folder: Path) -> None:
        self.folder = folder
        setattr(self, hook, self._save)

    def _save(self, trainer: Trainer, *args: Any) -> None:
        name = f"{trainer.current_epoch}-{trainer.fit_loop.batch_idx}"
        trainer.save_checkpoint(self.folder / f"{name}.ckpt")


@pytest.mark.sample(10)
@pytest.mark.parametrize("options", [{}, {"max_steps": 6}, HALVES], ids=["epochs", "steps", "half"])
@pytest.mark.parametrize("hook", HOOKS)
def test_resumed_from_a_checkpoint_of_any_hook(tmp_path, backbone, hook, options):
    whole = tuned(tmp_path, backbone, SaveInHook(hook, tmp_path), **options)
    for checkpoint in tmp_path.glob("*.ckpt"):
        resumed = tuned(tmp_path / "rest", backbone, resume=checkpoint, **options)
        same = {name: value for name, value in whole.state.items() if name != "counters"}
        assert not [n for n, value in same.items() if not value.equal(resumed.state[n])]
        assert resumed.pruned == whole.pruned


# -- interruptions --------------------------------------------------------------------------------


class PowerCut(Exception):
    """Ends a run in the middle."""


class Interrupt(Callback):
    """Calls ``action`` at the ``number``-th call of a hook."""

    def __init__(self, hook: str, number: int, action: Any) -> None:
        self.left, self.action = number, action
        setattr(self, hook, self._count)

    def _count(self, trainer: Trainer, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.action(trainer)


def cut(trainer: Trainer) -> None:
    raise PowerCut


def terminate(trainer: Trainer) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def stop(trainer: Trainer) -> None:
    """As a time limit does."""
    trainer.should_stop = True


def interrupt(folder: Path, backbone: str, *callbacks: Callback, **options: Any) -> Path:
    """The checkpoint that an interrupted run leaves."""
    with suppress(PowerCut, SystemExit):
        tuned(folder, backbone, *callbacks, **options)
    (checkpoint,) = folder.glob("*.ckpt")
    return checkpoint


# Two epochs of four batches with two validations each: a hook, and its calls that fail.
FAST = {("on_before_optimizer_step", 5), ("on_validation_batch_end", 3), ("on_train_batch_end", 3)}
CALLS = {
    "on_train_epoch_start": (1, 2),
    "on_train_batch_start": (1, 3, 4, 7),
    "on_before_backward": (2, 5),
    "on_before_optimizer_step": (1, 2, 3, 5),
    "on_train_batch_end": (1, 2, 3, 4, 8),
    "on_validation_start": (1, 2, 4),
    "on_validation_batch_end": (1, 2, 3, 8),
    "on_validation_end": (1, 2, 4),
    "on_train_epoch_end": (1, 2),
}
PLACES = [
    pytest.param(hook, number, marks=[pytest.mark.slow] * ((hook, number) not in FAST))
    for hook, numbers in CALLS.items()
    for number in numbers
]


@pytest.mark.sample(9)
@pytest.mark.parametrize(("hook", "number"), PLACES)
def test_an_exception_in_any_hook(tmp_path, backbone, hook, number):
    """A batch that has failed is run again, and so is a validation."""
    options = {"max_epochs": 2, "val_check_interval": 2, "batches": 4}
    whole = tuned(tmp_path / "whole", backbone, **options)
    saves = OnExceptionCheckpoint(tmp_path)
    checkpoint = interrupt(tmp_path, backbone, Interrupt(hook, number, cut), saves, **options)
    resumed = tuned(tmp_path / "rest", backbone, resume=checkpoint, **options)
    assert_continues(resumed, whole)


@pytest.mark.parametrize("batch", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_batch_that_fails_within_a_window_repeats_the_window(tmp_path, backbone, batch):
    options = {"max_epochs": 1, "batches": 6, "accumulate_grad_batches": 3}
    whole = tuned(tmp_path / "whole", backbone, **options)
    fails = Interrupt("on_before_backward", batch + 1, cut)
    checkpoint = interrupt(tmp_path, backbone, fails, OnExceptionCheckpoint(tmp_path), **options)
    resumed = tuned(tmp_path / "rest", backbone, resume=checkpoint, **options)
    assert resumed.trace.events[0][2] == batch - batch % 3
    assert_continues(resumed, whole, repeats=True)


@pytest.mark.parametrize("number", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_terminated(tmp_path, backbone, number):
    """Lightning ends the run after the batch and its validation."""
    options = {"max_epochs": 2}
    whole = tuned(tmp_path / "whole", backbone, **options)
    ends = Interrupt("on_train_batch_end", number, terminate)
    saves = ModelCheckpoint(tmp_path, save_on_exception=True, every_n_train_steps=100)
    checkpoint = interrupt(tmp_path, backbone, ends, saves, **options)
    assert_continues(tuned(tmp_path / "rest", backbone, resume=checkpoint, **options), whole)


@pytest.mark.parametrize("number", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@pytest.mark.slow
def test_stopped_within_an_epoch(tmp_path, backbone, number):
    """The epoch goes on, and the validation at the stop does not count for pruning."""
    whole = tuned(tmp_path / "whole", backbone)
    ends = Interrupt("on_train_batch_end", number, stop)
    checkpoint = interrupt(tmp_path, backbone, ends, ModelCheckpoint(tmp_path))
    resumed = tuned(tmp_path / "rest", backbone, resume=checkpoint)
    assert_same_end(resumed, whole)
    batches = [event for event in whole.trace.events if event[0] == "batch"]
    assert [e for e in resumed.trace.events if e[0] == "batch"] == batches[number:]


@pytest.mark.slow
def test_ended_by_max_steps_within_an_epoch_and_continued(tmp_path, backbone):
    short = tuned(tmp_path, backbone, ModelCheckpoint(tmp_path), max_steps=5)
    (checkpoint,) = tmp_path.glob("*.ckpt")
    rest = tuned(tmp_path / "rest", backbone, resume=checkpoint, max_steps=9)
    places = [
        event[1:4] for event in (*short.trace.events, *rest.trace.events) if event[0] == "batch"
    ]
    assert places == [(step // 3, step % 3, step + 1) for step in range(9)]
    assert rest.kinds[:3] == ["batch", "validation", "epoch"]
