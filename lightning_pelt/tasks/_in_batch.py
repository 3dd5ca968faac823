"""The loss of pairs against the other texts of a batch, of all processes together."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from lightning_pelt.tasks._gathering import all_rows, all_sizes, gathers


class Pairs(NamedTuple):
    """The embeddings of a batch.

    Attributes:
        anchors, positives: (B, d).
        negatives: of all rows, (M, d).
        anchor_hashes, positive_hashes: (B,), equal for equal texts; None if they are not known.
        negative_hashes: (M,).
    """

    anchors: Tensor
    positives: Tensor
    negatives: Tensor
    anchor_hashes: Tensor | None = None
    positive_hashes: Tensor | None = None
    negative_hashes: Tensor | None = None


def in_batch_loss(
    own: Pairs, *, temperature: float, symmetric: bool = False, mask_duplicates: bool = True
) -> Tensor:
    """The cross-entropy of each anchor's positive among all positives and negatives.

    Scores are products of embeddings divided by the temperature (van den Oord et al., 2018,
    equation 4; Henderson et al., 2017, section 4.4). With several processes, the texts of all of
    them are candidates, and the mean of their losses is that of one process with all rows.

    Args:
        own: the rows of this process.
        temperature: divides the scores.
        symmetric: the mean of this loss and that of each positive's anchor among all anchors.
        mask_duplicates: leave out candidates that are no negatives: those equal to the positive,
            and the positives of equal anchors.
    """
    whole, first = gathered(own)
    rows, device = len(own.anchors), own.anchors.device
    target = torch.arange(first, first + rows, device=device)
    candidates = torch.cat([whole.positives, whole.negatives])
    same = _duplicates(whole, target) if mask_duplicates else None
    if same is None:
        same = torch.zeros(rows, len(candidates), dtype=torch.bool, device=device)
    with torch.autocast(device.type, enabled=False):  # half precision has too few digits of scores
        scores = own.anchors @ candidates.T / temperature
        loss = F.cross_entropy(scores.masked_fill(same, -torch.inf), target)
        if not symmetric:
            return loss
        back = own.positives @ whole.anchors.T / temperature
        back = back.masked_fill(same[:, : len(whole.anchors)], -torch.inf)
        return (loss + F.cross_entropy(back, target)) / 2


def _duplicates(whole: Pairs, target: Tensor) -> Tensor | None:
    """Which candidates are no negatives of the rows ``target``, (B, candidates)."""
    anchors, positives, negatives = whole[3:]
    if anchors is None or positives is None or negatives is None:
        return None
    same = positives[target, None] == torch.cat([positives, negatives])
    same[:, : len(anchors)] |= anchors[target, None] == anchors
    return same.scatter(1, target[:, None], False)


def gathered(own: Pairs) -> tuple[Pairs, int]:
    """The rows of all processes, and the number of the first row of this one among them."""
    if not gathers():
        return own, 0
    sizes = all_sizes(len(own.anchors), len(own.negatives), device=own.anchors.device)
    parts = [
        None if part is None else all_rows(part, sizes[:, kind].tolist())
        for part, kind in zip(own, (0, 0, 1, 0, 0, 1), strict=True)
    ]
    return Pairs(*parts), int(sizes[: dist.get_rank(), 0].sum())  # type: ignore[arg-type]
