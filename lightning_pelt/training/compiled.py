"""The backbone compiled in place, so that names stay as they are."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lightning_pelt.utils.errors import unknown

OPTIONS = tuple(name for name in inspect.signature(torch.compile).parameters if name != "model")


def check_compile(given: bool | Mapping[str, Any]) -> bool | dict[str, Any]:
    """``given`` as plain data.

    Raises:
        ValueError: it names an option that ``torch.compile`` does not have.
    """
    if isinstance(given, bool):
        return given
    for name in given:
        if name not in OPTIONS:
            raise unknown("option of torch.compile", name, OPTIONS)
    return dict(given)


def compile_model(model: nn.Module, options: bool | Mapping[str, Any]) -> None:
    """Compile the calls of ``model``, unless ``options`` is False.

    In place, unlike ``torch.compile(model)``, whose wrapper would stand in the names of the
    checkpoint. What Lightning does around the model (logging, metrics, optimizer) is not compiled.

    Args:
        model: with its plan.
        options: keywords of ``torch.compile``; True for none.
    """
    if options is not False:
        model.compile(**({} if options is True else options))
