"""Padding: which tokens of a block are real and belong together, for the gates that pool."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache

from lightning_pelt.anatomy import MaskArgument
from lightning_pelt.anatomy.attention_mask import first_of_each, real_tokens
from lightning_pelt.methods._kept import of_mask
from lightning_pelt.methods.current import Current, recording
from lightning_pelt.methods.submodule import Removable


class Padding:
    """The mask and batch size of one attention, for the gates that pool in its block.

    They are read from the arguments of the attention module. Activation checkpointing repeats that
    call, so that a recomputed gate sees the same mask.

    Args:
        where: the argument that carries the mask.
        packs: whether the rows may hold several examples, as those of decoders may.
    """

    def __init__(self, where: MaskArgument, *, packs: bool = False) -> None:
        self.where, self.packs = where, packs
        self.given: Current[Given] = Current(f"the attention mask of {where.path or 'the model'}")

    def install(self, model: nn.Module) -> list[Removable]:
        host = model.get_submodule(self.where.path)
        return [host.register_forward_pre_hook(self._keep, with_kwargs=True)]

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        given = args[self.where.position] if len(args) > self.where.position else None
        mask = kwargs.get(self.where.name, given)
        batch = (args[0] if args else next(iter(kwargs.values()))).shape[0]
        cache = _cache(chain(args, kwargs.values()))
        past = None if cache is None else _past(module, cache, mask)
        positions = kwargs.get("position_ids")
        self.given.set(Given(mask, batch, cache is not None, past, positions))

    def weights(self, tokens: int) -> tuple[Tensor, Tensor] | None:
        """1 for every real one of ``tokens``, (B, tokens, 1), and their count, (B, 1, 1).

        None when nothing is padded.

        Raises:
            ValueError: the mask has a shape that cannot be read.
        """
        mask, batch, cached, past, _ = self.given.get()
        if mask is None:
            return None

        def count() -> tuple[Tensor, Tensor]:
            real = real_tokens(mask, batch, tokens, cached=cached, past=past)
            weights = real[..., None].float()
            return weights, weights.sum(1, keepdim=True).clamp(min=1)

        if past is not None:
            return count()
        return of_mask(mask, ("weights", batch, tokens), count, asker=self)

    def examples(self, tokens: int) -> Examples | None:
        """Which of ``tokens`` belong to one example of a packed row; None if a row is one example.

        Compiled code has examples for every row of a decoder with a mask, since it cannot look.

        Raises:
            ValueError: the mask has a shape that cannot be read.
        """
        mask, batch, cached, _, positions = self.given.get()
        at = positions if mask is None else mask
        if not self.packs or cached or at is None:
            return None

        def find() -> tuple[Examples | None, Any]:
            kept = None if mask is None else positions  # as long as it lives, its id is its own
            return _examples(mask, positions, batch, tokens), kept

        key = ("examples", batch, tokens, id(positions))
        return of_mask(at, key, find, asker=self)[0]


class Given(NamedTuple):
    """What an attention module was given: the mask, and the number of rows.

    Attributes:
        cached: whether there is a cache.
        past: number of tokens in it, (), where the mask also has columns for tokens to come.
        positions: of the tokens, if the attention is given them.
    """

    mask: Any
    batch: int
    cached: bool = False
    past: Tensor | None = None
    positions: Any = None


class Examples(NamedTuple):
    """The examples of packed rows.

    Attributes:
        numbers: of each token's example among those of the batch, (B T,).
        real: 1 for every real token, (B, T, 1).
    """

    numbers: Tensor
    real: Tensor

    def mean(self, values: Tensor, *, masked: bool) -> Tensor:
        """values (B, T, n) -> of each token, the mean over its example, (B, T, n).

        Args:
            masked: whether only real tokens count.
        """
        weights = self.real if masked else torch.ones_like(self.real)
        weighted = torch.cat([values * weights, weights], -1).flatten(0, 1)
        # In contrast to `scatter_add`, deterministic on a GPU where torch is asked to be so.
        sums = torch.zeros_like(weighted).index_add(0, self.numbers, weighted)
        means = sums[:, :-1] / sums[:, -1:].clamp(min=1)
        return means.index_select(0, self.numbers).view_as(values)


def _examples(mask: Any, positions: Any, rows: int, tokens: int) -> Examples | None:
    starts = first_of_each(mask, positions, rows, tokens)
    if starts is None:
        return None
    real = torch.ones_like(starts) if mask is None else real_tokens(mask, rows, tokens)
    # Padding in front of or behind the only example of a row is no example.
    begins = F.pad(starts[:, 1:] & real[:, 1:] & real[:, :-1], (1, 0))
    if _is_readable(begins) and not begins.any():
        return None
    rank = torch.arange(rows, device=begins.device)[:, None]
    numbers = begins.cumsum(1) + rank * tokens
    return Examples(numbers.flatten(), real.expand(rows, -1)[..., None].float())


def _is_readable(tensor: Tensor) -> bool:
    """Whether Python may branch on ``tensor``."""
    if recording() or tensor.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def _cache(given: Iterable[Any]) -> Cache | None:
    for each in given:
        if each is not None and type(each) is not Tensor and isinstance(each, Cache):
            return each
    return None


def _past(module: nn.Module, cache: Cache, mask: Any) -> Tensor | None:
    """Number of tokens in a cache of fixed length, before those of this call; None for others."""
    if not isinstance(mask, Tensor) or not cache.is_compileable:
        return None
    length = cache.get_seq_length(getattr(module, "layer_idx", 0))
    return torch.as_tensor(length, device=mask.device).clone()  # the cache counts in place
