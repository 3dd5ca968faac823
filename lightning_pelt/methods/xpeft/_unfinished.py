"""Forwards that wait for their backward pass, in which activation checkpointing repeats blocks."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor


class Unfinished:
    """The profiles of every forward whose graph is alive and has had no backward pass.

    A repeated block reads the profiles of the last forward. Copies and pickles are empty.
    """

    def __init__(self) -> None:
        self._forwards: WeakSet[_Forward] = WeakSet()

    def add(self, masks: Tensor, inverse: Tensor) -> None:
        """Add a forward, by the masks (U, L, 2, N) that its graph contains, and its rows (B,)."""
        if torch.compiler.is_compiling() or not masks.requires_grad:
            return
        forward = _Forward(masks.detach(), inverse)
        masks.register_hook(forward.finish)  # lives as long as the graph
        self._forwards.add(forward)

    def check(self) -> None:
        """Check a repeated block.

        Raises:
            RuntimeError: it may belong to a forward with other profiles than the last.
        """
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            return
        waiting = [forward for forward in self._forwards if not forward.finished]
        if any(not each.equals(waiting[0]) for each in waiting[1:]):
            raise RuntimeError(
                f"{len(waiting)} forwards with different profiles wait for their backward pass, in "
                "which activation checkpointing would repeat them all with the profiles of the "
                "last: run backward after every forward, put all rows into one batch, or turn "
                "checkpointing off"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return Unfinished, ()


class _Forward:
    def __init__(self, masks: Tensor, inverse: Tensor) -> None:
        self.masks, self.inverse, self.finished = masks, inverse, False

    def finish(self, gradient: Tensor) -> None:
        self.finished = True

    def equals(self, other: _Forward) -> bool:
        return torch.equal(self.masks, other.masks) and torch.equal(self.inverse, other.inverse)
