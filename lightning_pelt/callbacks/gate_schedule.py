"""Open, close, hold and slow the methods of a plan while it trains."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn
from torch.optim import Optimizer

from lightning_pelt.attach import Attachment
from lightning_pelt.callbacks._pruning import Pruning
from lightning_pelt.callbacks._rates import LentRates
from lightning_pelt.callbacks._reading import GateMeans, attachment_of, log_scalars, logging_step
from lightning_pelt.errors import unknown
from lightning_pelt.schedule import Phase, Setting, Unit, evaluate, validate


class GateSchedule(Callback):
    """Give every method its phases, and close for good what its own gate does not want.

    Nothing here changes what is trainable or which parameters the optimizer holds, so a schedule
    is safe under DDP and resumes exactly: openness is a buffer of the gates, a held method loses
    its gradients right before the optimizer's step, and a learning-rate factor is lent to the
    method's parameter group for the length of that step only.

    Args:
        phases: the phases of each method, in order; methods not named stay open and free. ``head``
            and ``gate`` (all gates' weights) can be held or slowed too, but have no openness. A
            method's factor applies to its own weights; its gates learn at the rate of ``gate``.
        unit: whether the phases' ``until`` counts ``epoch`` or (optimizer) ``step``.
        prune_below: close a gated submodule for good once its mean gate over the validation data
            stays under this. Only validations during which its method is fully open count.
        prune_after: after how many such validations in a row.

    Raises:
        ValueError: when built, for phases that contradict themselves; at the start of fit, for a
            method that the plan lacks, a method without gates that is asked to close, and an
            optimizer whose groups cannot give a method a learning rate of its own.

    Example::

        # the prefix joins late, the adapter at half its learning rate once it has
        GateSchedule(
            {
                "prefix": [Phase(until=1, state="closed"), Phase(until=3, state="ramp")],
                "adapter": [Phase(until=3), Phase(lr_factor=0.5)],
            },
            prune_below=0.05,
        )
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
        self.phases = {m: [Phase.of(p) for p in given] for m, given in (phases or {}).items()}
        for method, given in self.phases.items():
            validate(method, given)
        self.unit: Unit = unit
        self._pruning = Pruning(prune_below, prune_after)
        self._settings: dict[str, Setting] = {}
        self._attachment: Attachment | None = None
        self._means: GateMeans | None = None
        self._rates = LentRates(self._factor)

    @property
    def pruned(self) -> list[str]:
        """The names of the gates that are closed for good, in the order in which they were."""
        return self._pruning.closed

    # -- the plan and the optimizer are known: refuse what cannot work ------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attachment = attachment = attachment_of(pl_module, self)
        for method, phases in self.phases.items():
            _check_method(attachment, method, phases)
        slowed = [m for m, given in self.phases.items() if any(p.lr_factor != 1.0 for p in given)]
        if slowed:
            self._rates.install(trainer.optimizers, attachment, slowed)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._apply(trainer, batch_idx=0, anew=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What a checkpoint restored into the gates may differ from what they believe to hold.
        self._apply(trainer, batch_idx=0, anew=True)

    # -- every step ---------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._apply(trainer, batch_idx)
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
        assert self._attachment is not None
        for method, setting in self._settings.items():
            if setting.held:
                for parameter in _parameters(self._attachment, method):
                    parameter.grad = None  # a zero gradient would still move AdamW

    def _apply(self, trainer: Trainer, batch_idx: int, anew: bool = False) -> None:
        assert self._attachment is not None
        batches = trainer.num_training_batches
        epoch = trainer.current_epoch + batch_idx / batches  # 0 of a stream without a length
        self._settings = {
            method: evaluate(phases, step=trainer.global_step, epoch=epoch, unit=self.unit)
            for method, phases in self.phases.items()
        }
        pruned = set(self.pruned)
        for gate in self._attachment.gates.values():
            if gate.name in pruned:
                openness = 0.0
            elif gate.method in self._settings:
                openness = self._settings[gate.method].open
            else:
                continue
            if anew or gate.open != openness:
                gate.set_open(openness)

    def _setting(self, method: str) -> Setting:
        return self._settings.get(method, Setting())

    def _factor(self, method: str) -> float:
        return self._setting(method).lr_factor

    # -- pruning ------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counts = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        self._means = None
        if self._pruning.below is not None and counts and self._attachment is not None:
            self._means = GateMeans(self._attachment.gates.values(), pl_module.device)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self._means is not None:
            self._means.update()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before ModelCheckpoint saves, which it does at the validation's very end.
        if self._means is None:
            return
        assert self._attachment is not None
        gates = self._attachment.gates
        means, self._means = self._means.compute(trainer), None
        # The mean of a gate that the schedule holds down says what the schedule wants.
        own = {n: m for n, m in means.items() if self._setting(gates[n].method).open == 1.0}
        for name in self._pruning.judge(own):
            gates[name].set_open(0.0)
            rank_zero_info(
                f"GateSchedule closes {name} for good: its mean gate, now {means[name]:.4f}, was "
                f"below {self._pruning.below} in {self._pruning.after} validations in a row."
            )
        log_scalars(trainer, {"schedule/pruned": float(len(self.pruned))})

    # -- leaving, and coming back -------------------------------------------------------------

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave()

    def _leave(self) -> None:
        self._rates.remove()
        self._attachment = self._means = None

    def state_dict(self) -> dict[str, Any]:
        return self._pruning.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._pruning.load_state_dict(state_dict)


def _check_method(attachment: Attachment, method: str, phases: list[Phase]) -> None:
    groups = attachment.parameter_groups()
    names = dict.fromkeys([*attachment.counts, *groups])
    if method not in names:
        raise unknown("method in a schedule", method, names)
    own = [m for m in attachment.plan.methods if m.name == method]
    gated = bool(own) and all(m.gate is not None for m in own)
    if not gated and any(phase.state != "open" for phase in phases):
        raise ValueError(
            f"{method!r} has no gates{' in some blocks' if len(own) > 1 else ''}, so a schedule "
            "can neither close nor ramp it, only hold or slow it: give the method gate=Gate(), or "
            "gate=Gate(learned=False) for one that only schedules move"
        )


def _parameters(attachment: Attachment, method: str) -> list[nn.Parameter]:
    if method in attachment.counts:
        return attachment.parameters_of(method)
    return attachment.parameter_groups().get(method, [])
