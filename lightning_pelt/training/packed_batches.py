"""Refuses packed rows that the model would take for one text, before it trains on them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_pelt.anatomy import base_of
from lightning_pelt.attach import Attachment
from lightning_pelt.attach.packing import packing_fault


class PackedBatches:
    """Checks the packed batches of a run: those with ``position_ids`` and no ``attention_mask``.

    At the first of them, the model runs on a few tokens, see
    :func:`lightning_pelt.attach.packing.packing_fault`. All processes of a run get such batches, or
    none does, so that a sharded model can take part.

    Example:
        >>> from lightning_pelt import LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_llama
        >>> attachment = attach(tiny_llama(), Plan.uniform(LoRA()))
        >>> batch = {"input_ids": torch.ones(1, 4), "position_ids": torch.tensor([[0, 1, 0, 1]])}
        >>> PackedBatches().check(batch, attachment)
        >>> PackedBatches().check({**batch, "attention_mask": torch.ones(1, 4)}, attachment)
        Traceback (most recent call last):
        ...
        ValueError: a batch has position_ids that start again within a row, ...
    """

    def __init__(self) -> None:
        self._faults: dict[bool, str | None] = {}  # by whether a batch has several rows

    def check(self, batch: Any, attachment: Attachment) -> None:
        """Check a batch before its forward.

        Raises:
            ValueError: the model does not keep the examples of packed rows apart, or the batch has
                an ``attention_mask``, with which no model does.
        """
        if isinstance(batch, Mapping) and isinstance(batch.get("position_ids"), Tensor):
            self._check(batch, attachment)

    @torch.compiler.disable
    def _check(self, batch: Mapping[str, Any], attachment: Attachment) -> None:
        positions, mask = batch["position_ids"], batch.get("attention_mask")
        if positions.dim() != 2:
            return
        if mask is not None:
            if mask.dim() == 2 and mask.shape == positions.shape and _restarts(positions, mask):
                raise ValueError(
                    "a batch has position_ids that start again within a row, as packed rows have, "
                    "and an attention_mask, with which transformers takes each row for one text: "
                    "leave the attention_mask out"
                )
            return
        several = len(positions) > 1
        if several not in self._faults:
            self._faults[several] = packing_fault(attachment, rows=len(positions))
        problem = self._faults[several]
        if problem is not None and _restarts(positions):
            raise ValueError(problem)


class PackedGuard(PackedBatches):
    """Checks the inputs of a model in a fit with a module and data of any kind.

    The module may build its batches itself, so they are checked where they reach the model. They
    are then computed without a cache: transformers does not look for packed examples with one, and
    models make one by default, also in training.
    """

    def __init__(self) -> None:
        super().__init__()
        self._attachment: Attachment | None = None
        self._handles: list[RemovableHandle] = []
        self._names: dict[nn.Module, list[str]] = {}  # arguments of each forward, in order

    def start(self, attachment: Attachment) -> None:
        """Check every input of the model, or of its body where that is called, from now on."""
        self.stop()
        self._faults.clear()
        self._attachment = attachment
        for module in (attachment.model, base_of(attachment.model)):
            self._names[module] = [*inspect.signature(module.forward).parameters]
        self._handles = [
            module.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True)
            for module in self._names
        ]

    def stop(self) -> None:
        """Check no more inputs."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._names, self._attachment = [], {}, None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._attachment is None or (len(args) < 2 and kwargs.get("position_ids") is None):
            return None
        names = self._names[module]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        packed = given.get("position_ids") is not None and given.get("attention_mask") is None
        attachment, self._attachment = self._attachment, None  # the check calls the model
        try:
            self.check(given, attachment)
        finally:
            self._attachment = attachment
        if not packed or given.get("past_key_values") is not None or "use_cache" not in names:
            return None
        if given.get("use_cache") is None:
            return args, {**kwargs, "use_cache": False}
        if given["use_cache"] and _restarts(given["position_ids"]):
            raise ValueError(
                "the model is called with packed rows and use_cache=True, and with a cache "
                "transformers takes each row for one text: call it with use_cache=False"
            )
        return None


def _restarts(positions: Tensor, mask: Tensor | None = None) -> bool:
    """Whether positions (B, T) do not go on from one token to the next, both of which are real."""
    breaks = positions.diff(dim=1) != 1
    if mask is not None:
        breaks = breaks & mask[:, 1:].bool() & mask[:, :-1].bool()
    return bool(breaks.any())
