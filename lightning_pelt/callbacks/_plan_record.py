"""Checkpoints that hold their plans, so that ``YourModule.load_from_checkpoint`` attaches them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import instantiate_module
from torch import Tensor

from lightning_pelt.attach import Attachment, attach
from lightning_pelt.plans import Plan, from_config

KEY = "lightning_pelt"  # of the record in a checkpoint
INSTANTIATORS = ("instantiate_with_plan", "instantiate_with_plan_by_cli")


def attach_and_record(
    module: LightningModule,
    plan: Plan,
    *,
    path: str | None,
    head: Sequence[str] | None,
    seed: int,
    example_inputs: dict[str, Tensor] | None,
) -> Attachment:
    """Attach a plan, and have the checkpoints of ``module`` hold it until it is detached.

    The arguments are those of :func:`lightning_pelt.attach`.
    """
    attachment = attach(
        module, plan, seed=seed, path=path, head=head, example_inputs=example_inputs
    )
    record: Any = getattr(module.on_save_checkpoint, "__self__", None)
    if not isinstance(record, _Record):
        record = _Record(module)
        module.on_save_checkpoint = record.on_save_checkpoint  # type: ignore[method-assign]
    if path not in record.entries:
        attachment.undo = [*attachment.undo, _Entry(record, path)]
    entry = {"path": path, "plan": plan.to_config(), "head": None if head is None else list(head)}
    if example_inputs is not None:
        entry["example_inputs"] = {name: x.detach().cpu() for name, x in example_inputs.items()}
    record.entries[path] = entry
    return attachment


class _Record:
    """Replaces ``on_save_checkpoint`` of a module.

    Callbacks do not see a checkpoint that holds only weights, but the hook of the module does. The
    replacement is a bound method, so that copies of the module copy it.

    Attributes:
        entries: path, plan, head and perhaps example inputs of each model, by path.
    """

    def __init__(self, module: LightningModule) -> None:
        self.module, self.original = module, module.on_save_checkpoint
        self.entries: dict[str | None, dict[str, Any]] = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.original(checkpoint)
        checkpoint[KEY] = list(self.entries.values())
        _name_instantiator(type(self.module), checkpoint)


class _Entry:
    """A plan in a record. ``remove`` is called when the plan is detached."""

    def __init__(self, record: _Record, path: str | None) -> None:
        self.record, self.path = record, path

    def remove(self) -> None:
        self.record.entries.pop(self.path, None)
        if not self.record.entries:
            self.record.module.__dict__.pop("on_save_checkpoint", None)


def _name_instantiator(cls: type[LightningModule], checkpoint: dict[str, Any]) -> None:
    """Name the function that builds the module in ``load_from_checkpoint``."""
    key = cls.CHECKPOINT_HYPER_PARAMS_KEY
    parameters = checkpoint.get(key, {})
    if type(parameters) is not dict:  # a container of OmegaConf
        return
    one = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_NAME)
    if one in signature(cls.__init__).parameters:  # the one argument that holds all of them
        parameters = {one: parameters}
        del checkpoint[cls.CHECKPOINT_HYPER_PARAMS_NAME]
    name = INSTANTIATORS["_instantiator" in parameters]  # written by LightningCLI
    checkpoint[key] = {**parameters, "_instantiator": f"lightning_pelt.callbacks.{name}"}


def instantiate_with_plan(cls: type[LightningModule], arguments: dict[str, Any]) -> Any:
    """Build a module that attaches the plans of a checkpoint before it loads the weights.

    A checkpoint of ``PELTCallback`` names this function, and ``load_from_checkpoint`` calls it.
    """
    return _attach_on_load(cls(**arguments))


def instantiate_with_plan_by_cli(cls: type[LightningModule], arguments: dict[str, Any]) -> Any:
    """The same for a module whose hyperparameters LightningCLI has written."""
    return _attach_on_load(instantiate_module(cls, arguments))


def trust_instantiators() -> None:
    """Enter the functions above into the list of what Lightning lets a checkpoint name."""
    for package in ("lightning.pytorch", "pytorch_lightning"):  # one library under two names
        saving = sys.modules.get(f"{package}.core.saving")
        trusted: Any = getattr(saving, "_ALLOWED_INSTANTIATORS", None)
        if trusted is not None:
            trusted.update(f"lightning_pelt.callbacks.{name}" for name in INSTANTIATORS)


def _attach_on_load(module: LightningModule) -> LightningModule:
    module.on_load_checkpoint = _Loading(module).on_load_checkpoint  # type: ignore[method-assign]
    return module


class _Loading:
    """Replaces ``on_load_checkpoint`` of a new module for one call."""

    def __init__(self, module: LightningModule) -> None:
        self.module = module

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        del self.module.__dict__["on_load_checkpoint"]
        for plan, where in _entries(checkpoint):
            attach_and_record(self.module, plan, seed=0, **where)
        self.module.on_load_checkpoint(checkpoint)


def _entries(checkpoint: Mapping[str, Any]) -> list[tuple[Plan, dict[str, Any]]]:
    """The plan of every model, and the arguments that say where and how it is attached.

    Raises:
        ValueError: the record is missing or damaged.
    """
    record = checkpoint.get(KEY)
    try:
        return [
            (
                from_config(entry["plan"]),
                {
                    "path": entry["path"],
                    "head": entry["head"],
                    "example_inputs": entry.get("example_inputs"),
                },
            )
            for entry in record  # type: ignore[union-attr]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the checkpoint has {KEY}={record!r}, expected the path, plan and head of each model "
            "as PELTCallback writes them: the file is damaged"
        ) from error
