"""A part of a model that takes an input, and what it says of that input."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel


class Part:
    """A model or one of its towers, with the configurations that describe it.

    Attributes:
        module: the part.
        accepted: the arguments of its forward.
        configs: its configuration, those of its own parts, then those around it.
    """

    def __init__(self, module: nn.Module, around: PreTrainedConfig | None = None) -> None:
        self.module = module
        self.accepted = inspect.signature(module.forward).parameters
        own = getattr(module, "config", None)
        self.configs = [*_with_parts(own), *_with_parts(around)]

    @property
    def required(self) -> list[str]:
        """Names of the arguments without a default."""
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = self.accepted.values()
        return [p.name for p in parameters if p.kind in kinds and p.default is p.empty]

    def entry(self, *names: str, default: Any = None) -> Any:
        """The first entry of these names in the configurations that is not None."""
        for config in self.configs:
            for name in names:
                value = getattr(config, name, None)
                if value is not None:
                    return value
        return default

    def each(self, *kinds: type[nn.Module]) -> Iterator[Any]:
        """The layers of these kinds, in the order in which they were built."""
        return (module for module in self.module.modules() if isinstance(module, kinds))

    def first(self, *kinds: type[nn.Module]) -> Any:
        """The first of them, or None."""
        return next(self.each(*kinds), None)


def tower(model: PreTrainedModel, *arguments: str) -> Part:
    """The part inside ``model`` whose forward accepts one of ``arguments``, else ``model``."""
    for module in model.modules():
        if module is model or not isinstance(module, PreTrainedModel):
            continue
        if any(name in inspect.signature(module.forward).parameters for name in arguments):
            return Part(module, model.config)
    return Part(model)


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Two sides, of which a configuration states one if they are equal."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _with_parts(config: PreTrainedConfig | None) -> Iterator[PreTrainedConfig]:
    """A configuration and those of its parts, level by level."""
    waiting = [config]
    for entry in waiting:
        if isinstance(entry, PreTrainedConfig):
            yield entry
            waiting += [v for v in vars(entry).values() if isinstance(v, PreTrainedConfig)]
