"""Stand-ins: what runs in place of the tensors of a model on the meta device, or of large ones.

Vectors and buffers have the values that the model starts with, and matrices are those of
:mod:`._overlapping`: neither memory nor time grows with the number of their elements. In a model
with values that has large ones, these stand for them, so that a forward does not read them all.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy._overlapping import Products, overlapping, rows_for
from lightning_pelt.anatomy.dummy_inputs.running import configurations
from lightning_pelt.anatomy.initialising import initialise
from lightning_pelt.anatomy.structure import structure_of

NOISE = 0.1  # that biases and norms differ from zero and one
LARGE = 1 << 17  # elements of a matrix; a product of fewer with a few rows is as fast as it is
EXPERTS = "_experts_implementation_internal"  # in configurations


def is_without_values(model: nn.Module) -> bool:
    """Whether tensors of a model are on the meta device, and nothing fetches them in a forward.

    Accelerate's hooks do so where a model is offloaded.
    """
    tensors = (*model.parameters(), *model.buffers())
    return any(tensor.is_meta for tensor in tensors) and not _are_fetched(model.modules())


def _are_fetched(modules: Iterable[nn.Module]) -> bool:
    return any("_hf_hook" in vars(module) for module in modules)


class StandIns:
    """A context in which a model without values runs. Of large ones it replaces the matrices.

    Args:
        model: keeps its tensors, which are back in their places outside of the context.
        large: number of elements of a matrix from which on a model with values is large.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> with torch.device("meta"):
        ...     model = BertModel(BertConfig(num_hidden_layers=1))
        >>> with StandIns(model):
        ...     model(torch.ones(1, 3, dtype=torch.long)).pooler_output.shape
        torch.Size([1, 768])
        >>> model.device.type
        'meta'
    """

    def __init__(self, model: PreTrainedModel, *, large: int = LARGE) -> None:
        self.model = model
        modules = list(model.modules())
        places = [place for module in modules for place in _places(module)]
        self._places: list[_Place] = []
        if _are_fetched(modules):
            pass
        elif any(place.tensor.is_meta for place in places):
            # Parameters of torch.Tensor(size) are on the CPU also of a model on the meta device,
            # without values (ImageGPT, XLNet).
            every = any(place.tensor.is_meta for place in places if place.is_parameter)
            self._places = [p for p in places if p.tensor.is_meta or (every and p.is_parameter)]
        elif all(_is_ordinary(place.tensor) for place in places if place.is_parameter):
            matrices = [place for place in places if _is_matrix(place.tensor)]
            # Small ones too: what is found then depends on none, not on that of a new head either.
            if any(place.tensor.numel() >= large for place in matrices):
                self._places = matrices
        self._made: dict[int, Tensor] | None = None  # in the first context
        self._active: ExitStack | None = None

    def beside(self, modules: Iterable[nn.Module]) -> StandIns:
        """Stand-ins of the large matrices of ``modules`` in the model, such as submodules."""
        other = copy(self)
        owners = dict.fromkeys(owner for module in modules for owner in module.modules())
        places = (place for owner in owners for place in _places(owner))
        other._places = [p for p in places if _is_matrix(p.tensor) and _is_ordinary(p.tensor)]
        other._places = [p for p in other._places if p.tensor.numel() >= LARGE]
        other._made = other._active = None
        return other

    def __enter__(self) -> StandIns:
        if self._places:
            if self._made is None:
                self._made = self._prepare()
            self._active = ExitStack()
            self._active.enter_context(self._in_place())
        return self

    def __exit__(self, *_: Any) -> None:
        if self._active is not None:
            self._active.close()
            self._active = None

    @cached_property
    def structure(self) -> Hashable:
        """The structure of the model when it is first asked for, see :func:`structure_of`."""
        return structure_of(self.model, [place.tensor for place in self._places])

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """A context inside of this one in which the model has its own tensors."""
        if self._active is None:
            yield
            return
        self._active.close()
        try:
            yield
        finally:
            self._active = ExitStack()
            self._active.enter_context(self._in_place())

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        assert self._made is not None
        for place in self._places:
            place.put(self._made[id(place.tensor)])
        try:
            with Products(self._rows), _looping_experts(self.model):
                yield
        finally:
            for place in self._places:
                place.put(place.tensor)

    def _prepare(self) -> dict[int, Tensor]:
        """What stands for each tensor, by its id."""
        tensors = {id(place.tensor): place.tensor for place in self._places}
        small = {i: t for i, t in tensors.items() if not _is_matrix(t)}
        made = {i: _like(t, _start(t)) for i, t in small.items()}
        if made:
            self._initialise(made)
        matrices = {i: t for i, t in tensors.items() if i not in made}
        self._rows = rows_for(matrices.values())
        for number, (i, tensor) in enumerate(matrices.items()):
            made[i] = _like(tensor, overlapping(tensor, self._rows[tensor.dtype], number))
        return made

    def _initialise(self, made: dict[int, Tensor]) -> None:
        """Give vectors and buffers the values that the model starts with, and noise."""
        for place in self._places:
            if id(place.tensor) in made:
                place.put(made[id(place.tensor)])
        try:
            computed = {id(tensor) for tensor in made.values()}
            initialise(self.model, lambda tensor: id(tensor) in computed)
        finally:
            for place in self._places:
                place.put(place.tensor)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in made.values():
                if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                    noise = torch.randn(tensor.shape, generator=draw, device="cpu")
                    tensor.add_(noise.to(tensor), alpha=NOISE)


def _is_ordinary(tensor: Tensor) -> bool:
    """Whether a tensor is one of plain numbers in the memory of the CPU."""
    return tensor.is_cpu and type(tensor.data) is Tensor and tensor.layout is torch.strided


class _Place:
    """A tensor in a module."""

    def __init__(self, module: nn.Module, table: str, name: str) -> None:
        self.module, self.table, self.name = module, table, name
        self.tensor: Tensor = getattr(module, table)[name]
        self.is_parameter = isinstance(self.tensor, nn.Parameter)
        self.is_listed = "_flat_weights" in vars(module)  # recurrent layers keep a list of theirs

    def put(self, tensor: Tensor) -> None:
        if self.is_listed:
            setattr(self.module, self.name, tensor)
        else:
            getattr(self.module, self.table)[self.name] = tensor


def _places(module: nn.Module) -> Iterator[_Place]:
    for table in ("_parameters", "_buffers"):
        for name, tensor in getattr(module, table).items():
            if tensor is not None:
                yield _Place(module, table, name)


def _is_matrix(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter) and tensor.dim() > 1 and tensor.is_floating_point()


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    """``value`` as a parameter, if ``tensor`` is one."""
    if not isinstance(tensor, nn.Parameter):
        return value
    return nn.Parameter(value, requires_grad=tensor.requires_grad)


def _start(tensor: Tensor) -> Tensor:
    """Ones; zeros for whole numbers and answers, which may count or choose."""
    fill = torch.ones if tensor.is_floating_point() else torch.zeros
    return fill(tensor.shape, dtype=tensor.dtype, device="cpu")


@contextmanager
def _looping_experts(model: nn.Module) -> Iterator[None]:
    """Run experts one after another: other implementations copy their weights."""
    entries = [vars(config) for config in configurations(model)]
    before = [(own, own[EXPERTS]) for own in entries if EXPERTS in own]
    try:
        for own, _ in before:
            own[EXPERTS] = "eager"
        yield
    finally:
        for own, name in before:
            own[EXPERTS] = name
