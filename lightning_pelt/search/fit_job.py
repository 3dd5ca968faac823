"""Running a job: one Lightning fit, scored once after its last step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import fmean
from time import perf_counter

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, Timer

from lightning_pelt.attach import Attachment
from lightning_pelt.callbacks import FiniteGuard, GateMonitor, ParameterCount
from lightning_pelt.callbacks.finite_guard import NonFiniteError
from lightning_pelt.data import RowsDataModule
from lightning_pelt.plans import from_config
from lightning_pelt.search.gate_search import gate_metric
from lightning_pelt.search.isolation import isolated
from lightning_pelt.search.queue.job import Job, Outcome, ScoredOn
from lightning_pelt.search.report.wandb_run import FitRun, fit_run
from lightning_pelt.search.settings import Settings
from lightning_pelt.training.module import PELTModule

LOG_EVERY = 10  # steps, if the fits are logged
NEVER = 2**31  # epochs between validations; the only validation follows the last step


class Fitter:
    """Runs jobs one after the other; the rows of a task are read and tokenised once.

    A job's seed determines three independent seeds: of the data order, of the new weights, and of
    dropout. Two jobs with the same task and seed see the same batches in the same order and start
    with the same head. Modules at the same place start with the same weights, also if their plans
    differ elsewhere.

    Args:
        settings: of the search.
        group: gives the name of the group of W&B's runs; by default the name of the search.

    Example::

        fitter = Fitter(settings)
        outcome = fitter(Job(plan.to_config(), "sst2", seed=0))
    """

    def __init__(self, settings: Settings, group: Callable[[], str] | None = None) -> None:
        self.settings = settings
        self._group = group or (lambda: settings.name)
        self._data: dict[tuple[str, ScoredOn], RowsDataModule] = {}

    def __call__(self, job: Job) -> Outcome:
        """Fit the plan of a job and score it.

        Returns:
            The outcome; its score is None if a loss, a gradient or the metric is not finite. Its
            metrics are those of the task, the number of trained parameters and the training speed.

        Raises:
            ValueError: the settings do not have the task, or the plan does not fit the backbone.
        """
        start = perf_counter()
        settings = self.settings
        with (
            isolated(settings.threads),
            fit_run(settings.wandb, job, folder=settings.folder, group=self._group) as run,
        ):
            metrics = self._trained(job, run)
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            outcome = Outcome(self._score(job, metrics), perf_counter() - start, finite)
            if run is not None:
                run.finish(outcome)
        return outcome

    def _trained(self, job: Job, run: FitRun | None) -> dict[str, float]:
        order, weights, dropout = _seeds(job.seed)
        data = self._rows(job)
        data.seed = order
        module = self._module(job, data.labels, weights)
        torch.manual_seed(dropout)  # the seeds of all steps are drawn from this stream
        try:
            return self._fit(module, data, run)
        finally:
            _free(module, data)

    def _score(self, job: Job, metrics: dict[str, float]) -> float | None:
        """The score in points; None unless the metric and the validation loss are finite."""
        value = metrics.get(self.settings.task(job.task).monitor, math.nan)
        finite = math.isfinite(value) and math.isfinite(metrics.get("loss", math.nan))
        return 100 * value if finite else None

    def _rows(self, job: Job) -> RowsDataModule:
        key = job.task, job.scored_on
        if key not in self._data:
            share = self.settings.holdout if job.scored_on == "holdout" else None
            self._data[key] = self.settings.data(job.task, holdout=share)
        return self._data[key]

    def _module(self, job: Job, labels: list[str] | None, seed: int) -> PELTModule:
        fit = self.settings.fit
        return FitModule(
            self.settings.backbone,
            from_config(dict(job.plan)),
            self.settings.task(job.task).task,
            labels=labels,
            lr=fit.lr,
            lrs=dict(fit.lrs),
            weight_decay=fit.weight_decay,
            warmup=fit.warmup,
            base_dropout=fit.base_dropout,
            seed=seed,
        )

    def _fit(
        self, module: PELTModule, data: RowsDataModule, run: FitRun | None
    ) -> dict[str, float]:
        """Train and evaluate; of a fit that diverges, the metrics measured before."""
        every = NEVER if run is None else LOG_EVERY
        timer, gates = Timer(), GateMonitor(every, heatmap=False, table=False, over_time=False)
        callbacks: list[Callback] = [FiniteGuard(), timer]
        if any(method.gate is not None for method in module.plan.methods):
            callbacks.append(gates)
        if self.settings.trunk_cache is not None:
            callbacks.append(self.settings.trunk_cache.callback())
        if run is not None:
            callbacks += [LearningRateMonitor(), ParameterCount(table=False)]
        trainer = self._trainer(callbacks, run)
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
            **(_gates(module.attachment, gates.latest) if found else {}),
            "parameters": sum(count.trained for count in module.attachment.counts.values()),
            "steps": trainer.global_step,
            "steps_per_second": trainer.global_step / seconds if seconds else 0.0,
        }

    def _trainer(self, callbacks: list[Callback], run: FitRun | None) -> Trainer:
        """A trainer that writes no files and evaluates only on request."""
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
            logger=False if run is None else run.logger,
            log_every_n_steps=LOG_EVERY,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


class FitModule(PELTModule):
    """A module that ignores learning rates of parameter groups that its plan does not have."""

    def configure_model(self) -> None:
        super().configure_model()
        assert self.attachment is not None
        groups = self.attachment.parameter_groups()
        self.lrs = {name: lr for name, lr in (self.lrs or {}).items() if name in groups}


def _gates(attachment: Attachment, means: Mapping[str, float]) -> dict[str, float]:
    """The mean gate of each method in each block over the scored rows, as metrics."""
    found: dict[str, list[float]] = {}
    for name, mean in means.items():
        view = attachment.gates[name]
        stack, _, number = view.block.rpartition(".")
        if number.isdecimal():  # gates outside the blocks belong to no group of a design
            stack = stack or attachment.anatomy.stacks[0].name
            found.setdefault(gate_metric(stack, int(number), view.method), []).append(mean)
    return {name: fmean(values) for name, values in found.items()}


def _free(module: PELTModule, data: RowsDataModule) -> None:
    """Free the model now; its reference cycles would keep it until a later garbage collection."""
    data.trainer = None
    if module.attachment is not None:
        module.attachment.detach()
    module.model = module.attachment = None


def _seeds(seed: int) -> list[int]:
    """Three independent seeds: of the data order, of the new weights, and of dropout."""
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(3)]
