"""A model that was attached on the meta device: what its base still awaits, and what then follows.

The submodules have values from the start. The base gets its own when its files are loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import initialise, is_without_values
from lightning_pelt.attach.builder import CHILD
from lightning_pelt.attach.half_precision import InFP32
from lightning_pelt.attach.names import plain, tensor_names

if TYPE_CHECKING:
    from lightning_pelt.attach.attachment import Attachment


@dataclass
class Awaited:
    """Tensors of the model itself that have no values yet, by name.

    Attributes:
        names: those that a state dict holds.
        computed: buffers that none holds, such as rotary frequencies.
        tied: the names of each tensor that has several.
        seed: of what is drawn, such as a new head.
    """

    names: set[str] = field(default_factory=set)
    computed: set[str] = field(default_factory=set)
    tied: list[set[str]] = field(default_factory=list)
    seed: int = 0

    @classmethod
    def of(cls, model: PreTrainedModel, seed: int) -> Awaited:
        """All tensors of a bare model without values; of others none."""
        if not is_without_values(model):
            return cls()
        by_tensor: dict[int, set[str]] = {}
        for place in _places(model):
            by_tensor.setdefault(id(place.tensor), set()).add(place.full_name)
        names = {plain(name) for name in tensor_names(model)}
        buffers = {p.full_name for p in _places(model) if p.tensor.is_meta} - names
        return cls(names, buffers, [same for same in by_tensor.values() if len(same) > 1], seed)

    def of_base(self, attachment: Attachment) -> set[str]:
        """The names without those of the head, which may be new."""
        return self.names - attachment.head

    def __bool__(self) -> bool:
        return bool(self.names or self.computed)

    def are_in(self, given: Iterable[str]) -> bool:
        """Whether a state with these names brings tensors of the model itself alone."""
        names = set(given)
        return bool(names & self.names) and not any(CHILD in name.split(".") for name in names)


class _Place:
    """A tensor of the model itself, in its module."""

    def __init__(self, path: str, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.full_name = plain(f"{path}.{name}" if path else name)
        table: Any = module._parameters if name in module._parameters else module._buffers
        self.table: dict[str, Tensor] = table

    @property
    def tensor(self) -> Tensor:
        return self.table[self.name]

    @tensor.setter
    def tensor(self, value: Tensor) -> None:
        self.table[self.name] = value


def _places(model: nn.Module) -> list[_Place]:
    """All tensors of a model, each under every of its names; those of submodules aside."""
    return [
        _Place(path, module, name)
        for path, module in model.named_modules(remove_duplicate=False)
        if CHILD not in path.split(".")
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    ]


def arrive(attachment: Attachment, given: Iterable[str]) -> None:
    """Note that tensors of the base were loaded; with the last one, complete the model.

    Args:
        attachment: of the model.
        given: their names. Those on the meta device have not arrived: ``load_state_dict`` without
            ``assign=True`` copies onto them in vain.
    """
    awaited = attachment.awaited
    places = {place.full_name: place for place in _places(attachment.model)}
    arrived = {n for n in given if n in places and not places[n].tensor.is_meta}
    for same in awaited.tied:
        source = next((name for name in sorted(same) if name in arrived), None)
        if source is not None:
            for name in same:  # assign=True unties
                places[name].tensor = places[source].tensor
            arrived |= same
    before = awaited.of_base(attachment)
    awaited.names -= arrived
    if before and not awaited.of_base(attachment):
        _complete(attachment)
        if awaited.names:
            head = ", ".join(sorted(awaited.names)[:3])
            warnings.warn(
                f"the base is loaded, and the new head ({head}) has no values yet: call "
                "attachment.materialise(), which draws them, or load them",
                stacklevel=2,
            )


def materialise(attachment: Attachment) -> None:
    """Complete a model whose base was loaded, and draw what is new in it.

    Raises:
        ValueError: see :meth:`Attachment.materialise`.
    """
    awaited, places = attachment.awaited, _places(attachment.model)
    if awaited.of_base(attachment):
        empty = {place.full_name for place in places if place.tensor.is_meta} & awaited.names
        if lacking := sorted(empty - attachment.head):
            raise ValueError(
                f"{len(lacking)} tensors of the base have no values yet, such as {lacking[0]}: "
                "load them first, e.g. model.load_state_dict(state, assign=True)"
            )
        awaited.names = empty  # others were not loaded by load_state_dict
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(awaited.seed)
        _compute(attachment.model, awaited.names)
    awaited.names = set()
    if awaited:
        _complete(attachment)


def _complete(attachment: Attachment) -> None:
    """Do what attaching has left undone on a model without values, now that its base has them."""
    model, awaited = attachment.model, attachment.awaited
    _compute(model, awaited.computed)
    awaited.computed = set()
    for host in list(model.modules()):
        if (children := host._modules.get(CHILD)) is not None:
            children.to(_home(host, model))
    for place in _places(model):
        if isinstance(place.tensor, nn.Parameter):  # an assigned one may require a gradient
            trained = attachment.plan.train_base or place.full_name not in attachment.base
            place.tensor.requires_grad_(trained)
    for change in attachment.undo:
        if isinstance(change, InFP32):
            change.module.float()
    attachment.record()


def _home(host: nn.Module, model: nn.Module) -> torch.device:
    """The device of the first weight of ``host`` itself, or else of the model."""
    own = [*host._parameters.values()]
    own += [
        p
        for name, child in host._modules.items()
        if name != CHILD and child is not None
        for p in child.parameters()
    ]
    found = (p.device for p in (*own, *model.parameters()) if p is not None and not p.is_meta)
    return next(found, torch.device("cpu"))


def _compute(model: PreTrainedModel, names: set[str]) -> None:
    """Give the tensors of these names the values that the model starts with.

    Those that the model's own initialisation does not know are named in a warning.
    """
    made: dict[int, Tensor] = {}  # by the tensor that was there
    for place in _places(model):
        if place.full_name in names:
            before = place.tensor
            if id(before) not in made:
                made[id(before)] = _allocated(before, _home(place.module, model))
            place.tensor = made[id(before)]
    versions = {id(tensor): tensor._version for tensor in made.values()}
    if versions:
        initialise(model, lambda tensor: id(tensor) in versions)
    unknown = [
        p.full_name for p in _places(model) if versions.get(id(p.tensor)) == p.tensor._version
    ]
    if unknown:
        warnings.warn(
            f"{type(model).__name__} does not tell the values of {', '.join(unknown)}, which no "
            "file holds: set them before the first forward",
            stacklevel=4,
        )


def _allocated(tensor: Tensor, device: torch.device) -> Tensor:
    if not tensor.is_meta:
        return tensor
    new = torch.empty_like(tensor, device=device)
    return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
