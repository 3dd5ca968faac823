"""The trial of a plan: one forward after it was built, so that no user's batch is the first."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import StandIns, tried_inputs, undisturbed
from lightning_pelt.anatomy.dummy_inputs import one_thread, rows_of
from lightning_pelt.anatomy.structure import Remembered, functions_of, plain_data
from lightning_pelt.attach.builder import CHILD, Built
from lightning_pelt.methods._kept import forget
from lightning_pelt.methods.submodule import Submodule
from lightning_pelt.plans.plan import Plan

# The functions of the submodules with which a model has run, by its structure and the plan.
RAN: Remembered[Hashable] = Remembered()


def build_and_try(
    model: PreTrainedModel,
    plan: Plan,
    build: Callable[[], Built],
    inputs: dict[str, Tensor] | None,
    *,
    stand_ins: StandIns,
) -> Built:
    """Build a plan, and run the model on it once, in eval mode and without gradients.

    A model on the meta device runs on stand-ins of its weights. One whose structure has run with an
    equal plan before does not run again.

    Args:
        model: the model that ``build`` changes. Its modes, its gradients and the global random
            state stay as they are.
        plan: the plan.
        build: puts the plan on the model.
        inputs: example inputs of the model; None for dummy inputs.
        stand_ins: of the model.

    Raises:
        ValueError: the model runs on the inputs without the plan only. The message names the
            site; the model is then as it was.
    """
    known = _known(plan, stand_ins) if inputs is None else None
    if (functions := RAN.get(known)) is not None:
        built = build()
        if _functions(built) == functions:
            return built
        _undo(built)
    with stand_ins:
        for runner, given in tried_inputs(model, inputs):
            with stand_ins.suspended():  # methods may read the weights
                built = build()
            try:
                with one_thread(), stand_ins.beside(_submodules(built)):
                    error = _error(runner, given, built)
                where = "" if error is None else _site(model, error)
            except BaseException:
                _undo(built)
                raise
            if error is None:
                RAN.put(known, _functions(built))
                return built
            _undo(built)
            if _error(runner, given, Built()) is None:
                raise ValueError(
                    f"the plan cannot be attached to {where} of {type(model).__name__}: a forward "
                    f"fails there with {type(error).__name__}: {error}. Leave the site out with "
                    "sites=..., or leave out the method"
                ) from error
    return build()  # the model does not run on these inputs either, so they tell nothing


def _known(plan: Plan, stand_ins: StandIns) -> Hashable:
    """The model and the plan as a key; None if they cannot be told from others."""
    data = plain_data([type(plan), vars(plan)])
    if stand_ins.structure is None or data is None:
        return None
    return stand_ins.structure, data, functions_of([type(plan), *map(type, plan.methods)])


def _submodules(built: Built) -> list[Submodule]:
    return [module for modules in built.submodules.values() for module in modules]


def _functions(built: Built) -> Hashable:
    layers = [gate.layer for gate in built.gates.values()]
    return functions_of(
        type(inner) for each in [*_submodules(built), *layers] for inner in each.modules()
    )


def _error(runner: PreTrainedModel, inputs: dict[str, Any], built: Built) -> Exception | None:
    """The error of a forward; None if there is none, or nothing was built."""
    submodules = _submodules(built)
    try:
        with torch.no_grad(), undisturbed(runner), ExitStack() as context:
            for submodule in submodules:
                context.enter_context(submodule.trial(rows_of(inputs)))
            runner(**inputs)
    except Exception as error:
        return error
    finally:
        for gate in built.gates.values():
            gate.layer.last = None  # as if there had been no forward
        forget(submodules)
    return None


def _undo(built: Built) -> None:
    for change in built.undo:
        change.remove()


def _site(model: PreTrainedModel, error: Exception) -> str:
    """Path of the innermost module of ``model`` in which ``error`` arose, without submodules."""
    names = {module: name for name, module in model.named_modules()}
    found = [names[module] for module in _running(error.__traceback__) if module in names]
    ours = [name for name in found if CHILD in name.split(".")]
    name = (ours or found or [""])[-1]
    return name.split(f".{CHILD}.")[0] or "the root"


def _running(traceback: TracebackType | None) -> Iterator[nn.Module]:
    """The modules whose methods are in a traceback, the outermost first."""
    while traceback is not None:
        module = traceback.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            yield module
        traceback = traceback.tb_next
