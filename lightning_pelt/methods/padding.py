"""Padding: which tokens of a block are real, for the gates that pool over them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache

from lightning_pelt.anatomy import MaskArgument
from lightning_pelt.anatomy.attention_mask import real_tokens
from lightning_pelt.methods._kept import of_mask
from lightning_pelt.methods.current import Current
from lightning_pelt.methods.submodule import Removable


class Padding:
    """The mask and batch size of one attention, for the gates that pool in its block.

    They are read from the arguments of the attention module. Activation checkpointing repeats that
    call, so that a recomputed gate sees the same mask.
    """

    def __init__(self, where: MaskArgument) -> None:
        self.where = where
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
        self.given.set(Given(mask, batch, cache is not None, past))

    def weights(self, tokens: int) -> tuple[Tensor, Tensor] | None:
        """1 for every real one of ``tokens``, (B, tokens, 1), and their count, (B, 1, 1).

        None when nothing is padded.

        Raises:
            ValueError: the mask has a shape that cannot be read.
        """
        mask, batch, cached, past = self.given.get()
        if mask is None:
            return None

        def count() -> tuple[Tensor, Tensor]:
            real = real_tokens(mask, batch, tokens, cached=cached, past=past)
            weights = real[..., None].float()
            return weights, weights.sum(1, keepdim=True).clamp(min=1)

        if past is not None:
            return count()
        return of_mask(mask, ("weights", batch, tokens), count, asker=self)


class Given(NamedTuple):
    """What an attention module was given: the mask, and the number of rows.

    Attributes:
        cached: whether there is a cache.
        past: number of tokens in it, (), where the mask also has columns for tokens to come.
    """

    mask: Any
    batch: int
    cached: bool = False
    past: Tensor | None = None


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
