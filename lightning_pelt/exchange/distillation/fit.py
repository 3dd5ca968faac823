"""Trains a LoRA to follow another plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from lightning_pelt.exchange.distillation.hidden_states import Changes, Watched, mismatch
from lightning_pelt.exchange.distillation.unlabelled_rows import Batch

WARMUP = 0.06  # share of the steps
LARGEST_NORM = 1.0  # of the gradient
PATIENCE = 5  # seconds without a bar


@dataclass(frozen=True)
class Recipe:
    """How a LoRA is trained.

    Args:
        epochs: passes over the batches.
        lr: the largest learning rate.
        seed: of the order of the batches.
        progress: whether to show a bar.
    """

    epochs: int
    lr: float
    seed: int
    progress: bool = True


def fit(
    student: Watched,
    teacher: Watched,
    batches: Sequence[Batch],
    *,
    parameters: list[nn.Parameter],
    changes: Changes,
    recipe: Recipe,
) -> int:
    """Train ``parameters`` of the student; returns the number of steps.

    Raises:
        ValueError: the loss is NaN or infinite.
    """
    steps = recipe.epochs * len(batches)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=0.0)
    # Not transformers' schedule: its import brings PEFT and all that transformers' Trainer needs.
    schedule = LambdaLR(optimizer, lambda step: warm_cosine(step, round(WARMUP * steps), steps))
    generator = torch.Generator().manual_seed(recipe.seed)
    orders = (torch.randperm(len(batches), generator=generator) for _ in range(recipe.epochs))
    numbers = (int(number) for order in orders for number in order)
    bar = tqdm(numbers, "distil", steps, delay=PATIENCE, disable=not recipe.progress, unit=" steps")
    with only(student.model, parameters), torch.enable_grad():
        for number in bar:
            loss = _step(student, teacher, batches[number], changes=changes)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            size = nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
            if not size.isfinite():
                raise ValueError(
                    f"the distillation diverged: the loss is {float(loss.detach()):.3g}. Use a "
                    f"smaller lr than {recipe.lr}"
                )
            optimizer.step()
            schedule.step()
    for parameter in parameters:
        parameter.grad = None
    return steps


def _step(student: Watched, teacher: Watched, batch: Batch, *, changes: Changes) -> torch.Tensor:
    with torch.no_grad():
        target = teacher.run(batch)
    hidden, logits = mismatch(student, student.run(batch), target, batch=batch, changes=changes)
    return hidden + logits


@contextmanager
def only(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """A context in which ``parameters`` alone have gradients."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    chosen = set(parameters)
    restore: Callable[[nn.Parameter], bool] = before.__getitem__
    for parameter in before:
        parameter.requires_grad_(parameter in chosen)
    try:
        yield
    finally:
        for parameter in before:
            parameter.requires_grad_(restore(parameter))


def warm_cosine(step: int, warmup: int, steps: int) -> float:
    """The factor of a rate that rises linearly to 1 and falls to 0 as half a cosine.

    Example:
        >>> [round(warm_cosine(step, 2, 6), 3) for step in range(7)]
        [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + cos(pi * (step - warmup) / max(1, steps - warmup)))
