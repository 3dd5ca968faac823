"""Averages of the weights of adapters with equal plans: plain, TIES and DARE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_pelt.attach.several.entry import Entry
from lightning_pelt.utils.errors import unknown

Averaging = Literal["plain", "ties", "dare"]


def plain(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    r""":math:`\sum_i w_i \theta_i`."""
    return torch.tensordot(weights, torch.stack([*tensors]), 1)


def ties(tensors: Sequence[Tensor], weights: Tensor, density: float) -> Tensor:
    """TIES (Yadav et al., 2023, algorithm 1; https://arxiv.org/abs/2306.01708).

    Each tensor keeps its largest values, the share ``density`` of them. The sign of each value is
    that of the weighted sum, and the result is the weighted mean of the values with that sign.

    Example:
        >>> one, two = torch.tensor([4.0, -1.0, 2.0]), torch.tensor([-1.0, -3.0, 4.0])
        >>> ties([one, two], torch.tensor([0.5, 0.5]), density=1.0)
        tensor([ 4., -2.,  3.])
    """
    kept = torch.stack([_largest(tensor, density) for tensor in tensors])
    w = weights.view(-1, *[1] * tensors[0].dim())
    positive = (w * kept).sum(0) >= 0
    agrees = torch.where(positive, kept > 0, kept < 0)
    share = (w * agrees).sum(0)
    return (w * kept * agrees).sum(0) / share.where(share > 0, 1.0)


def _largest(tensor: Tensor, density: float) -> Tensor:
    count = int(density * tensor.numel())
    chosen = tensor.abs().flatten().topk(count).indices
    mask = torch.zeros_like(tensor).flatten().index_fill_(0, chosen, 1.0)
    return tensor * mask.view_as(tensor)


def dare(
    tensors: Sequence[Tensor], weights: Tensor, density: float, generator: torch.Generator
) -> Tensor:
    """DARE (Yu et al., 2023, equation 5; https://arxiv.org/abs/2311.03099), then the plain average.

    Values are dropped at random, the share ``density`` of them remains and is divided by it.
    """
    masks = [torch.bernoulli(torch.full_like(t, density), generator=generator) for t in tensors]
    return plain([t * mask / density for t, mask in zip(tensors, masks, strict=True)], weights)


def combination(
    method: str, density: float | None, seed: int
) -> Callable[[Sequence[Tensor], Tensor], Tensor]:
    """The function that combines the tensors of several adapters with weights.

    Raises:
        ValueError: an unknown method, or a density that is missing, superfluous or out of range.
    """
    if method not in get_args(Averaging):
        raise unknown("method of averaging", method, get_args(Averaging))
    if method == "plain":
        if density is not None:
            raise ValueError(f"density={density} has no effect on method='plain': leave it out")
        return plain
    if density is None or not 0 < density <= 1:
        raise ValueError(
            f"method={method!r} has density={density}, the share of values that each adapter "
            "keeps: set it above 0 and to at most 1, such as density=0.5"
        )
    if method == "ties":
        return lambda tensors, weights: ties(tensors, weights, density)
    generator = torch.Generator().manual_seed(seed)
    return lambda tensors, weights: dare(tensors, weights, density, generator)


def shares(weights: Sequence[float] | None, count: int) -> Tensor:
    """Weights that sum to one, equal ones by default.

    Raises:
        ValueError: another number than ``count``, or one that is negative or not finite, or all 0.
    """
    if weights is None:
        return torch.full((count,), 1 / count)
    values = torch.tensor([float(weight) for weight in weights])
    if len(values) != count or not (values >= 0).all() or not 0 < values.sum() < float("inf"):
        raise ValueError(
            f"weights={list(weights)}, expected {count} numbers, one per adapter, of at least 0 "
            "and not all 0: they are divided by their sum"
        )
    return values / values.sum()


def refuse_unequal(names: Sequence[str], entries: Sequence[Entry]) -> None:
    """Raise unless adapters have equal plans, and heads of one shape.

    Raises:
        ValueError: the message names the adapters that differ.
    """
    first = entries[0]
    for name, entry in zip(names[1:], entries[1:], strict=True):
        if entry.attachment.plan != first.attachment.plan:
            raise ValueError(
                f"{names[0]!r} and {name!r} have different plans, {first.attachment.plan} and "
                f"{entry.attachment.plan}: choose adapters with equal plans"
            )
        shapes = [[(k, t.shape) for k, t in own_tensors(each)] for each in (first, entry)]
        if shapes[0] != shapes[1]:
            other = next((a, b) for a, b in zip(*shapes, strict=False) if a != b)
            raise ValueError(
                f"{names[0]!r} and {name!r} have heads for other labels, or train other tensors of "
                f"the model: {other[0][0]} {tuple(other[0][1])} and {other[1][0]} "
                f"{tuple(other[1][1])}. Choose adapters with heads of one shape"
            )


def own_tensors(entry: Entry) -> Iterator[tuple[str, Tensor]]:
    """The head, trained norms and statistics of an adapter that is off its model."""
    for change in entry.slots:
        yield f"{type(change.module).__name__}.{change.key}", change.on
    for change in entry.layers:
        for name, tensor in [*change.on.named_parameters(), *change.on.named_buffers()]:
            yield f"{change.key}.{name}", tensor


@torch.no_grad()
def average(
    entries: Sequence[Entry],
    weights: Tensor,
    combine: Callable[[Sequence[Tensor], Tensor], Tensor],
) -> Entry:
    """A new adapter, off the model, with combined weights.

    ``combine`` applies to the submodules. Gates, heads, norms and statistics are averaged plainly,
    since their values are not changes of something: half of a head's rows are no head.
    """
    result = entries[0].copied()
    attachments = [entry.attachment for entry in entries]
    for target, *modules in zip(
        result.attachment.all_submodules, *[a.all_submodules for a in attachments], strict=True
    ):
        _combine(target, modules, weights, combine)
    for layer, *layers in zip(result.gate_layers, *[e.gate_layers for e in entries], strict=True):
        _combine(layer, layers, weights, plain)
        layer.openness = [float(value) for value in layer.open.tolist()]
    own = zip(own_tensors(result), *[own_tensors(entry) for entry in entries], strict=True)
    for (_, tensor), *named in own:
        _write(tensor, [each for _, each in named], weights, plain)
    return result


def _combine(target: nn.Module, modules: Sequence[nn.Module], weights: Tensor, how: Any) -> None:
    rest = [dict(module.named_parameters()) for module in modules]
    for name, tensor in target.named_parameters():
        _write(tensor, [named[name] for named in rest], weights, how)
    buffers = [dict(module.named_buffers()) for module in modules]
    for name, buffer in target.named_buffers():
        _write(buffer, [named[name] for named in buffers], weights, plain)


def _write(target: Tensor, tensors: Sequence[Tensor], weights: Tensor, how: Any) -> None:
    if target.is_floating_point():  # counters and indices stay those of the first
        found = how([tensor.detach().float().cpu() for tensor in tensors], weights)
        target.copy_(found.to(target.device, target.dtype))


def refuse_without_zero(names: Sequence[str], entry: Entry, method: str) -> None:
    """Raise if zero is not the neutral value of a weight, so that none may be dropped.

    Raises:
        ValueError: the message names the method of the plan.
    """
    for tuned in entry.attachment.plan.methods:
        if method != "plain" and not tuned.weight_decay:
            raise ValueError(
                f"method={method!r} sets weights to zero, and zero is not the neutral value of "
                f"{type(tuned).__name__}, which {names[0]!r} has: use method='plain'"
            )
