"""Fitting: one cell of a search is one Lightning fit like any other."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from time import perf_counter
from typing import TypeVar

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer

from lightning_pelt.attach import Attachment
from lightning_pelt.callbacks import FiniteGuard, GateMonitor
from lightning_pelt.callbacks.finite_guard import NonFiniteError
from lightning_pelt.data import TextDataModule
from lightning_pelt.method import Method, Part, Place
from lightning_pelt.module import PELTModule
from lightning_pelt.plan import Plan, from_config
from lightning_pelt.search.cell import Cell, Judge, Outcome
from lightning_pelt.search.gates import gate_metric
from lightning_pelt.search.settings import Settings
from lightning_pelt.search.undisturbed import undisturbed

NEVER = 2**31  # epochs until a validation: there is one, after the last step
M = TypeVar("M", bound=Method)


class Fitter:
    """Fits cells, one after the other; the rows of a task are read and tokenised once.

    The seed of a cell makes three independent seeds: of the order of the data, of new weights, and
    of dropout. Two cells of one task and seed see the same batches in the same order and start with
    the same head, whatever their plans; modules at the same place start with the same numbers.

    Args:
        settings: of the search.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._data: dict[tuple[str, Judge], TextDataModule] = {}

    def __call__(self, cell: Cell) -> Outcome:
        """Fit and score a cell, once, after its last step.

        Returns:
            The outcome; without a score if a loss, a gradient or the metric is not finite. Its
            metrics are those of the task, the parameters trained, and the speed of training.

        Raises:
            ValueError: the task is not in the settings, or the plan does not fit the backbone.
        """
        start = perf_counter()
        with undisturbed(self.settings.threads):
            order, weights, dropout = _seeds(cell.seed)
            data = self._rows(cell)
            data.seed = order
            module = self._module(cell, data.labels, weights)
            torch.manual_seed(dropout)  # where the seeds of all steps come from
            try:
                metrics = self._fit(module, data)
            finally:
                _let_go(module, data)
        score = self._score(cell, metrics)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return Outcome(score, perf_counter() - start, finite)

    def _score(self, cell: Cell, metrics: dict[str, float]) -> float | None:
        """In points; None unless the metric and the loss of the scored rows are finite."""
        value = metrics.get(self.settings.task(cell.task).monitor, math.nan)
        good = math.isfinite(value) and math.isfinite(metrics.get("loss", math.nan))
        return 100 * value if good else None

    def _rows(self, cell: Cell) -> TextDataModule:
        which = cell.task, cell.judge
        if which not in self._data:
            share = self.settings.holdout if cell.judge == "holdout" else None
            self._data[which] = self.settings.data(cell.task, holdout=share)
        return self._data[which]

    def _module(self, cell: Cell, labels: list[str] | None, seed: int) -> PELTModule:
        fit = self.settings.fit
        return CellModule(
            self.settings.backbone,
            from_config(dict(cell.plan)),
            self.settings.task(cell.task).task,
            labels=labels,
            lr=fit.lr,
            lrs=dict(fit.lrs),
            weight_decay=fit.weight_decay,
            warmup=fit.warmup,
            base_dropout=fit.base_dropout,
            seed=seed,
        )

    def _fit(self, module: PELTModule, data: TextDataModule) -> dict[str, float]:
        """Train and evaluate; what was measured until it came to no number."""
        timer, gates = Timer(), GateMonitor(NEVER, heatmap=False, table=False)
        gated = any(method.gate is not None for method in module.plan.methods)
        trainer = self._trainer([FiniteGuard(), timer, *([gates] if gated else [])])
        found: dict[str, float] = {}
        try:
            trainer.fit(module, datamodule=data)
            seen = trainer.validate(module, datamodule=data, verbose=False)[0]
            found = {name.removeprefix("val/"): value for name, value in seen.items()}
        except NonFiniteError:
            pass
        assert module.attachment is not None
        seconds = timer.time_elapsed("train")
        return {
            **found,
            **_gates(module.attachment, gates.latest),
            "parameters": sum(count.trained for count in module.attachment.counts.values()),
            "steps": trainer.global_step,
            "steps_per_second": trainer.global_step / seconds if seconds else 0.0,
        }

    def _trainer(self, callbacks: list[Callback]) -> Trainer:
        """One that writes nothing down, and evaluates when it is asked to."""
        fit = self.settings.fit
        return Trainer(
            accelerator=self.settings.accelerator,
            devices=self.settings.devices,
            precision=self.settings.precision,  # type: ignore[arg-type]
            max_epochs=fit.max_epochs,
            max_steps=-1 if fit.max_steps is None else fit.max_steps,
            gradient_clip_val=fit.gradient_clip_val,
            check_val_every_n_epoch=NEVER,
            num_sanity_val_steps=0,
            deterministic="warn",
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


class CellModule(PELTModule):
    """Learning rates of methods that the plan lacks are left aside; weights start by their place.

    Where a plan has more modules than another, each module still starts with the numbers that it
    would have had there: they are drawn by its path and not from one stream for all.
    """

    def configure_model(self) -> None:
        fresh = self.model is None
        if fresh:
            self.plan = paired(self.plan, self.seed)
        super().configure_model()
        if fresh:
            assert self.attachment is not None
            groups = self.attachment.parameter_groups()
            self.lrs = {name: lr for name, lr in (self.lrs or {}).items() if name in groups}


def _gates(attachment: Attachment, means: Mapping[str, float]) -> dict[str, float]:
    """The mean gate of each method in each block over the scored rows, as ``gates`` reads it."""
    found: dict[str, list[float]] = {}
    for name, mean in means.items():
        view = attachment.gates[name]
        stack, _, number = view.block.rpartition(".")
        if number.isdecimal():  # gates outside the blocks are in no group of a design
            stack = stack or attachment.anatomy.stacks[0].name
            found.setdefault(gate_metric(stack, int(number), view.method), []).append(mean)
    return {name: fmean(values) for name, values in found.items()}


def paired(plan: Plan, seed: int) -> Plan:
    """``plan``, whose modules draw their first weights by ``seed`` and their own path."""
    alike = copy.copy(plan)
    alike.groups = tuple(
        replace(group, methods=tuple(_by_place(method, seed) for method in group.methods))
        for group in plan.groups
    )
    return alike


def _by_place(method: M, seed: int) -> M:
    """A copy of ``method`` that seeds torch's generator before it builds at a place."""
    alike = copy.copy(method)

    def build(place: Place) -> list[Part]:
        sites = " ".join(f"{site.path}:{site.label}" for site in place.sites)
        where = zlib.crc32(f"{method.name} {sites}".encode())
        words = np.random.SeedSequence([seed, where]).generate_state(1, np.uint64)
        torch.default_generator.manual_seed(int(words[0]))
        return method.build(place)

    object.__setattr__(alike, "build", build)  # the dataclass is frozen; its fields stay the same
    return alike


def _let_go(module: PELTModule, data: TextDataModule) -> None:
    """Free the model now: in its cycles it would stay until Python looks for such, cells later."""
    data.trainer = None
    if module.attachment is not None:
        module.attachment.detach()
    module.model = module.attachment = None


def _seeds(seed: int) -> list[int]:
    """Three independent seeds: of the data's order, of new weights, and of dropout."""
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(3)]
