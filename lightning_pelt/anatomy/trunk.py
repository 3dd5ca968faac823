"""The trunk: the embeddings and the lowest blocks of a model, which a forward can leave out.

A forward runs the blocks of the trunk, or gets the hidden states behind them. The first blocks then
return these states and compute nothing. The embeddings still run: masks and positions depend on
them, and they cost little beside a block.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from lightning_pelt.anatomy.calls import first_tensor
from lightning_pelt.anatomy.dummy_inputs import base_of
from lightning_pelt.anatomy.sites import Stack


class Trunk:
    """The part of a model below one of its blocks.

    Args:
        model: a model with one stack.
        stack: of the model.
        depth: number of blocks that belong to the trunk, at least 1.

    Example:
        >>> import torch
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> trunk = Trunk(model, examine(model).stacks[0], depth=1)
        >>> trunk.install()
        >>> inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
        >>> states = trunk.reach(inputs)
        >>> with trunk.standing_in(states):  # the first block is left out
        ...     logits = model(**inputs).logits
        >>> trunk.remove()
        >>> torch.equal(logits, model(**inputs).logits)
        True
    """

    def __init__(self, model: PreTrainedModel, stack: Stack, depth: int) -> None:
        self.base = base_of(model)
        self.blocks = [model.get_submodule(path) for path in stack.blocks[:depth]]
        self._here = _Here()
        self._stops = [
            _Stop(block, self._here, last=block is self.blocks[-1]) for block in self.blocks
        ]

    def install(self) -> None:
        """Let the blocks of the trunk give way to their output. They then cannot be compiled."""
        for stop in self._stops:
            stop.install()

    def remove(self) -> None:
        """Undo :meth:`install`."""
        for stop in self._stops:
            stop.remove()

    @property
    def reaching(self) -> bool:
        """Whether this thread runs the trunk alone."""
        return self._here.mode is REACH

    def reach(self, inputs: Mapping[str, Any]) -> Tensor:
        """Run the trunk alone.

        Args:
            inputs: keyword arguments of the base, see :func:`base_of`.

        Returns:
            The output of the last block of the trunk, (B, T, d).

        Raises:
            RuntimeError: the blocks of the trunk did not run, or one did not return hidden states.
        """
        with self._here.set(REACH):
            try:
                self.base(**inputs)
            except _Reached as reached:
                return reached.states
        raise RuntimeError("its first blocks do not run in a forward")

    def set(self, states: Tensor | None) -> None:
        """Let ``states`` stand in for the trunk in this thread's next forward; None for nothing."""
        self._here.mode = states

    @contextmanager
    def standing_in(self, states: Tensor) -> Iterator[None]:
        """:meth:`set` for the forwards of a ``with`` block."""
        with self._here.set(states):
            yield

    def parts(self, inputs: Mapping[str, Any]) -> Parts:
        """What belongs to the trunk, by a forward on ``inputs``."""
        began: dict[nn.Module, None] = {}
        ended: dict[nn.Module, None] = {}
        handles = []
        for module in self.base.modules():
            handles.append(module.register_forward_pre_hook(lambda m, _: began.setdefault(m)))
            handles.append(module.register_forward_hook(lambda m, *_: ended.setdefault(m)))
        try:
            self.reach(inputs)
        finally:
            for handle in handles:
                handle.remove()
        inside = [each for module in (*ended, *self.blocks) for each in module.modules()]
        whole = dict.fromkeys(inside)
        return Parts(tuple(whole), tuple(module for module in began if module not in whole))


class Parts(NamedTuple):
    """The modules of a trunk.

    Attributes:
        whole: its blocks and the embeddings, with the modules inside.
        partly: modules around the blocks, which have tensors themselves, such as the base.
    """

    whole: tuple[nn.Module, ...]
    partly: tuple[nn.Module, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All their parameters and buffers, by names that do not depend on what is around."""
        return {
            f"{number}.{name}": tensor
            for number, module in enumerate((*self.whole, *self.partly))
            for name, tensor in own_tensors(module).items()
        }


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module, not those of its children."""
    named = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def moves_in_training(module: nn.Module) -> bool:
    """Whether a module computes otherwise in train mode: by dropout, noise, or norms of batches.

    Example:
        >>> [moves_in_training(nn.Dropout(p)) for p in (0.0, 0.1)]
        [False, True]
    """
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, _NormBase):
        return True
    # Attentions keep the rate of a dropout that is no module, stacks that of dropped blocks, and
    # routers of experts that of their noise.
    rates = [v for n, v in vars(module).items() if any(part in n.lower() for part in RATES)]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


REACH = object()
RATES = ("drop", "jitter", "noise")  # in names of attributes


class _Reached(Exception):
    """Ends a forward behind the trunk."""

    def __init__(self, states: Tensor) -> None:
        super().__init__("the trunk has run")
        self.states = states


class _Here(threading.local):
    """What this thread's forward does: all (None), the trunk alone, or all but the trunk."""

    mode: Any = None

    @contextmanager
    def set(self, mode: Any) -> Iterator[None]:
        before, self.mode = self.mode, mode
        try:
            yield
        finally:
            self.mode = before


class _Stop:
    """Replaces the forward of a block of the trunk, and is inactive in copies of the block.

    A forward, since no hook can keep a module from running. Its hooks still run.
    """

    def __init__(self, block: nn.Module, here: _Here, *, last: bool) -> None:
        self.block, self.here, self.last = block, here, last
        self.own = block.__dict__.get("forward")
        self.further: int | None = None  # further values that the block returns in a tuple

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "here": None}

    def install(self) -> None:
        self.own = self.block.__dict__.get("forward")
        self.block.forward = self.forward

    def remove(self) -> None:
        if self.own is None:
            self.block.__dict__.pop("forward", None)
        else:
            self.block.forward = self.own

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        mode = None if self.here is None or torch.compiler.is_compiling() else self.here.mode
        if isinstance(mode, Tensor):
            return mode if self.further is None else (mode, *[None] * self.further)
        run = type(self.block).forward.__get__(self.block) if self.own is None else self.own
        output = run(*args, **kwargs)
        if mode is not REACH:
            return output
        states = first_tensor(output)
        if states is None or not isinstance(output, Tensor | tuple):
            raise RuntimeError(f"its blocks return {type(output).__name__}, not hidden states")
        # What stands behind the states, such as attention weights, is not read: a trial would tell.
        self.further = None if isinstance(output, Tensor) else len(output) - 1
        if self.last:
            raise _Reached(states)
        return output
