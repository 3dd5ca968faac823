"""Running a model on its candidates, until one runs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.anatomy.dummy_inputs.candidates import Candidate, Inputs, base_of, candidates
from lightning_pelt.anatomy.dummy_inputs.noise import ones
from lightning_pelt.anatomy.dummy_inputs.part import tower
from lightning_pelt.anatomy.dummy_inputs.running import on, rows_of, undisturbed

Result = TypeVar("Result")
SHOWN = 4  # failures in a message


def first_that_runs(model: PreTrainedModel, run: Callable[[Inputs], Result]) -> tuple[Result, bool]:
    """The result of ``run`` on the first candidate of ``model`` on which it raises nothing.

    And whether that is the first of all. Else a warning names the towers that are left out.

    Raises:
        ValueError: every candidate fails; the message names them and their errors.
    """
    failed: dict[str, str] = {}  # the first inputs that failed for each reason
    left_out: dict[str, str] = {}
    first: Exception | None = None
    for candidate in _known(model):
        try:
            result = run(candidate.make())
        except Exception as error:
            first = first or error
            reason = f"{type(error).__name__}: {_first_line(error)}"
            failed.setdefault(reason, str(candidate) or "no inputs")
            left_out = dict.fromkeys(candidate.given, reason) | left_out
            continue
        _tell_left_out(model, {n: left_out[n] for n in left_out if n not in candidate.given})
        return result, not failed
    listed = [f"{inputs} with {reason}" for reason, inputs in failed.items()][:SHOWN]
    raise cannot_be_examined(model, f"a dummy input: {'; '.join(listed)}") from first


def _known(model: PreTrainedModel) -> list[Candidate]:
    try:
        return candidates(model)
    except Exception as error:  # an entry of the configuration may be of another type
        failure = f"making a dummy input, {type(error).__name__}: {_first_line(error)}"
        raise cannot_be_examined(model, failure) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _tell_left_out(model: PreTrainedModel, reasons: Mapping[str, str]) -> None:
    """Warn of arguments for which the model has a tower that did not run."""
    for name, reason in reasons.items():
        if tower(model, name).module is not model:
            warnings.warn(
                f"{type(model).__name__} is examined without {name}, since it failed on a dummy "
                f"input with it ({reason}). Nothing is attached to what reads it: give inputs that "
                "it runs on, attach(..., example_inputs={...})",
                stacklevel=2,
            )
            return


def cannot_be_examined(model: PreTrainedModel, failure: str) -> ValueError:
    """The error of a model that does not run, with the remedy."""
    return ValueError(
        f"{type(model).__name__} cannot be examined: it failed on {failure}. Give it inputs that "
        "it runs on, attach(..., example_inputs={...}), or attach to the transformer inside it, "
        "by its path."
    )


def dummy_inputs(model: PreTrainedModel) -> Inputs:
    """The smallest inputs that run ``model``, from a fixed seed.

    Raises:
        ValueError: none of those that are known does; the message names them and their errors.
    """

    def run(inputs: Inputs) -> Inputs:
        with torch.no_grad(), undisturbed(model):
            model(**inputs)
        return inputs

    return first_that_runs(model, run)[0]


def tried_inputs(
    model: PreTrainedModel, inputs: dict[str, Tensor] | None
) -> Iterator[tuple[PreTrainedModel, dict[str, Any]]]:
    """What to run to try a changed ``model``, and on what, the most telling first.

    By default two equal rows, the second with padding, then the one row that the model was examined
    on. Patches behind each other, which are no rows, are not doubled.

    Args:
        model: a whole model.
        inputs: its example inputs; None for the dummy inputs of its base.
    """
    if inputs is not None:
        yield model, on(model, inputs)
        return
    base = base_of(model)
    for candidate in candidates(base):
        try:
            single = candidate.make()
        except Exception:
            continue  # a tower does not run on it
        if all(len(tensor) == rows_of(single) for tensor in single.values()):
            yield base, _doubled(base, single)
        yield base, single


def _doubled(base: PreTrainedModel, single: Inputs) -> Inputs:
    double = {name: torch.cat([tensor, tensor]) for name, tensor in single.items()}
    if "input_ids" in single and "attention_mask" in inspect.signature(base.forward).parameters:
        double["attention_mask"] = ones(*double["input_ids"].shape[:2])
        double["attention_mask"][1, -1] = 0
    return on(base, double)
