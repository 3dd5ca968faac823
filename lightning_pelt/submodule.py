"""What a built piece is: a child of the module it extends, acting through its own bound hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn


class Removable(Protocol):
    """What undoes one change to the model, such as torch's handle of a hook."""

    def remove(self) -> None: ...


class Submodule(nn.Module, ABC):
    """A small module that lives as a child of the module it extends and acts through hooks.

    The hooks are bound methods of the submodule itself, never closures, so that a model with
    submodules can be deep-copied, pickled (``ddp_spawn``), compiled and checkpointed.

    Attributes named in ``transient`` hold tensors of the forward in flight. They belong to an
    autograd graph and are left behind when the module is copied or pickled.
    """

    transient: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def install(self, model: nn.Module) -> list[Removable]:
        """Register this submodule's hooks on the modules of ``model`` that it extends."""

    def folded_state(self) -> dict[str, Tensor] | None:
        """Its tensors once training is over, where they are others; {} if it vanishes."""
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {k: None if k in self.transient else v for k, v in self.__dict__.items()}


class Channels(nn.Module):
    """The place of one site in the output of a fused projection, such as GPT-2's ``c_attn``.

    Args:
        channels: of the output that are the site's; None is all of them.
    """

    rows: Tensor | None

    def __init__(self, channels: Sequence[int] | None) -> None:
        super().__init__()
        # A buffer, so that it moves with the model once and not in every forward.
        rows = None if channels is None else torch.tensor(channels)
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, values: Tensor, width: int) -> Tensor:
        """values (d, ...) -> (width, ...), zeros where other sites are."""
        if self.rows is None:
            return values
        return values.new_zeros(width, *values.shape[1:]).index_copy(0, self.rows, values)


def first(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``change`` to a module's output, or to the first element of its output tuple."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    return change(output)


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], name: int | str) -> Tensor:
    """Positional or keyword argument ``name`` of a module's call."""
    return args[name] if isinstance(name, int) else kwargs[name]


def meet(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` in the dtype of ``weight``, to be multiplied with it; autocast needs no help."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)


def add_product(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``out + left @ right`` in one pass and in ``out``'s dtype.

    Shapes: out (..., n), left (..., k), right (k, n) -> (..., n).
    """
    flat = torch.addmm(
        out.reshape(-1, out.shape[-1]),
        left.to(out.dtype).reshape(-1, left.shape[-1]),
        # In rows: as a view of a (n, k) weight, both products of the backward would be of a shape
        # with a k of 8 at its end, which on a CPU takes three to five times as long.
        right.to(out.dtype).contiguous(),
    )
    return flat.view(out.shape).to(out.dtype)


def refuse_reentrant(tensor: Tensor, what: str, *, instead: str = "") -> None:
    """Raise where ``tensor``, made once per forward, meets reentrant activation checkpointing.

    Raises:
        RuntimeError: a block runs without gradients now and will be replayed with them.
    """
    if tensor.requires_grad and not torch.is_grad_enabled():
        raise RuntimeError(
            f"reentrant activation checkpointing walks the graph of the shared {what} once per "
            f"block, which fails: use use_reentrant=False{instead}"
        )
