"""Shared by the callbacks: average gates, log scalars.

Gates are averaged on the device. The host waits for the device once, when the means are logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_pelt.callbacks._packed_examples import PackedExamples, examples_in

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lightning_pelt.methods.gate import GateView


def logging_step(trainer: Trainer) -> int:
    """The step at which Lightning's own ``self.log`` would log a value now."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def log_scalars(trainer: Trainer, scalars: Mapping[str, float]) -> None:
    """Log scalars to every logger, and make them available to checkpoints and early stopping."""
    trainer.callback_metrics.update({k: torch.tensor(v) for k, v in scalars.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(scalars), step=logging_step(trainer))


def per_example(value: Tensor) -> Tensor:
    """The gate of each example (B,): the mean over tokens of (B, T); a scalar () becomes (1,)."""
    return value.float().flatten(1).mean(1) if value.dim() > 1 else value.float().view(-1)


def weighted(value: Tensor, packed: PackedExamples | None) -> tuple[Tensor, Tensor]:
    """The gate of each example, and the weight of the example, both (n,).

    Args:
        value: of a gate, see :attr:`~lightning_pelt.methods.gate.GateView.value`.
        packed: the examples of the batch, if its rows are packed.
    """
    if packed is not None and value.shape == packed.numbers.shape:
        return packed.means(value.float()), packed.weights
    examples = per_example(value)
    return examples, torch.ones_like(examples)


class GateMeans:
    """The mean of every gate over many batches, in which each example has the same weight.

    ``update`` adds one small matrix on the device without a synchronization. ``compute`` sums over
    the ranks, so that all ranks get the same means, and synchronizes once.
    """

    def __init__(self, gates: Mapping[str, GateView], device: torch.device) -> None:
        self._gates = dict(gates)
        self._sums = torch.zeros(len(self._gates), 2, device=device)  # sum of gates, examples

    def update(self, batch: Any = None) -> None:
        """Add the gates of the last forward. A gate that was not evaluated adds nothing.

        Args:
            batch: of that forward. Each example counts once, also where a row has several.
        """
        packed = examples_in(batch)
        rows = [_sum_and_count(gate.value, self._sums, packed) for gate in self._gates.values()]
        if rows:
            self._sums = self._sums + torch.stack(rows)

    def compute(self, trainer: Trainer) -> dict[str, float]:
        """The means by gate name, without gates that no rank has evaluated."""
        total = torch.as_tensor(trainer.strategy.reduce(self._sums, reduce_op="sum"))
        rows = zip(self._gates, total.tolist(), strict=True)
        return {name: value / count for name, (value, count) in rows if count}


def _sum_and_count(value: Tensor | None, like: Tensor, packed: PackedExamples | None) -> Tensor:
    if value is None:
        return like.new_zeros(2)
    examples, weights = weighted(value.detach(), packed)
    return torch.stack(((examples * weights).sum(), weights.sum())).to(like.device)
