"""Values of the current forward, which hooks of one module leave for hooks of another."""

from __future__ import annotations

import threading
from typing import Any, Generic, TypeVar

import torch
from torch._C import _get_tracing_state
from torch.autograd import forward_ad

T = TypeVar("T")
_NOTHING = (None, None)


class Current(Generic[T]):
    """A value of the current forward, separate for every thread.

    Threads that share a model each see the value that they have set. Activation checkpointing
    recomputes a block on one thread, which autograd chooses, so that values set inside of a block
    are right there too. Values that are set before the first block are not recomputed: another
    thread then reads the last value of any thread, if ``shared`` allows it.

    Compiled code keeps its values in the graph, and there this is an ordinary attribute. What
    ``torch.export`` leaves has no numbers, and only an export reads it.

    Copies and pickles are empty.

    Args:
        what: the value, for the message if there is none.
        shared: whether the value is set outside of what activation checkpointing recomputes.

    Example:
        >>> low: Current[int] = Current("the low-rank input")
        >>> low.set(3)
        >>> low.get()
        3
    """

    def __init__(self, what: str, *, shared: bool = False) -> None:
        self.what, self.shared = what, shared
        self._own = threading.local()
        self._last: T | None = None
        self._compiled = False
        self._exported: T | None = None

    def set(self, value: T) -> None:
        """Set the value of this thread's forward."""
        if torch.compiler.is_compiling():
            if exporting():
                self._exported = value
            else:
                self._last, self._compiled = value, True
            return
        self._own.found = value, _graph_task()
        self._last = value if self.shared else None
        if self._compiled:
            self._compiled = False
        if self._exported is not None:
            self._exported = None

    def peek(self) -> T | None:
        """The value of this thread's forward; None if there is none."""
        if torch.compiler.is_compiling():
            return self._exported if exporting() else self._last
        if self._compiled:
            return self._last
        value, task = getattr(self._own, "found", _NOTHING)
        if self.shared and _graph_task() not in (-1, task) and task != -1:
            return self._last  # autograd's thread, which may have a value of an earlier pass
        return value

    def get(self) -> T:
        """The value of this thread's forward.

        Raises:
            RuntimeError: this thread has not set it.
        """
        value = self.peek()
        if value is None:
            raise RuntimeError(
                f"{self.what} is missing: it is computed earlier in a forward of the model, on the "
                "same thread. Call the model, not a part of it"
            )
        return value

    def take(self) -> T:
        """The value of this thread's forward, which is then forgotten.

        Raises:
            RuntimeError: as :meth:`get`.
        """
        value = self.get()
        self.clear()
        return value

    def clear(self) -> None:
        """Forget the value of this thread."""
        if exporting():
            self._exported = None
            return
        if not torch.compiler.is_compiling():
            vars(self._own).clear()
        self._last = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (self.what, self.shared)


def _empty(what: str, shared: bool) -> Current:
    return Current(what, shared=shared)


def exporting() -> bool:
    """Whether Python runs on tensors without numbers, to record what ``torch.export`` returns.

    Such tensors must not stay in the model. Dynamo, which traces for ``torch.compile`` and for a
    strict export, sees False: it records attributes in its graph.
    """
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def recording() -> bool:
    """Whether operations are recorded for other inputs: compiled, exported, traced; or dual numbers
    carry derivatives. Python must then not read a tensor, nor branch on a size of 1."""
    return (
        torch.compiler.is_compiling()
        or _get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def _graph_task() -> int:
    """Number of the backward pass that this thread works on; -1 for none."""
    return torch._C._current_graph_task_id()
