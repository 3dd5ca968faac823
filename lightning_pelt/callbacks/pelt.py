"""``PELTCallback``: attaches a plan to the model inside any LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_pelt.attach import attachment_of, find_attachment, find_model
from lightning_pelt.attach.state_dict_hooks import refuse_other_plan
from lightning_pelt.callbacks._left_alone import tell_left_alone
from lightning_pelt.callbacks._main_process import attach_before_loading
from lightning_pelt.callbacks._plan_record import attach_and_record, trust_instantiators
from lightning_pelt.plans import Plan
from lightning_pelt.plans.require import require_plan
from lightning_pelt.training.checkpoint_io import write_whole_files
from lightning_pelt.training.copies import copy_again
from lightning_pelt.training.fsdp1 import prepare_fsdp1
from lightning_pelt.training.learning_check import LearningCheck
from lightning_pelt.training.lengths import LengthGuard
from lightning_pelt.training.packed_batches import PackedGuard
from lightning_pelt.training.param_groups import make_portable
from lightning_pelt.training.quantised_base import keep_from_broadcasts
from lightning_pelt.training.ranks import data_rank
from lightning_pelt.training.resume import Resume
from lightning_pelt.training.step_seed import StepSeed
from lightning_pelt.training.strategy_checks import check_copies, check_strategy
from lightning_pelt.training.tuners import refuse_finder_on_resume


class PELTCallback(Callback):
    """Freezes the Hugging Face model inside any LightningModule and attaches a plan to it.

    Nothing else in the module changes: its heads, losses and ``configure_optimizers`` stay as they
    are. In ``configure_optimizers`` the submodules require gradients and the base does not.
    Checkpoints leave the frozen base out and restore without it. torch's generators are seeded
    before every training batch, so that a resumed run draws the same random numbers.

    With the data modules of this package, or a loader whose ``state_dict`` holds its position, a
    run resumes at any step. Other loaders start again with their first batch, so that a run resumes
    exactly only at the end of an epoch; if they shuffle without ``set_epoch``, in another order.

    The plan is attached after the module's own ``configure_model``, before a strategy wraps the
    module, and stays attached until ``detach`` or ``merge``. A later trainer attaches what its own
    callbacks say. ``YourModule.load_from_checkpoint`` attaches the plan of a checkpoint.

    A module with several Hugging Face models takes one callback for each, with its ``path``.
    Models that no callback names are left as they are.

    Args:
        plan: what is attached where.
        path: of the Hugging Face model in the module, needed if there are several.
        head: modules of the Hugging Face model to train; by default a newly initialized head.
        base_dropout: whether the dropout of the frozen base is active in training.
        seed: of the new weights.
        example_inputs: keyword arguments of the Hugging Face model, such as a small batch, for
            models that need other inputs than a few words, an image or a short sound. Checkpoints
            hold them.

    Raises:
        ValueError: ``plan`` is not a plan; in a run, the plan does not fit the model, the model has
            another plan, or there are several models and ``path`` is None.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_pelt import GateMonitor, PELTCallback, UniPELT
        >>> callbacks = [PELTCallback(UniPELT()), GateMonitor()]
        >>> trainer = Trainer(callbacks=callbacks, logger=False)
        >>> trainer.fit(your_module, datamodule)  # doctest: +SKIP
    """

    def __init__(
        self,
        plan: Plan,
        *,
        path: str | None = None,
        head: Sequence[str] | None = None,
        base_dropout: bool = True,
        seed: int = 0,
        example_inputs: dict[str, Tensor] | None = None,
    ) -> None:
        self.plan, self.path, self.head = require_plan(plan), path, head
        self.base_dropout, self.seed, self.example_inputs = base_dropout, seed, example_inputs
        self.step_seed, self.resume, self.learning = StepSeed(), Resume(), LearningCheck()
        self.lengths, self.packed = LengthGuard(), PackedGuard()
        trust_instantiators()
        attach_before_loading(attach_in_main_process)

    @property
    def state_key(self) -> str:
        """One key for each model of a module."""
        return super().state_key if self.path is None else self._generate_state_key(path=self.path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.global_step == 0:
            self.step_seed.seed = None  # of an earlier run
        write_whole_files(trainer)
        prepare_fsdp1(trainer)
        _Run.begin(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.lengths.stop()
        self.packed.stop()
        _Run.end(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.lengths.stop()
        self.packed.stop()
        _Run.end(pl_module)

    def attach_to(self, module: LightningModule) -> bool:
        """Attach the plan; returns whether the model had none before."""
        model = find_model(module, self.path)
        fresh = find_attachment(model) is None
        attach_and_record(
            module,
            self.plan,
            path=self.path,
            head=self.head,
            seed=self.seed,
            example_inputs=self.example_inputs,
        )
        keep_from_broadcasts(module)
        return fresh

    def _leads(self, trainer: Trainer) -> bool:
        """Whether this is the callback that acts for the run, if there are several."""
        return plan_callbacks(trainer)[0] is self

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        attachment = attachment_of(find_model(pl_module, self.path))
        attachment.train(base_dropout=self.base_dropout)
        check_strategy(trainer, attachment)
        self.lengths.start(trainer, attachment)
        self.packed.start(attachment)
        if self._leads(trainer):
            tell_left_alone(pl_module)
            self.resume.on_fit_start(trainer)
            self.learning.on_fit_start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._leads(trainer):
            self.resume.on_train_start(trainer)
            self.step_seed.share(trainer)
            check_copies(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._leads(trainer):
            self.resume.on_train_epoch_end(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._leads(trainer):
            self.resume.on_train_batch_start(trainer)
            self.step_seed.start(
                epoch=trainer.current_epoch,
                batch=batch_idx,
                rank=data_rank(trainer),
                device=pl_module.device,
            )

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._leads(trainer):
            self.learning.on_after_backward(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._leads(trainer):
            self.resume.on_save_checkpoint(trainer, checkpoint)
            make_portable(checkpoint.get("optimizer_states", ()), trainer.optimizers, pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        refuse_finder_on_resume(trainer)
        if self._leads(trainer):
            self.resume.on_load_checkpoint(trainer, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        return {"plan": self.plan.to_config(), "step_seed": self.step_seed.run_seed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        refuse_other_plan(state_dict["plan"], self.plan)
        self.step_seed.seed = state_dict["step_seed"]


def plan_callbacks(trainer: Trainer) -> list[PELTCallback]:
    """The callbacks of a trainer that attach plans."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, PELTCallback)]


