"""What a distilled model has to reproduce: the hidden states of every block, and the logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.exchange.distillation.unlabelled_rows import Batch, on, real

SMALLEST = 1e-4  # share of a block's mean square that counts as a change of it


@dataclass
class Outputs:
    """The hidden states of one forward by block, and the logits by name.

    A block that runs several times, such as ALBERT's, has as many tensors.
    """

    hidden: dict[str, list[Tensor]] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)


class Watched:
    """A model whose forward also returns what its blocks return.

    Args:
        model: an encoder, a decoder, or an encoder-decoder.
        anatomy: of the model.
    """

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        self.model = model
        self.blocks = {path: stack.name for stack in anatomy.stacks for path in stack.blocks}
        self.both = bool(getattr(model.config, "is_encoder_decoder", False))

    def run(self, batch: Batch) -> Outputs:
        """One forward."""
        found = Outputs({path: [] for path in self.blocks})
        with _recorded(self.model, found.hidden):
            output = self.model(**on(self.model.device, batch))
        found.logits = {
            name: value
            for name, value in output.items()
            if isinstance(value, Tensor) and name.endswith("logits")
        }
        return found

    def pairs(
        self, own: Outputs, other: Outputs, batch: Batch
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """The states of two forwards by block, (N, d) in fp32, of the real tokens alone.

        Raises:
            ValueError: their shapes differ.
        """
        for path, tensors in own.hidden.items():
            decoder = self.both and self.blocks[path] == "decoder"
            for mine, theirs in zip(tensors, other.hidden[path], strict=True):
                mask = real(batch, mine, decoder=decoder)
                yield path, _rows(mine, mask), _rows(without_prompt(theirs, mine), mask)

    def logit_pairs(
        self, own: Outputs, other: Outputs, batch: Batch
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The logits of two forwards, (N, classes) in fp32, of the real tokens alone."""
        for name in own.logits.keys() & other.logits.keys():
            mine, theirs = own.logits[name], other.logits[name]
            mask = real(batch, mine, decoder=self.both)
            yield _rows(mine, mask), _rows(theirs, mask)


def without_prompt(states: Tensor, like: Tensor) -> Tensor:
    """The last tokens of ``states`` (B, P + T, d), as many as ``like`` (B, T, d) has.

    Raises:
        ValueError: the shapes differ in another way.
    """
    if states.shape == like.shape:
        return states
    if states.dim() == like.dim() == 3 and states.shape[1] > like.shape[1]:
        return states[:, -like.shape[1] :]
    raise ValueError(
        f"the hidden states of the plan have the shape {tuple(states.shape)}, and those of the base"
        f" {tuple(like.shape)}: they cannot be matched"
    )


def _rows(values: Tensor, mask: Tensor | None) -> Tensor:
    chosen = values if mask is None else values[mask]
    return chosen.float().reshape(-1, values.shape[-1])


@contextmanager
def _recorded(model: nn.Module, into: dict[str, list[Tensor]]) -> Iterator[None]:
    def record(path: str) -> Any:
        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            into[path].append(output[0] if isinstance(output, tuple) else output)

        return keep

    handles = [model.get_submodule(p).register_forward_hook(record(p)) for p in into]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Changes:
    """How much a plan changes the hidden states of its base: the unit of all errors.

    Attributes:
        squares: mean square of the change by block.
    """

    squares: dict[str, float]

    @classmethod
    @torch.no_grad()
    def of(cls, base: Watched, plan: Watched, batches: Iterable[Batch]) -> Changes:
        """Measure them on ``batches``."""
        changed = dict.fromkeys(base.blocks, 0.0)
        power = dict.fromkeys(base.blocks, 0.0)
        count = dict.fromkeys(base.blocks, 0)
        for batch in batches:
            for path, x, y in base.pairs(base.run(batch), plan.run(batch), batch):
                changed[path] += float((x - y).square().sum())
                power[path] += float(y.square().sum())
                count[path] += y.numel()
        return cls(
            {
                path: max(changed[path], SMALLEST * power[path]) / max(count[path], 1) or 1.0
                for path in changed
            }
        )


def mismatch(
    student: Watched, own: Outputs, target: Outputs, *, batch: Batch, changes: Changes
) -> tuple[Tensor, Tensor]:
    """The two losses of a distilled model: of its hidden states, and of its logits.

    The first is the mean over the blocks of the squared error, as a share of the change that the
    plan makes: 1 for the base without the plan. The second is the divergence KL(target || own), or
    the squared error where there is a single logit.

    Returns:
        () and ().
    """
    errors = [
        (x - y).square().mean() / changes.squares[path]
        for path, x, y in student.pairs(own, target, batch)
    ]
    parts = [
        F.mse_loss(x, y)
        if x.shape[-1] == 1
        else F.kl_div(x.log_softmax(-1), y.log_softmax(-1), log_target=True, reduction="batchmean")
        for x, y in student.logit_pairs(own, target, batch)
    ]
    zero = errors[0].new_zeros(())
    return torch.stack(errors).mean(), torch.stack(parts).sum() if parts else zero
