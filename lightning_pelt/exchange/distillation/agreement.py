"""How near a distilled model comes to the plan that it was distilled from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_pelt.exchange.distillation.hidden_states import Changes, Watched
from lightning_pelt.exchange.distillation.unlabelled_rows import Batch


@dataclass(frozen=True)
class Agreement:
    """Two models compared on the same rows.

    Attributes:
        predictions: share of equal predictions, of rows or of real tokens; None without logits of
            several classes.
        hidden_error: distance of the hidden states as a share of the change that the plan makes,
            root mean square over the blocks: 0 for equal models, 1 for the base without the plan.
        rows: number of rows.
    """

    predictions: float | None
    hidden_error: float
    rows: int


@torch.no_grad()
def measure(
    student: Watched, teacher: Watched, batches: Sequence[Batch], changes: Changes
) -> Agreement:
    """Compare two models on ``batches``."""
    squares: dict[str, float] = dict.fromkeys(student.blocks, 0.0)
    counts = dict.fromkeys(student.blocks, 0)
    equal = predicted = rows = 0
    for batch in batches:
        own, target = student.run(batch), teacher.run(batch)
        rows += len(next(iter(batch.values())))
        for path, x, y in student.pairs(own, target, batch):
            squares[path] += float((x - y).square().sum())
            counts[path] += y.numel()
        for x, y in student.logit_pairs(own, target, batch):
            if x.shape[-1] > 1:
                equal += int((x.argmax(-1) == y.argmax(-1)).sum())
                predicted += len(x)
    shares = [squares[p] / max(counts[p], 1) / changes.squares[p] for p in squares]
    share = equal / predicted if predicted else None
    return Agreement(share, (sum(shares) / len(shares)) ** 0.5, rows)
