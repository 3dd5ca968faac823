"""``PELTCallback``: attaches a plan to the model inside any LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from lightning_pelt.attach import attach, find_attachment
from lightning_pelt.attach.state_dict_hooks import refuse_other_plan
from lightning_pelt.plans import Plan
from lightning_pelt.training.param_groups import make_portable
from lightning_pelt.training.step_seed import StepSeed


class PELTCallback(Callback):
    """Freezes the Hugging Face model inside any LightningModule and attaches a plan to it.

    Nothing else in the module changes: its heads, losses and ``configure_optimizers`` stay as they
    are. In ``configure_optimizers`` the submodules require gradients and the base does not.
    Checkpoints leave the frozen base out and restore without it. torch's generators are seeded
    before every training batch, so that a resumed run draws the same random numbers.

    The plan is attached after the module's own ``configure_model``, before a strategy wraps the
    module. Place this callback before callbacks that call ``configure_model`` themselves, such as
    ``WeightAveraging``.

    Args:
        plan: what is attached where.
        path: of the Hugging Face model in the module, needed if there are several.
        head: modules of the Hugging Face model to train; by default a newly initialized head.
        base_dropout: whether the dropout of the frozen base is active in training.
        seed: of the new weights.

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
    ) -> None:
        self.plan, self.path, self.head = plan, path, head
        self.base_dropout, self.seed = base_dropout, seed
        self.step_seed = StepSeed()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.strict_loading = False  # checkpoints lack the base; the load hook checks the rest
        if not isinstance(getattr(pl_module.configure_model, "__self__", None), _AttachAfter):
            attaching = _AttachAfter(self, pl_module, pl_module.configure_model)
            pl_module.configure_model = attaching.configure_model  # type: ignore[method-assign]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        attachment = find_attachment(pl_module)
        assert attachment is not None
        attachment.train(base_dropout=self.base_dropout)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.step_seed.start(
            epoch=trainer.current_epoch,
            batch=batch_idx,
            rank=trainer.global_rank,
            device=pl_module.device,
        )

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        make_portable(checkpoint.get("optimizer_states", ()), trainer.optimizers, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"plan": self.plan.to_config(), "step_seed": self.step_seed.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        refuse_other_plan(state_dict["plan"], self.plan)
        self.step_seed.seed = state_dict["step_seed"]


class _AttachAfter:
    """Replaces ``configure_model`` of a module: calls the original, then attaches the plan.

    The replacement is a bound method of an object, not a closure: Lightning compares code to find
    out whether the hook is overridden, and copies of the module must copy the replacement.
    """

    def __init__(
        self, callback: PELTCallback, module: LightningModule, original: Callable[[], None]
    ) -> None:
        self.callback, self.module, self.original = callback, module, original

    def configure_model(self) -> None:
        self.original()
        options = self.callback
        if find_attachment(self.module) is None:
            self._refuse_shards()
        attach(self.module, options.plan, seed=options.seed, path=options.path, head=options.head)

    def _refuse_shards(self) -> None:
        """Raise if the model is sharded already: gradients of new submodules would not be reduced.

        Raises:
            ValueError: the module has sharded parameters.
        """
        if any(isinstance(parameter, DTensor) for parameter in self.module.parameters()):
            raise ValueError(
                f"{type(self.module).__name__} shards its model in configure_model before the plan "
                "is attached: call lightning_pelt.attach(model, plan) there, with the plan of "
                "PELTCallback, before fully_shard"
            )
