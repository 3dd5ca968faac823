"""Stand-ins: what runs in place of the tensors of a model on the meta device.

Vectors and buffers have the values that the model starts with, and matrices are those of
:mod:`._overlapping`: neither memory nor time grows with the number of their elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy._overlapping import Products, overlapping, rows_for
from lightning_pelt.anatomy.dummy_inputs.running import configurations
from lightning_pelt.anatomy.initialising import initialise

NOISE = 0.1  # that biases and norms differ from zero and one
EXPERTS = "_experts_implementation_internal"  # in configurations


def is_without_values(model: nn.Module) -> bool:
    """Whether tensors of a model are on the meta device, and nothing fetches them in a forward.

    Accelerate's hooks do so where a model is offloaded.
    """
    tensors = (*model.parameters(), *model.buffers())
    return any(tensor.is_meta for tensor in tensors) and not any(
        "_hf_hook" in vars(module) for module in model.modules()
    )


class StandIns:
    """A context in which a model without values runs. Other models stay as they are.

    Args:
        model: keeps its tensors, which are back in their places outside of the context.

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

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._places: list[_Place] = []
        if is_without_values(model):
            # Parameters of torch.Tensor(size) are on the CPU also of a model on the meta device,
            # without values (ImageGPT, XLNet).
            every = any(parameter.is_meta for parameter in model.parameters())
            places = (place for module in model.modules() for place in _places(module))
            self._places = [p for p in places if p.tensor.is_meta or (every and p.is_parameter)]
        self._active: ExitStack | None = None

    def __enter__(self) -> StandIns:
        if self._places:
            self._prepare()
            self._active = ExitStack()
            self._active.enter_context(self._in_place())
        return self

    def __exit__(self, *_: Any) -> None:
        if self._active is not None:
            self._active.close()
            self._active = None

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
        for place in self._places:
            place.put(self._made[id(place.tensor)])
        try:
            with Products(self._rows), _looping_experts(self.model):
                yield
        finally:
            for place in self._places:
                place.put(place.tensor)

    def _prepare(self) -> None:
        tensors = {id(place.tensor): place.tensor for place in self._places}
        small = {i: t for i, t in tensors.items() if not _is_matrix(t)}
        made = {i: _like(t, _start(t)) for i, t in small.items()}
        self._made = made
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
        matrices = {i: t for i, t in tensors.items() if i not in made}
        self._rows = rows_for(matrices.values())
        for number, (i, tensor) in enumerate(matrices.items()):
            made[i] = _like(tensor, overlapping(tensor, self._rows[tensor.dtype], number))


class _Place:
    """A tensor in a module."""

    def __init__(self, module: nn.Module, table: str, name: str) -> None:
        self.module, self.table, self.name = module, table, name
        self.tensor: Tensor = getattr(module, table)[name]
        self.is_parameter = isinstance(self.tensor, nn.Parameter)

    def put(self, tensor: Tensor) -> None:
        if hasattr(self.module, "_flat_weights"):  # recurrent layers keep a list of theirs
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
