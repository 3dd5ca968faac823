"""Values that forwards without gradients use again: of unchanged weights, and of one mask."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lightning_pelt.anatomy.attention_mask import once
from lightning_pelt.methods.current import recording
from lightning_pelt.methods.submodule import Submodule

_address, _version, _numbers = Tensor.data_ptr, attrgetter("_version"), Tensor.tolist

T = TypeVar("T")
Self = TypeVar("Self", bound="KeepingModule")
SAMPLES = 16  # of each weight


class _Found(NamedTuple):
    """A value, and what shows that its weights are still the same.

    Attributes:
        state: the addresses of the weights, and how often they have changed.
        views: samples of the weights, as views: as long as they live, no other weight gets such an
            address.
        samples: their numbers.
    """

    state: tuple[Hashable, ...]
    views: list[Tensor]
    samples: list[list[Any]]
    value: Any


class Kept(Generic[T]):
    """A value computed from weights, which forwards on a CPU without gradients compute once.

    It is computed again when a weight is another tensor, has moved, or has changed in place: after
    ``load_state_dict``, an optimizer step, ``.to()``. Changes through ``.data``, as averages of
    weights make them, are not counted by torch: samples of every weight show them, and
    :class:`KeepingModule` forgets the value whenever the model enters the train or eval mode.

    It is computed every time with gradients, in code that is compiled or recorded, on other
    devices, which would have to wait for the samples, and from weights whose changes are not
    counted: inference tensors, and tensor subclasses such as the shards of FSDP2.

    Copies and pickles are empty.

    Example:
        >>> kept, weight = Kept(), nn.Parameter(torch.ones(2))
        >>> with torch.no_grad():
        ...     first = kept.of([weight], lambda: 2 * weight)
        ...     kept.of([weight], lambda: 2 * weight) is first
        True
    """

    def __init__(self) -> None:
        self._found: _Found | None = None

    def of(
        self, weights: Sequence[Tensor], compute: Callable[[], T], *, also: Hashable = None
    ) -> T:
        """``compute()``, or its last value if ``weights`` and ``also`` are still the same."""
        if recording():
            return compute()
        if torch.is_grad_enabled():
            self._found = None
            return compute()
        try:
            state = (also, *map(_address, weights), *map(_version, weights))
        except RuntimeError:  # inference tensors have no counter, those within vmap no address
            return compute()
        found = self._found
        same = found is not None and found.state == state
        if same and [*map(_numbers, found.views)] == found.samples:  # type: ignore[union-attr]
            return found.value  # type: ignore[union-attr]
        value = compute()
        self._found = _found(state, weights, value)
        return value

    def forget(self) -> None:
        self._found = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()


class KeepingModule(nn.Module):
    """A module with a value computed from its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Kept[Any] = Kept()

    def train(self: Self, mode: bool = True) -> Self:
        self.kept.forget()
        return super().train(mode)


def forget(modules: Iterable[nn.Module]) -> None:
    """Forget the values of all modules at and below ``modules``."""
    for module in modules:
        for inner in module.modules():
            if isinstance(inner, KeepingModule):
                inner.kept.forget()


class KeepingSubmodule(KeepingModule, Submodule):
    """A submodule with a value computed from its weights."""


def _found(state: tuple[Hashable, ...], weights: Sequence[Tensor], value: Any) -> _Found | None:
    """What is kept; None if changes of ``weights`` cannot be noticed."""
    plain = all(type(weight) in (nn.Parameter, Tensor) and weight.is_cpu for weight in weights)
    # The shards of DeepSpeed have no address.
    if not weights or not plain or 0 in map(_address, weights):
        return None
    views = [_sample(weight.detach()) for weight in weights]
    return _Found(state, views, [view.tolist() for view in views], value)


def _sample(weight: Tensor) -> Tensor:
    """A view of up to :data:`SAMPLES` values, or of four in each dimension."""
    if weight.is_contiguous():
        return weight.view(-1)[:: weight.numel() // SAMPLES + 1]
    return weight[tuple(slice(None, None, size // 4 + 1) for size in weight.shape)]


class _Shared:
    """A value computed from a mask in inference mode, and who has asked for it."""

    def __init__(self, version: int, value: Any) -> None:
        self.version, self.value = version, value
        self.askers: set[int] = set()


def of_mask(mask: Any, key: Hashable, compute: Callable[[], T], *, asker: object) -> T:
    """``compute()``, once for all blocks that a model passes ``mask`` to.

    In inference mode :func:`~lightning_pelt.anatomy.attention_mask.once` computes every time, since
    inference tensors do not count their changes. Here, a value serves every ``asker`` once: one
    that asks again belongs to another forward, for which the mask may have been changed in place.
    """
    if recording() or not torch.is_inference_mode_enabled():
        return once(mask, key, compute)
    tensor = isinstance(mask, Tensor)
    if tensor and mask.is_cuda and torch.cuda.is_current_stream_capturing():
        return compute()
    version = mask._version if tensor and not mask.is_inference() else 0
    cache: dict[Hashable, _Shared] = vars(mask).setdefault("pelt_inference_cache", {})
    found = cache.get(key)
    if found is None or found.version != version or id(asker) in found.askers:
        found = cache[key] = _Shared(version, compute())
    found.askers.add(id(asker))
    return found.value
