"""Runs that are interrupted and resumed, compared with the run that was not interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from small import LABELS, Sentences
from torch import Tensor

from lightning_pelt import Adapter, GateMonitor, GateSchedule, LoRA, PELTModule, Prefix, UniPELT
from lightning_pelt.training.phases import Phase

Row = tuple[int | None, str, float]  # step, name, value
Event = tuple[Any, ...]


class Rows(Logger):
    """A logger that keeps what it is given."""

    name, version = "rows", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows += [(step, name, float(value)) for name, value in metrics.items()]


class Trace(Callback):
    """Records batches with their rows, validations and ends of epochs, in order.

    Checkpoints hold how much was recorded before, so that a resumed run is compared with the rest.
    """

    def __init__(self, logger: Rows) -> None:
        self.logger = logger
        self.events: list[Event] = []
        self.before = self.rows_before = 0

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int) -> None:
        rows = batch["input_ids"].tolist()
        self.events.append(("batch", trainer.current_epoch, i, trainer.global_step, rows))

    def on_validation_end(self, trainer: Any, *args: Any) -> None:
        if not trainer.sanity_checking:
            self.events.append(("validation", trainer.current_epoch, trainer.global_step))

    def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
        self.events.append(("epoch", trainer.current_epoch, trainer.global_step))

    def state_dict(self) -> dict[str, int]:
        rows = self.rows_before + len(self.logger.rows)
        return {"events": self.before + len(self.events), "rows": rows}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.before, self.rows_before = state["events"], state["rows"]


@dataclass
class Run:
    """What a run leaves: weights, gates, moments, rates and counters; what it did and logged."""

    state: dict[str, Tensor]
    pruned: dict[str, Any]
    trace: Trace
    trainer: Trainer

    @property
    def kinds(self) -> list[str]:
        """``batch``, ``validation`` and ``epoch`` in their order."""
        return [event[0] for event in self.trace.events]


def every_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def module(backbone: str) -> PELTModule:
    """Draws random numbers in three places: dropout of the base, of LoRA, and of the head."""
    plan = UniPELT(methods=[Adapter(bottleneck=4), Prefix(length=2, mlp=8), LoRA(r=2, dropout=0.2)])
    return PELTModule(backbone, plan, labels=LABELS, lr=3e-2, warmup=0.1)


def schedule() -> GateSchedule:
    """Methods closed, ramped, held and slowed, and gates closed after a validation."""
    phases = {
        "prefix": [Phase(until=1, state="closed"), Phase(until=2, state="ramp")],
        "lora": [Phase(until=1, held=True), Phase(lr_factor=0.5)],
    }
    return GateSchedule(phases, prune_below=0.48, prune_after=1)


def fit(
    folder: Path,
    model: LightningModule,
    data: Any,
    *callbacks: Callback,
    gates: GateSchedule | None = None,
    resume: Path | None = None,
    **options: Any,
) -> Run:
    torch.manual_seed(7 if resume is None else 8)  # the run's seed comes from the checkpoint
    logger = Rows()
    trace = Trace(logger)
    gates = gates or GateSchedule(prune_below=0.48, prune_after=1)
    monitor = GateMonitor(every_n_steps=2, heatmap=False, table=False, over_time=False)
    if "max_steps" not in options:
        options = {"max_epochs": 3, **options}
    trainer = Trainer(
        **{"num_sanity_val_steps": 0, "log_every_n_steps": 1, **options},
        callbacks=[gates, monitor, trace, *callbacks],
        logger=logger,
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data, ckpt_path=resume, weights_only=True)
    return Run(_state(model, trainer), gates.state_dict(), trace, trainer)


def tuned(
    folder: Path, backbone: str, *callbacks: Callback, batches: int = 3, **options: Any
) -> Run:
    """A run of :func:`module` with :func:`schedule`; by default three epochs of three batches."""
    data = Sentences(backbone, rows_of_train=4 * batches - 1)
    return fit(folder, module(backbone), data, *callbacks, gates=schedule(), **options)


def assert_continues(resumed: Run, whole: Run, *, repeats: bool = False) -> None:
    """The resumed run did the rest of the whole run, and ended in the same state.

    Args:
        resumed: the run from a checkpoint.
        whole: the run that was not interrupted.
        repeats: whether batches may be run again, of a window of accumulated gradients.
    """
    assert_same_end(resumed, whole)
    rest = whole.trace.events[resumed.trace.before :]
    if repeats:
        rest = whole.trace.events[-len(resumed.trace.events) :]
    assert resumed.trace.events == rest, resumed.kinds
    if not repeats:
        _assert_logged(resumed.trace, whole.trace.logger.rows)


def assert_same_end(resumed: Run, whole: Run) -> None:
    """Equal weights, gates, moments, rates, counters, and state of pruning.

    Moments of parameters that are held are missing or zeros.
    """
    names = whole.state.keys() | resumed.state.keys()
    different = [name for name in names if not _equal(resumed.state, whole.state, name)]
    assert not different, different
    assert resumed.pruned == whole.pruned, (resumed.pruned, whole.pruned)


def _equal(left: dict[str, Tensor], right: dict[str, Tensor], name: str) -> bool:
    if name in left and name in right:
        return torch.equal(left[name], right[name])
    return not (left | right)[name].any()


def _assert_logged(trace: Trace, rows: Sequence[Row]) -> None:
    """A checkpoint in a batch's last hook precedes what is logged for it; no more is lost."""
    logged = trace.logger.rows
    begin = len(rows) - len(logged)
    assert logged == rows[begin:], (logged[:9], rows[trace.rows_before :][:9])
    lost = rows[trace.rows_before : begin]
    assert len({step for step, _, _ in lost}) <= 1
    assert not [name for _, name, _ in lost if name.startswith("val/")]


def _state(model: LightningModule, trainer: Trainer) -> dict[str, Tensor]:
    state = dict(model.state_dict())
    (optimizer,) = trainer.optimizers
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{name}/{key}"] = value
    state["rates"] = torch.tensor([group["lr"] for group in optimizer.param_groups])
    state["counters"] = torch.tensor([trainer.current_epoch, trainer.global_step])
    return state
