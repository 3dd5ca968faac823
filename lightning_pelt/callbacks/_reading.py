"""What the callbacks share: finding the attachment, reading its gates, writing scalars.

Gates are read without stopping the device: a reading is one small tensor, and becomes numbers
(the one wait) only where somebody writes them down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_pelt.attach import Attachment, find_attachment

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

    from lightning_pelt.gate import GateView


def attachment_of(pl_module: LightningModule, asker: object) -> Attachment:
    """The attachment inside a LightningModule.

    Raises:
        ValueError: if nothing is attached to any model inside it.
    """
    attachment = find_attachment(pl_module)
    if attachment is None:
        raise ValueError(
            f"{type(asker).__name__} found no attached submodules in {type(pl_module).__name__}: "
            "add PELTCallback(plan=...) to the Trainer's callbacks, or call attach(model, plan) "
            "in configure_model"
        )
    return attachment


def logging_step(trainer: Trainer) -> int:
    """The step under which Lightning's own ``self.log`` files a value right now."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def log_scalars(trainer: Trainer, scalars: Mapping[str, float]) -> None:
    """Write scalars to every logger, and where checkpoints and early stopping look for theirs."""
    trainer.callback_metrics.update({k: torch.tensor(v) for k, v in scalars.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(scalars), step=logging_step(trainer))


def per_example(value: Tensor) -> Tensor:
    """The gate of each example, ``(B,)``: tokens ``(B, T)`` averaged, one for all ``()`` as one."""
    return value.float().flatten(1).mean(1) if value.dim() > 1 else value.float().view(-1)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A plain table: names to the left, numbers to the right, a rule under the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        return "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()

    return "\n".join([line(rows[0]), line(["-" * w for w in widths]), *map(line, rows[1:])])


class GateMeans:
    """The mean of every gate over many batches, each example counting once.

    ``update`` adds one small matrix on the device and waits for nothing. ``compute`` sums over the
    ranks, so that all of them see (and decide) the same, and waits once.
    """

    def __init__(self, gates: Iterable[GateView], device: torch.device) -> None:
        self._gates = list(gates)
        self._sums = torch.zeros(len(self._gates), 2, device=device)  # sum of gates, examples

    def update(self) -> None:
        """Add the gates of the last forward; a gate that has seen none adds nothing."""
        rows = [_sum_and_count(gate.value, self._sums) for gate in self._gates]
        self._sums = self._sums + torch.stack(rows)

    def compute(self, trainer: Trainer) -> dict[str, float]:
        """The means so far by gate name, without the gates that saw no example on any rank."""
        total = torch.as_tensor(trainer.strategy.reduce(self._sums, reduce_op="sum"))
        rows = zip(self._gates, total.tolist(), strict=True)
        return {gate.name: value / count for gate, (value, count) in rows if count}


def _sum_and_count(value: Tensor | None, like: Tensor) -> Tensor:
    if value is None:
        return like.new_zeros(2)
    examples = per_example(value.detach()).to(like.device)
    return torch.stack((examples.sum(), like.new_full((), len(examples))))
