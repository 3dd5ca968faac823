"""One forward for rows with different adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt.attach.names import plain
from lightning_pelt.attach.several.averaging import own_tensors, refuse_unequal
from lightning_pelt.attach.several.changes import Snapshot
from lightning_pelt.attach.several.entry import Entry
from lightning_pelt.attach.several.registry import Registry
from lightning_pelt.methods._rows import Rows

INSTEAD = "Run the adapters one after another, with adapters.using(name)"


@contextmanager
def mixed_rows(registry: Registry, names: Sequence[str | None]) -> Iterator[None]:
    """Put the adapters of the rows of a batch on the model, see :meth:`Adapters.rows`."""
    wanted = sorted({name for name in names if name is not None})
    entries = {name: registry.entry(name) for name in wanted}
    if not names or isinstance(names, str):
        raise ValueError(f"names is {names!r}, expected one for each row of the batch")
    if registry.model.training:
        raise ValueError(
            "rows() serves trained adapters, and the model is in train mode: call model.eval(), or "
            "train one adapter at a time"
        )
    with registry.lock:
        before = registry.active
        registry.switch(None)
        try:
            mixed = _stacked(registry, entries) if wanted else None
            if mixed is None:
                yield
                return
            if None in names and not mixed.bare:
                raise ValueError(
                    f"rows() has a row without an adapter, and the head of {wanted[0]!r} has other "
                    "labels than the model's: give every row an adapter"
                )
            none = len(mixed.names)
            numbers = [none if name is None else mixed.names.index(name) for name in names]
            mixed.put_on(numbers)
            registry.mixed = True
            try:
                yield
            finally:
                registry.mixed = False
                mixed.entry.take_off()
        finally:
            registry.switch(before)


def _stacked(registry: Registry, entries: Mapping[str, Entry]) -> Mixed:
    """What mixes the adapters; that of the last batch, if it serves this one too."""
    mixed: Mixed | None = registry.rows
    if mixed is not None and mixed.holds(entries, registry.entries):
        return mixed
    refuse_unequal(list(entries), list(entries.values()))
    first = next(iter(entries.values()))
    if mixed is None or not mixed.resembles(first):
        mixed = registry.rows = Mixed(first)
    mixed.take(entries)
    return mixed


class Mixed:
    """What computes each row of a batch with its own adapter, for adapters with equal plans.

    It is a copy of one adapter whose submodules hold the stacked weights of all. They are stacked
    again when other adapters take part, or when a weight has changed.

    Args:
        first: one of the adapters. The model is bare.

    Attributes:
        names: of the adapters whose weights are stacked.
        bare: whether rows may have no adapter.

    Raises:
        ValueError: an adapter of its plan or with its head cannot be mixed. The model is then as it
            was.
    """

    def __init__(self, first: Entry) -> None:
        _refuse_own_tensors(first)
        model = first.attachment.model
        before = Snapshot(model)
        self.rows = Rows(torch.zeros(1, dtype=torch.long))
        twin = first.copied()
        try:
            twin.put_on()
            self.heads = [HeadByRow(model, path, self.rows) for path in _head_layers(twin)]
            self.entry = Entry(twin.attachment, before.changes())
        except BaseException:
            before.restore()
            raise
        self.entry.take_off()
        self.names: list[str] = []
        self.versions: dict[str, Any] = {}
        self.shapes = _shapes(first)

    @property
    def bare(self) -> bool:
        return all(head.bare for head in self.heads)

    def resembles(self, entry: Entry) -> bool:
        """Whether it can hold the weights of an adapter."""
        same = entry.attachment.plan == self.entry.attachment.plan
        return same and _shapes(entry) == self.shapes

    def holds(self, wanted: Mapping[str, Entry], entries: Mapping[str, Entry]) -> bool:
        """Whether it has the weights of the wanted adapters as they are now."""
        return wanted.keys() <= self.versions.keys() and all(
            name in entries and _version(entries[name]) == version and version is not None
            for name, version in self.versions.items()
        )

    def take(self, entries: Mapping[str, Entry]) -> None:
        """Stack the weights of adapters.

        Raises:
            ValueError: a method of the plan cannot be mixed.
        """
        self.names, self.versions = [], {}
        peers = list(entries.values())
        with torch.no_grad():
            for method, modules in self.entry.attachment.submodules.items():
                others = zip(*(e.attachment.submodules[method] for e in peers), strict=True)
                try:
                    for target, same in zip(modules, others, strict=True):
                        target.by_rows(same, self.rows)
                except ValueError as error:
                    raise ValueError(f"{method!r} of the plan: {error}") from error
            layers = zip(*(entry.gate_layers for entry in peers), strict=True)
            for layer, same in zip(self.entry.gate_layers, layers, strict=False):
                layer.by_rows(same, self.rows)
            for head in self.heads:
                head.take(peers)
        self.names = list(entries)
        self.versions = {name: _version(entry) for name, entry in entries.items()}

    def put_on(self, numbers: Sequence[int]) -> None:
        """Put it on the bare model, for rows with the adapters of these numbers."""
        self.rows.index = torch.tensor(numbers, device=self.entry.attachment.model.device)
        self.entry.put_on()


class HeadByRow:
    """A linear layer or a layer norm of the head, with the weights of each row's adapter.

    Attributes:
        bare: whether the base has a head of the same shape, for rows without an adapter.
    """

    def __init__(self, model: nn.Module, path: str, rows: Rows) -> None:
        self.model, self.path, self.rows = model, path, rows
        self.weights: list[Tensor] = []
        self.bare = True
        model.get_submodule(path).register_forward_hook(self._replace)

    def take(self, entries: Sequence[Entry]) -> None:
        """Stack the weights; those of the base are the last. The model is bare."""
        found = [self._of(entry) for entry in entries]
        base = [
            p for p in self.model.get_submodule(self.path)._parameters.values() if p is not None
        ]
        self.bare = [t.shape for t in base] == [t.shape for t in found[0]]
        found.append([*base] if self.bare else [torch.zeros_like(t) for t in found[0]])
        weight, *bias = ([tensor.detach() for tensor in same] for same in zip(*found, strict=True))
        across = [each.mT if each.dim() == 2 else each for each in weight]
        self.weights = [torch.stack(across), *map(torch.stack, bias)]

    def _of(self, entry: Entry) -> list[Tensor]:
        """Weight and bias of an adapter that is off the model."""
        parent, _, name = self.path.rpartition(".")
        layer, host = self.model.get_submodule(self.path), self.model.get_submodule(parent)
        for change in entry.layers:
            if change.module is host and change.key == name:
                return [p for p in change.on._parameters.values() if p is not None]
        own = {change.key: change.on for change in entry.slots if change.module is layer}
        return [own.get(k, p) for k, p in layer._parameters.items() if p is not None]

    def _replace(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        x, (weight, *bias) = args[0], self.weights
        if isinstance(module, nn.Linear):
            made = self.rows.product(x, weight, bias=bias[0] if bias else None)
        else:
            assert isinstance(module, nn.LayerNorm)
            made = F.layer_norm(x, x.shape[-1:], eps=module.eps) * self.rows.of(weight, x)
            made = made + self.rows.of(bias[0], x) if bias else made
        return made.to(output.dtype)


def _refuse_own_tensors(entry: Entry) -> None:
    """Raise if adapters have norms or statistics, or sites where tensors have no rows.

    Raises:
        ValueError: the message names the tensor or the site.
    """
    attachment = entry.attachment
    frozen, anatomy = attachment.frozen, attachment.anatomy
    own = sorted((frozen.norms | frozen.kept | frozen.values_before.keys()) - frozen.head)
    if own:
        raise ValueError(
            f"the adapters have their own {own[0]}, and all rows of a batch have the same. "
            f"{INSTEAD}"
        )
    for placed in attachment.plan.place(anatomy):
        for site in placed.sites:
            if site.stack in anatomy.rowless:
                raise ValueError(
                    f"the {site.stack} of {anatomy.model_type} does not compute on (B, T, d), so "
                    f"that the rows at {site.path} are not those of the batch. {INSTEAD}"
                )


def _head_layers(entry: Entry) -> list[str]:
    """Paths of the layers of the head of an adapter that is on the model.

    Raises:
        ValueError: the head has other layers.
    """
    found = []
    for path, layer in entry.attachment.model.named_modules():
        names = {plain(f"{path}.{name}") for name in layer._parameters}
        if not names & entry.attachment.head:
            continue
        norm = isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1
        if not (norm or isinstance(layer, nn.Linear)):
            raise ValueError(
                f"the head has {path} ({type(layer).__name__}), and only linear layers and layer "
                f"norms of a head can differ in the rows of a batch. {INSTEAD}"
            )
        found.append(path)
    return found


def _shapes(entry: Entry) -> list[Any]:
    return [
        (name, tensor.shape, tensor.device, tensor.dtype) for name, tensor in own_tensors(entry)
    ]


def _version(entry: Entry) -> list[tuple[int, int, int]] | None:
    """What differs once a weight of an adapter has changed; None if that cannot be told."""
    modules = [tensor for module in entry.modules for tensor in _tensors(module)]
    tensors = [*modules, *(tensor for _, tensor in own_tensors(entry))]
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return [(id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
