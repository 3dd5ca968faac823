"""The trunk of one model out of a store, which has its output for the examples seen before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import transformers
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_pelt.anatomy.example_rows import (
    Rows,
    argument_names,
    caches_by_default,
    chosen_rows,
    example_rows,
    named_inputs,
)
from lightning_pelt.anatomy.trunk import Trunk, moves_in_training
from lightning_pelt.attach.trunk import trunk_fault, try_trunk, untouched_blocks
from lightning_pelt.training.state_store import StateStore, described
from lightning_pelt.utils.adapter_format import digest_of
from lightning_pelt.utils.text import readable_bytes

if TYPE_CHECKING:
    from lightning_pelt.attach import Attachment

FORMAT = 1


@dataclass
class Counts:
    """Rows whose states were read, and rows whose states were computed."""

    read: int = 0
    computed: int = 0

    @property
    def share(self) -> float:
        """Share of the rows that were read."""
        return self.read / max(self.read + self.computed, 1)

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.read + other.read, self.computed + other.computed)


class _Waiting(NamedTuple):
    """A batch on which the model is to be tried."""

    inputs: dict[str, Any]
    rows: Rows
    autocast: str
    training: bool


class CachedTrunk:
    """A model whose forwards read the states of its trunk from a store, and compute what it lacks.

    The first batch runs as without a store. Then the model is tried, see :func:`try_trunk`, and
    the weights are hashed. The trunk has to be in eval mode, or to be free of dropout.

    Args:
        attachment: of the model.
        folder: of the stores.
        max_bytes: of the folder.
        padding: whether states of padding are kept too, and computed for each width of a batch.

    Attributes:
        counts: of the rows of this epoch in training.
        before: of those of earlier epochs.
        evaluated: of rows in validation, tests and prediction.
        off: why the model runs without a store; None if it does not, or has not been tried.
    """

    def __init__(
        self, attachment: Attachment, folder: Path, *, max_bytes: int, padding: bool = False
    ) -> None:
        self.attachment: Attachment | None = attachment
        self.folder, self.max_bytes = folder, max_bytes
        # Gates that average over padding read its states.
        self.padding = padding or any(g.layer.pool == "all" for g in attachment.gates.values())
        self.counts, self.before, self.evaluated = Counts(), Counts(), Counts()
        self.stores: dict[str, StateStore] = {}
        self._waiting: _Waiting | None = None
        self._tensors: dict[str, Tensor] = {}
        self._signature: list[tuple[int, int]] = []
        self._digest = ""
        self._moving: list[nn.Module] = []
        self._told_of_dropout = self._trying = self._flows = False
        self._unread = 0  # calls whose inputs do not tell their examples
        self._handles: list[Any] = []
        self.depth = untouched_blocks(attachment)
        self.off = trunk_fault(attachment, self.depth)
        if self.off is None:
            self._install()

    def __getstate__(self) -> dict[str, Any]:
        """Copies of the model run without a store."""
        return {"attachment": None, "_handles": []}

    def _install(self) -> None:
        assert self.attachment is not None
        self.trunk = Trunk(self.attachment.model, self.attachment.anatomy.stacks[0], self.depth)
        self.trunk.install()
        base = self.trunk.base
        self._names, self._caches = argument_names(base), caches_by_default(base)
        self._handles = [
            # First, since running the trunk alone repeats the other hooks of the base.
            base.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True),
            base.register_forward_hook(self._after, always_call=True),
        ]

    def remove(self) -> None:
        """Run the model as before, and close the stores."""
        if self._handles:
            self.trunk.set(None)
            self.trunk.remove()
        for handle in self._handles:
            handle.remove()
        for store in self.stores.values():
            store.close()
        self._handles, self.stores, self._waiting = [], {}, None

    def turn_off(self, reason: str) -> None:
        """Run the model without a store from now on, and say why."""
        self.remove()
        self.off = reason

    # In a forward.

    def _before(self, base: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if torch.compiler.is_compiling() or self.attachment is None or not self._serves:
            return None
        self.trunk.set(None)
        if self._moves():
            return None
        self.check_weights()
        inputs = named_inputs(self._names, args, kwargs)
        rows = example_rows(base, inputs, padding=self.padding)
        if rows is None:
            self._unread += 1
            return None
        kind = _autocast(self.attachment.model.device.type)
        store = self.stores.get(kind)
        if store is None:
            if self._waiting is None:
                self._waiting = _Waiting(_detached(inputs), rows, kind, torch.is_grad_enabled())
            return None
        states = self._states(store, inputs, rows, training=torch.is_grad_enabled())
        if states is None:
            return None
        if self._flows and torch.is_grad_enabled():
            states.requires_grad_(True)
        self.trunk.set(states)
        # A cache of keys and values would lack those of the trunk.
        return (args, {**kwargs, "use_cache": False}) if self._caches else None

    def _after(self, base: nn.Module, args: tuple, output: Any) -> None:
        if self._serves:
            self.trunk.set(None)

    @property
    def _serves(self) -> bool:
        """Whether a forward is one of the module's, of a model that is no copy."""
        return self.attachment is not None and not (self._trying or self.trunk.reaching)

    def _moves(self) -> bool:
        """Whether dropout or a norm of batches is active in the trunk, as in training."""
        return any(module.training for module in self._moving)

    def _states(
        self, store: StateStore, inputs: Mapping[str, Any], rows: Rows, *, training: bool
    ) -> Tensor | None:
        """The states (B, T, d) of the rows, with zeros for padding."""
        found = [store.get(digest) for digest in rows.digests]
        missing = [row for row, states in enumerate(found) if states is None]
        counts = self.counts if training else self.evaluated
        counts.read += len(found) - len(missing)
        counts.computed += len(missing)
        device = self.trunk_device
        if missing:
            with torch.no_grad():
                new = self.trunk.reach(chosen_rows(inputs, missing, len(found)))
            device = new.device
            for row, states in zip(missing, new.detach().cpu(), strict=True):
                kept = rows.kept[row]
                found[row] = states if kept is None else states[torch.from_numpy(kept)]
                store.put(rows.digests[row], found[row])  # type: ignore[arg-type]
        return _padded(found, rows, device)  # type: ignore[arg-type]

    @property
    def trunk_device(self) -> torch.device:
        """The device of the weights of the trunk."""
        return next(iter(self._tensors.values())).device

    # Between forwards.

    def settle(self) -> None:
        """Try the model on the batch that the last forward had, and open a store."""
        if self._waiting is None or self.attachment is None:
            return
        (inputs, rows, kind, training), self._waiting = self._waiting, None
        self._trying = True
        try:
            with _autocasting(self.attachment.model.device.type, kind):
                tried = try_trunk(self.attachment, self.trunk, inputs, rows)
        finally:
            self._trying = False
        if tried.fault is not None:
            self.turn_off(tried.fault)
            return
        modules = (*tried.parts.whole, *tried.parts.partly)
        self._moving = [module for module in modules if moves_in_training(module)]
        self._tensors, self._flows = tried.parts.tensors, tried.flows
        if not self._digest:
            self._hash()
        self._open(kind, tried.dtype)
        if not self._moves():  # the store has this batch too
            with _autocasting(self.attachment.model.device.type, kind), torch.no_grad():
                self._states(self.stores[kind], inputs, rows, training=training)

    def tell_of_dropout(self) -> None:
        """Say once that training runs without the store, if dropout is active in the trunk."""
        if self.stores and self._moves() and not self._told_of_dropout:
            self._told_of_dropout = True
            module = next(module for module in self._moving if module.training)
            rank_zero_warn(
                "the trunk cache is off in training, since the frozen blocks below the plan run in "
                f"train mode, where {type(module).__name__} changes with every step: set "
                "base_dropout=False. Validation and tests use it"
            )

    def refuse_unread(self) -> None:
        """Turn off if no call has shown which examples it had."""
        if self._unread and self.off is None and not self.stores and self._waiting is None:
            self.turn_off(
                f"{type(self.trunk.base).__name__} is called without tokens or pixels, such as "
                "with inputs_embeds, or for the states of all blocks, or with a cache of keys and "
                "values, so that examples are not known"
            )

    def check_weights(self) -> None:
        """Leave the states of other weights, if those of the trunk have changed."""
        if not self.stores or self._signature == _signature(self._tensors):
            return
        before = self._digest
        self._hash()
        if self._digest == before:
            return
        rank_zero_warn(
            "the weights below the plan have changed since the trunk cache was filled, so that it "
            "starts again"
        )
        for kind, store in list(self.stores.items()):
            store.close()
            self._open(kind, getattr(torch, store.key["dtype"]))

    def share(self) -> None:
        """Write what this process has computed, for the others."""
        for store in self.stores.values():
            store.flush()

    def refresh(self) -> None:
        """Find what other processes have computed."""
        for store in self.stores.values():
            store.refresh()

    def _hash(self) -> None:
        self._signature = _signature(self._tensors)
        self._digest = digest_of(self._tensors)

    def _open(self, kind: str, dtype: torch.dtype) -> None:
        assert self.attachment is not None
        model = self.attachment.model
        key = {
            "format": FORMAT,
            "weights": self._digest,
            "config": self.attachment.fingerprint["config"],
            "model": type(self.trunk.base).__name__,
            "block": self.depth,
            "dtype": str(dtype).removeprefix("torch."),
            "autocast": kind,
            "device": model.device.type,
            "products": torch.get_float32_matmul_precision(),
            "attention": getattr(model.config, "_attn_implementation", None),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        store = StateStore(self.folder, key, max_bytes=self.max_bytes)
        self.stores[kind] = store
        total = len(self.attachment.anatomy.stacks[0].blocks)
        dropped = f"; {readable_bytes(store.dropped)} of other weights deleted"
        rank_zero_info(
            f"Trunk cache: {self.depth} of {total} blocks are below the plan. {described(store)}"
            f"{dropped if store.dropped else ''}"
        )


def _padded(found: list[Tensor], rows: Rows, device: torch.device) -> Tensor | None:
    """(n, d) of each row -> (B, T, d) on ``device``; None if rows without a mask differ in n."""
    tokens = len(found[0]) if rows.tokens is None else rows.tokens
    states = found[0].new_zeros(len(found), tokens, found[0].shape[1])
    for own, row, kept in zip(states, found, rows.kept, strict=True):
        if kept is None:
            if len(row) != tokens:
                return None
            own.copy_(row)
        elif kept[-1] + 1 - kept[0] == len(kept):
            own[kept[0] : kept[-1] + 1] = row
        else:
            own[torch.from_numpy(np.ascontiguousarray(kept))] = row
    return states.to(device)


def _signature(tensors: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors.values()]


def _detached(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {n: v.detach() if isinstance(v, Tensor) else v for n, v in inputs.items()}


def _autocast(device: str) -> str:
    """The dtype in which operations run; empty without autocast."""
    if not torch.is_autocast_enabled(device):
        return ""
    return str(torch.get_autocast_dtype(device)).removeprefix("torch.")


def _autocasting(device: str, kind: str) -> Any:
    if not kind:
        return torch.autocast(device, enabled=False)
    return torch.autocast(device, dtype=getattr(torch, kind))
