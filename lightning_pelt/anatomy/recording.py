"""Recording: one dummy forward, with the tensors of every module and attention call."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.anatomy._recorder import Recorder
from lightning_pelt.anatomy.calls import Recording, main_outputs
from lightning_pelt.anatomy.dummy_inputs import (
    base_of,
    cannot_be_examined,
    first_that_runs,
    on,
    rows_of,
    undisturbed,
)


def record(model: PreTrainedModel, inputs: dict[str, Tensor] | None = None) -> Recording:
    """Run ``model``'s base once without dropout, and record every call.

    Args:
        model: is left as it was, as are the global random state and all gradients.
        inputs: keyword arguments of ``model``; None for the smallest ones of its base.

    Raises:
        ValueError: the model does not run on the inputs.
    """
    base = base_of(model)
    if inputs is None:
        recording, at_once = first_that_runs(base, lambda given: _recorded(base, base, given))
        recording.at_once = at_once
        return recording
    try:
        return _recorded(base, model, on(model, inputs))
    except Exception as error:
        failure = f"the example inputs with {type(error).__name__}: {error}"
        raise cannot_be_examined(model, failure) from error


def _recorded(base: PreTrainedModel, runner: PreTrainedModel, given: dict[str, Any]) -> Recording:
    """The recording of ``base`` in a forward of ``runner``, which is the base or around it."""
    recorder = Recorder(base.device)
    with torch.enable_grad(), undisturbed(runner), recorder.recording_of(base):
        before = dict(base.named_modules())
        outputs = runner(**given, **_without_cache(runner))
        _refuse_replaced(base, before)
    recorder.recording.outputs = main_outputs(outputs)
    recorder.recording.batch = rows_of(given)
    recorder.recording.words = frozenset(
        value.shape[1] for name, value in given.items() if name.endswith("input_ids")
    )
    return recorder.recording


def _without_cache(runner: PreTrainedModel) -> dict[str, bool]:
    """As in training: with a cache, FSMT does not hide later words."""
    accepted = inspect.signature(runner.forward).parameters
    return {"use_cache": False} if "use_cache" in accepted else {}


def _refuse_replaced(base: nn.Module, before: dict[str, nn.Module]) -> None:
    now = dict(base.named_modules())
    path = next((path for path in before if now.get(path) is not before[path]), None)
    if path is not None:
        raise RuntimeError(
            f"a forward replaces {path} and all that is attached there (BigBird does so at "
            "short inputs unless attention_type='original_full')"
        )
