"""The structure of a model: all that decides its anatomy, as a key of a dictionary.

Two models with equal structures compute the same on the same inputs, up to the values of matrices
for which others stand. What was found out about one of them holds for the other.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import AttentionInterface, PreTrainedModel

READ = 1 << 22  # elements of the tensors whose values are compared; beyond, nothing is remembered
KEPT = 64  # structures
PLAIN = (str, int, float, bool, type(None), torch.dtype, torch.device, Enum, range)
BY_IDENTITY = (type, FunctionType, BuiltinFunctionType)
# Attributes of a module that are in the key in another way, or have no part in a forward.
LEFT_OUT = {*vars(nn.Module()), "generation_config", "warnings_issued", "_is_hf_initialized"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks")

Found = TypeVar("Found")


class Remembered(Generic[Found]):
    """What was found out about the last structures.

    Example:
        >>> known: Remembered[int] = Remembered()
        >>> known.put("structure", 3)
        >>> known.get("structure"), known.get("another"), known.get(None)
        (3, None, None)
    """

    def __init__(self) -> None:
        self._found: OrderedDict[Hashable, Found] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, structure: Hashable) -> Found | None:
        """None if it is not known."""
        with self._lock:
            if structure in self._found:
                self._found.move_to_end(structure)
            return self._found.get(structure)

    def put(self, structure: Hashable, found: Found) -> None:
        """Remember what was found; of None, which is no structure, nothing."""
        if structure is None:
            return
        with self._lock:
            self._found[structure] = found
            while len(self._found) > KEPT:
                self._found.popitem(last=False)

    def forget(self) -> None:
        """Forget everything."""
        with self._lock:
            self._found.clear()


def structure_of(model: PreTrainedModel, replaced: Iterable[Tensor] = ()) -> Hashable:
    """The structure of a model; None if it cannot be told from others.

    It holds the classes of all modules with their functions, their attributes and configurations,
    and their tensors. A model with hooks, with attributes of unknown kinds, or with many values on
    another device cannot be told from others.

    Args:
        model: a bare model.
        replaced: the tensors of which the values do not matter.
    """
    try:
        return _Reader(model, {id(tensor) for tensor in replaced}).structure()
    except _Unknown:
        return None


def plain_data(value: Any) -> Hashable:
    """A configured object as a key; None if it holds values of unknown kinds."""
    try:
        return _Plain().of(value)
    except _Unknown:
        return None


def _bases(cls: type) -> tuple[type, ...]:
    return tuple(base for base in cls.__mro__ if base not in (nn.Module, object))


def functions_of(classes: Iterable[type]) -> Hashable:
    """Everything that is callable in classes and their bases, since a program may replace it."""
    bases = dict.fromkeys(base for cls in classes for base in _bases(cls))
    kinds = (FunctionType, property, classmethod, staticmethod)
    return tuple(
        (base, *(value for value in vars(base).values() if isinstance(value, kinds)))
        for base in bases
    )


class _Unknown(Exception):
    """A value of a kind that no key can hold."""


class _Plain:
    """Turns values into keys; each configuration and module is known by its number."""

    def __init__(self, modules: Mapping[nn.Module, int] | None = None) -> None:
        self.modules = modules or {}
        self.configurations: dict[int, int] = {}

    def of(self, value: Any) -> Hashable:
        if isinstance(value, (PLAIN, BY_IDENTITY)):
            return type(value), value
        if isinstance(value, Mapping):
            return type(value), tuple((self.of(key), self.of(v)) for key, v in value.items())
        if isinstance(value, (list, tuple)):
            return type(value), tuple(map(self.of, value))
        if isinstance(value, (set, frozenset)):
            return type(value), frozenset(map(self.of, value))
        if isinstance(value, PreTrainedConfig):
            return self._configuration(value)
        if isinstance(value, functools.partial):
            return functools.partial, self.of([value.func, value.args, value.keywords])
        if isinstance(value, nn.Module) and value in self.modules:
            return nn.Module, self.modules[value]
        if is_dataclass(value) and not isinstance(value, type):
            entries = {field.name: getattr(value, field.name) for field in fields(value)}
            return type(value), self.of(entries | getattr(value, "__dict__", {}))
        raise _Unknown

    def _configuration(self, config: PreTrainedConfig) -> Hashable:
        if id(config) in self.configurations:
            return PreTrainedConfig, self.configurations[id(config)]
        self.configurations[id(config)] = len(self.configurations)
        return type(config), self.of(vars(config))


class _Reader:
    def __init__(self, model: PreTrainedModel, replaced: set[int]) -> None:
        self.replaced = replaced
        self.modules = {module: number for number, module in enumerate(model.modules())}
        self.plain = _Plain(self.modules)
        self.tensors: dict[int, int] = {}  # numbers by id
        self.read, self.digest = 0, hashlib.blake2b()

    def structure(self) -> Hashable:
        modules = tuple(self._module(module) for module in self.modules)
        functions = functions_of(dict.fromkeys(map(type, self.modules)))
        interface = tuple(getattr(AttentionInterface, "_global_mapping", {}).items())
        state = torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), interface
        return modules, functions, state, self.digest.digest()

    def _module(self, module: nn.Module) -> Hashable:
        own = vars(module)
        if any(own[hooks] for hooks in HOOKS):
            raise _Unknown
        children = tuple((n, self.modules.get(child)) for n, child in own["_modules"].items())
        tensors = tuple(self._tensors(own))
        names = own.keys() - LEFT_OUT
        rest = tuple((name, self.plain.of(own[name])) for name in own if name in names)
        return type(module), children, tensors, rest

    def _tensors(self, own: Mapping[str, Any]) -> Iterator[Hashable]:
        for table in ("_parameters", "_buffers"):
            for name, tensor in own[table].items():
                if tensor is None:
                    yield table, name
                    continue
                known = self.tensors.setdefault(id(tensor), len(self.tensors))
                kind = type(tensor), tensor.dtype, tensor.device, tensor.shape, tensor.requires_grad
                yield table, name, known, kind
                if known == len(self.tensors) - 1 and id(tensor) not in self.replaced:
                    self._value(tensor.detach())

    def _value(self, tensor: Tensor) -> None:
        self.read += tensor.numel()
        if type(tensor) is not Tensor or not tensor.is_cpu or self.read > READ:
            raise _Unknown
        if tensor.layout is not torch.strided:
            raise _Unknown
        self.digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