def attach_plans(trainer: Trainer) -> None:
    """Attach the plans of a trainer's callbacks to its module."""
    module = trainer.lightning_module
    fresh = [callback.attach_to(module) for callback in plan_callbacks(trainer)]
    if any(fresh):
        copy_again(trainer, module)


def attach_in_main_process(trainer: Trainer) -> None:
    """Do to the module what the processes of a fit have done to their copies of it."""
    module = trainer.lightning_module
    callbacks = plan_callbacks(trainer)
    if not callbacks:
        return
    module.configure_model()
    try:
        for callback in callbacks:
            callback.attach_to(module)
    except ValueError as error:  # for example, `setup` makes the model
        rank_zero_warn(
            f"the processes have trained {type(module).__name__}, and the module of this process "
            f"does not get their weights: {error}. Take them from a checkpoint, for example with "
            "trainer.test(module, ckpt_path=...)"
        )


class _Run:
    """Replaces ``configure_model`` of a module in a run: the original, then the trainer's plans.

    The replacement is a bound method of an object, not a closure: Lightning compares code to find
    out whether the hook is overridden, and copies of the module must copy the replacement. It holds
    no callback. A module that kept the callback of its first run would be given that plan again.
    """

    def __init__(self, module: LightningModule) -> None:
        self.module, self.original = module, module.configure_model
        self.own = module.__dict__.get("configure_model")
        self.strict = module.strict_loading

    @classmethod
    def begin(cls, module: LightningModule) -> None:
        if not isinstance(_run_of(module), _Run):
            run = cls(module)
            module.configure_model = run.configure_model  # type: ignore[method-assign]
            module.strict_loading = False  # checkpoints lack the base; a load hook checks the rest

    @staticmethod
    def end(module: LightningModule) -> None:
        run = _run_of(module)
        if isinstance(run, _Run):
            del module.__dict__["configure_model"]
            if run.own is not None:
                module.configure_model = run.own  # type: ignore[method-assign]
            module.strict_loading = run.strict

    def configure_model(self) -> None:
        self.original()
        attach_plans(self.module.trainer)


def _run_of(module: LightningModule) -> object:
    return getattr(module.configure_model, "__self__", None)
