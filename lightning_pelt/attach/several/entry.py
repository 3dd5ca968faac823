"""One named adapter: its attachment, and what puts it on the model and moves it with it."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_pelt.attach.attachment import Attachment
from lightning_pelt.attach.freezing import named_tensors
from lightning_pelt.attach.several.changes import ABSENT, TABLES, TENSORS, Change, Snapshot
from lightning_pelt.attach.state_dict_hooks import Matching
from lightning_pelt.methods.gate import GateLayer
from lightning_pelt.methods.submodule import Submodule


class Kind(NamedTuple):
    """Where a tensor is, and how: what a parked tensor has to follow."""

    type: type
    device: torch.device
    dtype: torch.dtype


class Anchor(NamedTuple):
    """A frozen parameter by its place."""

    module: nn.Module
    name: str


class Entry:
    """A named adapter.

    Attributes:
        attachment: its record.
        changes: what puts it on the model.
        places: the modules and keys of the tensors of the model of which it has its own.
        modules: submodules and gate layers.
        anchors: for each module that has a change, a frozen parameter that shows where it is.
        seen: the kinds of the anchors when the adapter was last put on or taken off.
    """

    def __init__(self, attachment: Attachment, changes: list[Change]) -> None:
        self.attachment, self.changes = attachment, changes
        self.modules: list[Submodule] = [*attachment.all_submodules, *self.gate_layers]
        self._learn_places()
        self.anchors = _anchors(attachment.model, changes)
        self.distinct = list(dict.fromkeys(self.anchors.values()))
        self.seen = self._kinds()

    def _learn_places(self) -> None:
        self.places = {(change.module, change.key) for change in self.slots}

    @classmethod
    def capture(cls, before: Snapshot, attachment: Attachment) -> Entry:
        """The entry of a plan that was attached after ``before``, with tensors of its own."""
        changes = before.changes()
        return cls(attachment, changes + before.own_copies(attachment.frozen.saved))

    @property
    def slots(self) -> list[Change]:
        """The changes that exchange tensors of the model itself, such as those of the head."""
        return [change for change in self.changes if change.table in TENSORS]

    @property
    def layers(self) -> list[Change]:
        """The changes that exchange layers of the model, of a head with other labels."""
        children = [change for change in self.changes if change.table == "_modules"]
        return [c for c in children if c.off is not ABSENT and isinstance(c.on, nn.Module)]

    @property
    def gate_layers(self) -> list[GateLayer]:
        """The layers of the gates, in network order."""
        return list(dict.fromkeys(view.layer for view in self.attachment.gates.values()))

    def put_on(self) -> None:
        """Put the adapter on its bare model.

        Raises:
            ValueError: the model has been sharded since. The model is then as it was.
        """
        kinds = self._kinds()
        if kinds != self.seen:
            self._follow(self.seen, kinds, on=True)
        for change in self.changes:
            change.put_on()
        self.seen = kinds
        training = self.attachment.model.training
        for module in self.modules:
            if module.training != training:
                module.train(training)

    def take_off(self) -> None:
        """Take the adapter off; the model is then as without it."""
        kinds = self._kinds()
        if kinds != self.seen:
            self._follow(self.seen, kinds, on=False)
        for change in reversed(self.changes):
            change.take_off()
        self.seen = kinds

    def share(self) -> None:
        """Give the adapter its own copies of what loading has changed in the base.

        A file may hold tensors of the base that its run has trained.
        """
        frozen, model = self.attachment.frozen, self.attachment.model
        own = frozen.values_before.keys() & self.attachment.base
        if not own:
            return
        made = Snapshot(model).own_copies(own)
        names = {id(tensor): name for name, tensor in named_tensors(model).items()}
        with torch.no_grad():
            for change in made:
                change.off.copy_(frozen.values_before[names[id(change.on)]])
        self.changes += made
        self._learn_places()

    def copied(self) -> Entry:
        """An independent adapter with the same weights, for the same model. It is off the model."""
        model = self.attachment.model
        memo: dict[int, Any] = {}
        for module in model.modules():
            tables = [module.__dict__[name] for name in TABLES]
            tensors = [*module._parameters.values(), *module._buffers.values()]
            memo |= {id(shared): shared for shared in (module, *tables, *tensors)}
        attachment = self.attachment
        record = (attachment.plan, attachment.anatomy, attachment.recorded, attachment.base)
        outside = [change for change in attachment.undo if isinstance(change, Matching)]
        rest = (attachment.frozen.samples, attachment.surroundings, *outside)
        memo |= {id(shared): shared for shared in (*record, *rest)}
        memo |= {id(self.anchors): self.anchors, id(self.distinct): self.distinct}
        twin = copy.deepcopy(self, memo)
        twin.attachment.surroundings = None
        twin.attachment.undo = [c for c in twin.attachment.undo if not isinstance(c, Matching)]
        return twin

    def _kinds(self) -> list[Kind]:
        tensors: list[Any] = [module._parameters[name] for module, name in self.distinct]
        return [Kind(type(tensor), tensor.device, tensor.dtype) for tensor in tensors]

    def _follow(self, before: list[Kind], now: list[Kind], *, on: bool) -> None:
        """Move what is parked as the base has been moved and converted since."""
        for old, new in zip(before, now, strict=True):
            if old.type is not new.type:
                raise ValueError(
                    f"the model's parameters were {old.type.__name__} and are {new.type.__name__}: "
                    "it has been sharded since. Activate an adapter before the model is sharded"
                )
        moves = dict(zip(self.distinct, zip(before, now, strict=True), strict=True))
        for change in self.changes:
            value = change.on if on else change.off
            if change.module not in self.anchors or value is ABSENT or value is None:
                continue
            old, new = moves[self.anchors[change.module]]
            dtype = new.dtype if new.dtype != old.dtype and new.dtype.is_floating_point else None
            if change.table == "_modules":
                value.to(device=new.device, dtype=dtype)
            elif change.table in TENSORS:
                moved = _moved(value, new.device, dtype)
                change.on, change.off = (moved, change.off) if on else (change.on, moved)


def _moved(tensor: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    """The tensor as ``Module.to`` moves it: a parameter stays the same object."""
    holder = nn.Module()
    if isinstance(tensor, nn.Parameter):
        holder.register_parameter("tensor", tensor)
    else:
        holder.register_buffer("tensor", tensor)
    moved: Any = holder.to(device=device, dtype=dtype).tensor
    return moved


def _anchors(model: nn.Module, changes: list[Change]) -> dict[nn.Module, Anchor]:
    """A frozen parameter in each module with a change or, if it has none, of the model."""
    taken = {id(change.on) for change in changes if change.table in TENSORS}
    added = [c.on for c in changes if c.table == "_modules" and isinstance(c.on, nn.Module)]
    ours = {module for root in added for module in root.modules()}

    def first(root: nn.Module) -> Anchor | None:
        for module in root.modules():
            for name, parameter in module._parameters.items() if module not in ours else ():
                if parameter is not None and id(parameter) not in taken:
                    return Anchor(module, name)
        return None

    default = first(model)
    hosts = dict.fromkeys(c.module for c in changes if c.table in ("_modules", *TENSORS))
    found = {host: first(host) or default for host in hosts}
    return {host: anchor for host, anchor in found.items() if anchor is not None}
