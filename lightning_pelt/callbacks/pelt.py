"""``PELTCallback``: attaches a plan to the model inside somebody else's LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from lightning_pelt.attach import attach, find_attachment
from lightning_pelt.optim import make_portable
from lightning_pelt.ownership import refuse_other_plan
from lightning_pelt.plan import Plan
from lightning_pelt.seeding import StepSeed


class PELTCallback(Callback):
    """Freezes the Hugging Face model inside any LightningModule and attaches a plan to it.

    Nothing else in the module changes: its own heads, losses and ``configure_optimizers`` stay as
    they are, the latter seeing submodules that require gradients and a base that does not.
    Checkpoints leave the frozen base out and restore without it. torch's generators are seeded anew
    before every training batch, so that a resumed run draws what it would have drawn.

    It attaches right after the module's own ``configure_model``, before any strategy wraps it. Put
    it before callbacks that call ``configure_model`` themselves, such as ``WeightAveraging``.

    Args:
        plan: what is attached where.
        path: of the Hugging Face model in the module, where there are several.
        head: modules of the Hugging Face model that are trained; by default a newly made head.
        base_dropout: whether the frozen base's dropout is on in training.
        seed: of the new weights.

    Example::

        trainer = Trainer(callbacks=[PELTCallback(UniPELT()), GateMonitor()])
        trainer.fit(your_module, datamodule)
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
        pl_module.strict_loading = False  # the base is not in checkpoints; our load hook is strict
        if not isinstance(getattr(pl_module.configure_model, "__self__", None), _Configured):
            configured = _Configured(self, pl_module, pl_module.configure_model)
            pl_module.configure_model = configured.configure_model  # type: ignore[method-assign]

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


class _Configured:
    """A module's ``configure_model`` with the attaching behind it.

    A bound method of an object, not a closure: Lightning asks whether the hook is overridden by
    comparing code, and copies of the module must copy it.
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
        """What is attached to sharded modules would not be reduced: ranks would drift apart."""
        if any(isinstance(parameter, DTensor) for parameter in self.module.parameters()):
            raise ValueError(
                f"{type(self.module).__name__} shards its model in configure_model, before "
                "anything is attached to it: call lightning_pelt.attach(model, plan) there, with "
                "PELTCallback's plan, before fully_shard"
            )
