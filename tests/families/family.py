"""A family of transformers: a tiny model, its inputs, and where its sublayers are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from families.shrink import tiny_config

Inputs = Callable[[PreTrainedModel], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        model_type: its type in transformers.
        checkpoint: the published checkpoint whose options the configuration has.
        place: what :func:`families.place.describe` has to print, read against the modeling file;
            empty where nothing can be attached.
        options: what differs from the defaults of the family, see
            :func:`families.shrink.tiny_config`.
        inputs: makes a batch for the model, as a user passes it as ``example_inputs`` where the
            package's own dummy inputs do not do; None for those.
        without: the methods that the family does not take, and a part of the reason.
        auto: the class that builds the model, mostly an auto class.
        name: if the type has several entries.
        seed: of the weights; another one where rounding would decide a choice of the largest.
    """

    model_type: str
    checkpoint: str
    place: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    inputs: Inputs | None = None
    without: dict[str, str] = field(default_factory=dict)
    auto: str = "AutoModel"
    name: str = ""
    seed: int = 0

    @property
    def label(self) -> str:
        return self.name or self.model_type

    def config(self) -> PreTrainedConfig:
        return tiny_config(self.model_type, self.options)

    def build(self) -> PreTrainedModel:
        """The model in eval mode, with weights so wide that a small change anywhere shows."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            cls = getattr(transformers, self.auto)
            build = getattr(cls, "from_config", None) or cls._from_config
            model: PreTrainedModel = build(self.config())
            with torch.no_grad():
                for parameter in model.parameters():
                    _draw(parameter)
        return model.eval()


def _draw(parameter: Tensor) -> None:
    if not parameter.requires_grad or not parameter.is_floating_point():  # a fixed table
        return
    if sum(size > 1 for size in parameter.shape) >= 2:
        parameter.normal_(std=0.15)
    else:
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
