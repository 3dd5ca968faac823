"""Open, close and hold the methods of a plan in training, and scale their learning rates."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.optim import Optimizer

from lightning_pelt.callbacks._attached import Attached, attached_to
from lightning_pelt.callbacks._gate_means import GateMeans, log_scalars, logging_step
from lightning_pelt.callbacks._lr_factor import LRFactor
from lightning_pelt.callbacks._pruning import Pruning
from lightning_pelt.callbacks._schedule_checks import check_method, check_pruning
from lightning_pelt.training.copies import share_openness
from lightning_pelt.training.phases import MethodSetting, Phase, Unit, evaluate, validate
from lightning_pelt.training.position import validation_is_scheduled
from lightning_pelt.utils.errors import unknown


class GateSchedule(Callback):
    """Schedule the methods of a plan in phases, and prune submodules whose gates stay closed.

    A schedule changes neither which parameters are trainable nor the optimizer's groups, so it is
    safe under DDP and resumes exactly. Openness is a buffer of the gates, the gradients of a held
    method are dropped before the optimizer's step, and a learning-rate factor applies to the
    method's parameter group only during that step.

    Args:
        phases: the phases of each method, in order. Other methods stay open and are not held.
            ``head`` and ``gate`` (the weights of all gates) can be held or scaled too, but have no
            openness. The factor of a method applies to its own weights; its gates have the learning
            rate of ``gate``.
        unit: the unit of ``until`` in the phases: ``epoch`` or (optimizer) ``step``.
        prune_below: close a gated submodule permanently when its mean gate over the validation data
            stays below this. Only validations in which its method is fully open count.
        prune_after: number of such consecutive validations.

    Raises:
        ValueError: on construction, for phases that are not in order; at the start of fit, for a
            method that the plan lacks, for closing or pruning without gates, and for an optimizer
            that has no separate group for a method with a learning-rate factor.

    Example:
        The prefix joins during epochs 2 and 3; then the adapter trains at half its learning rate.

        >>> from lightning_pelt import GateSchedule, Phase
        >>> schedule = GateSchedule(
        ...     {
        ...         "prefix": [Phase(until=1, state="closed"), Phase(until=3, state="ramp")],
        ...         "adapter": [Phase(until=3), Phase(lr_factor=0.5)],
        ...     },
        ...     prune_below=0.05,
        ... )
        >>> schedule.pruned
        []
    """

    def __init__(
        self,
        phases: dict[str, list[Phase]] | None = None,
        unit: Unit = "epoch",
        prune_below: float | None = None,
        prune_after: int = 3,
    ) -> None:
        if unit not in ("epoch", "step"):
            raise unknown("unit of a schedule", unit, ("epoch", "step"))
        self.phases = {
            m: [Phase.from_config(p) for p in given] for m, given in (phases or {}).items()
        }
        for method, given in self.phases.items():
            validate(method, given)
        self.unit: Unit = unit
        self._pruning = Pruning(prune_below, prune_after)
        self._settings: dict[str, MethodSetting] = {}
        self._counted = 0  # batches of the run before the last validation that pruning counted
        self._has_run = False
        self._attached: Attached | None = None
        self._means: GateMeans | None = None
        self._rates = LRFactor(self._factor)

    @property
    def pruned(self) -> list[str]:
        """The names of the permanently closed gates, in the order of closing."""
        return self._pruning.closed

    # -- the start of a fit -------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attached = attached = attached_to(pl_module, self)
        if self._has_run and trainer.global_step == 0:
            self._forget_run(attached)
        self._has_run = True
        for method, phases in self.phases.items():
            check_method(attached, method, phases)
        share_openness(trainer, pl_module, (gate.layer for gate in attached.gates.values()))
        if self._pruning.below is not None:
            check_pruning(attached, self._pruning.below, trainer)
        scaled = [m for m, given in self.phases.items() if any(p.lr_factor != 1.0 for p in given)]
        if scaled:
            self._rates.install(trainer.optimizers, attached.parameter_groups(), scaled)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluate(trainer, batch_idx=0)
        self._apply(force=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A resumed run may begin with the validation after its last batch, in that batch's setting.
        before = {m: setting for m, setting in self._settings.items() if m in self.phases}
        self._evaluate(trainer, batch_idx=0)
        self._settings |= before
        # A strategy may restore the buffers of the gates without their load hooks.
        self._apply(force=True)

    # -- every step ---------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._evaluate(trainer, batch_idx)
        self._apply()
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.phases and every and logging_step(trainer) % every == 0:
            log_scalars(
                trainer,
                {
                    f"schedule/{method}/{name}": value
                    for method, setting in self._settings.items()
                    for name, value in (("open", setting.open), ("lr_factor", setting.lr_factor))
                },
            )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        assert self._attached is not None
        for method, setting in self._settings.items():
            if setting.held:
                for parameter in self._attached.parameters_of(method):
                    parameter.grad = None  # a zero gradient would still move AdamW

    def _evaluate(self, trainer: Trainer, batch_idx: int) -> None:
        batches = trainer.num_training_batches
        epoch = trainer.current_epoch + batch_idx / batches  # batches is inf for a stream
        self._settings = {
            method: evaluate(phases, step=trainer.global_step, epoch=epoch, unit=self.unit)
            for method, phases in self.phases.items()
        }

    def _apply(self, force: bool = False) -> None:
        """Set the openness of gates whose setting changed; with force, of all."""
        assert self._attached is not None
        pruned = set(self.pruned)
        for name, gate in self._attached.gates.items():
            if name in pruned:
                openness = 0.0
            elif gate.method in self._settings:
                openness = self._settings[gate.method].open
            else:
                continue
            if force or gate.open != openness:
                gate.set_open(openness)

    def _setting(self, method: str) -> MethodSetting:
        return self._settings.get(method, MethodSetting())

    def _factor(self, method: str) -> float:
        return self._setting(method).lr_factor

    # -- pruning ------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        self._means = None
        if self._pruning.below is None or self._attached is None or not fitting:
            return
        # A run that is interrupted and resumed counts the validations of one that is not.
        if validation_is_scheduled(trainer) and _batches(trainer) != self._counted:
            self._means = GateMeans(self._attached.gates, pl_module.device)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        if self._means is not None:
            self._means.update(batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # ModelCheckpoint saves later, at the end of the validation.
        if self._means is None:
            return
        assert self._attached is not None
        gates = self._attached.gates
        means, self._means = self._means.compute(trainer), None
        self._counted = _batches(trainer)
        # While the schedule lowers a gate, its mean does not show what the gate has learned.
        counted = {n: m for n, m in means.items() if self._setting(gates[n].method).open == 1.0}
        for name in self._pruning.update(counted):
            gates[name].set_open(0.0)
            rank_zero_info(
                f"GateSchedule closes {name} permanently: its mean gate, now {means[name]:.4f}, "
                f"was below {self._pruning.below} in {self._pruning.after} consecutive validations."
            )
        log_scalars(trainer, {"schedule/pruned": float(len(self.pruned))})

    # -- the end of a fit, and checkpoints ----------------------------------------------------

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._reset()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._reset()

    def _reset(self) -> None:
        self._rates.remove()
        self._attached = self._means = None

    def _forget_run(self, attached: Attached) -> None:
        """Start a new run: another model has its gates open, the same one those that are."""
        self._settings, self._counted = {}, 0
        self._pruning.restart(n for n, gate in attached.gates.items() if gate.open == 0.0)

    def state_dict(self) -> dict[str, Any]:
        settings = {method: asdict(setting) for method, setting in self._settings.items()}
        return {**self._pruning.state_dict(), "counted": self._counted, "settings": settings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._pruning.load_state_dict(state_dict)
        self._counted = state_dict.get("counted", 0)
        self._settings = {m: MethodSetting(**s) for m, s in state_dict.get("settings", {}).items()}
        self._has_run = False


def _batches(trainer: Trainer) -> int:
    """Number of complete batches since the start of training."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
