"""``PELTModule``: a backbone, a plan and a task as one LightningModule."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_pelt.attach import Attachment, attach
from lightning_pelt.backbone import load_tokenizer
from lightning_pelt.errors import unknown
from lightning_pelt.methods import XPEFT
from lightning_pelt.optim import linear_warmup_decay, make_portable, named_groups
from lightning_pelt.ownership import refuse_other_plan
from lightning_pelt.plan import Plan, UniPELT, from_config
from lightning_pelt.profiles.clipping import clip_profiles, clip_rest
from lightning_pelt.profiles.keeping import heads_of
from lightning_pelt.profiles.masks import Masks
from lightning_pelt.seeding import StepSeed
from lightning_pelt.sharding import shard
from lightning_pelt.tasks import Classification, Task


class PELTModule(LightningModule):
    """Tunes a pretrained transformer by a plan.

    The backbone is loaded and the plan attached in ``configure_model``, so that every strategy
    sees the submodules before it wraps anything, and ``load_from_checkpoint`` finds them.
    Checkpoints hold submodules, gates and head; the frozen base comes from ``backbone`` again.

    Args:
        backbone: hub id or folder.
        plan: what is attached where; by default ``UniPELT()``, the paper's APL.
        task: what it is trained for; by default single-label classification.
        labels: label names in the order of their ids; the command line takes them from the data.
        lr: learning rate of every group that ``lrs`` does not name.
        lrs: learning rates by group: a method's name, ``gate`` or ``head``.
        weight_decay: of all groups but gates, BitFit and IA3.
        warmup: share of all steps (below 1), or number of steps, over which the rate rises
            linearly; it then falls to zero, linearly.
        optimizer: made from the named groups.
        base_dropout: whether the frozen base's dropout is on in training, as when it was
            pretrained; the head and the submodules always train in train mode.
        checkpoint_activations: recompute the blocks in backward, keeping no activations of theirs.
        dtype: of the base's weights; submodules are fp32 unless the precision is ``*-true``.
        seed: of the new weights.
    """

    def __init__(
        self,
        backbone: str,
        plan: Plan | None = None,
        task: Task | None = None,
        *,
        labels: list[str] | None = None,
        lr: float = 1e-3,
        lrs: dict[str, float] | None = None,
        weight_decay: float = 0.0,
        warmup: float = 0.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        base_dropout: bool = True,
        checkpoint_activations: bool = False,
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.plan = from_config(plan) if isinstance(plan, Mapping) else plan or UniPELT()
        self.task = _task(task) if isinstance(task, Mapping) else task or Classification()
        self.labels = labels
        self.lr, self.lrs, self.weight_decay, self.warmup = lr, lrs, weight_decay, warmup
        self.optimizer = optimizer
        self.base_dropout = base_dropout
        self.checkpoint_activations = checkpoint_activations
        self.dtype_of_base = dtype
        self.seed = seed
        # Plain data, so that checkpoints load without pickle and rebuild plan and task.
        self.save_hyperparameters(
            {
                "backbone": backbone,
                "plan": self.plan.to_config(),
                "task": _task_config(self.task),
                "labels": None if labels is None else list(labels),
                "lr": lr,
                "lrs": lrs,
                "weight_decay": weight_decay,
                "warmup": warmup,
                "base_dropout": base_dropout,
                "checkpoint_activations": checkpoint_activations,
                "dtype": dtype,
                "seed": seed,
            }
        )
        self.strict_loading = False  # the base is not in checkpoints; our own load hook is strict
        self.model: PreTrainedModel | None = None
        self.attachment: Attachment | None = None
        self.step_seed = StepSeed()
        stages = {stage: self.task.build_metrics(labels, stage=stage) for stage in ("val", "test")}
        self.metrics = nn.ModuleDict({s: m.clone(prefix=f"{s}/") for s, m in stages.items()})

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer, for tasks that write text."""
        return load_tokenizer(self.backbone)

    def configure_model(self) -> None:
        """Load the backbone and attach the plan, once."""
        if self.model is not None:
            return
        # transformers takes a device context for a device map, which needs another package.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # the head starts alike on every rank
            model = self.task.load(self.backbone, labels=self.labels, dtype=self.dtype_of_base)
        self.attachment = attach(model, self.plan, seed=self.seed)
        if self.checkpoint_activations:
            model.gradient_checkpointing_enable()
        if self.device_mesh is not None:  # ModelParallelStrategy leaves it to the module
            shard(self.attachment, self.device_mesh)
        self.model = model

    def on_fit_start(self) -> None:
        assert self.attachment is not None
        self.attachment.train(base_dropout=self.base_dropout)

    def on_train_batch_start(self, _batch: Any, index: int) -> None:
        self.step_seed.start(
            epoch=self.current_epoch, batch=index, rank=self.global_rank, device=self.device
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["step_seed"] = self.step_seed.seed
        make_portable(checkpoint.get("optimizer_states", ()), self.trainer.optimizers, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the checkpoint's seed; refuse one of another plan under every strategy.

        Raises:
            ValueError: the checkpoint was made with another plan.
        """
        self.step_seed.seed = checkpoint.get("step_seed")
        refuse_other_plan(checkpoint.get("hyper_parameters", {}).get("plan"), self.plan)

    def forward(self, **inputs: Tensor) -> Any:
        """The Hugging Face model's own outputs, e.g. ``.logits``."""
        assert self.model is not None
        return self.model(**inputs)

    def training_step(self, batch: dict[str, Any], _index: int) -> Tensor:
        loss, _ = self.task.step(self.model, self._inputs(batch))  # type: ignore[arg-type]
        self.log("train/loss", loss, prog_bar=True, batch_size=_rows(batch))
        return loss

    def validation_step(self, batch: dict[str, Any], _index: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Any], _index: int) -> None:
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: dict[str, Any]) -> None:
        batch = self._inputs(batch)
        loss, outputs = self.task.step(self.model, batch)  # type: ignore[arg-type]
        metrics: Any = self.metrics[stage]
        self.task.update(
            metrics,
            self.model,  # type: ignore[arg-type]
            batch,
            outputs,
            labels=self.labels,
            tokenizer=self.tokenizer,
        )
        self.log(f"{stage}/loss", loss, batch_size=_rows(batch), sync_dist=True)
        self.log_dict(metrics, prog_bar=True, on_step=False, on_epoch=True)

    def predict_step(self, batch: dict[str, Any], _index: int) -> list[dict[str, Any]]:
        """One dictionary per row: label and probabilities, a value, or a text."""
        return self.task.predict(
            self.model,  # type: ignore[arg-type]
            self._inputs(batch),
            labels=self.labels,
            tokenizer=self.tokenizer,
        )

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Whose the rows are is of no interest to a plan without profiles."""
        if any(isinstance(method, XPEFT) for method in self.plan.methods):
            return batch
        return {name: value for name, value in batch.items() if name != "profile"}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One named group per method, so that each may have its own rate and is logged by name."""
        assert self.attachment is not None
        groups = named_groups(
            self.attachment, lr=self.lr, lrs=self.lrs, weight_decay=self.weight_decay
        )
        optimizer = self.optimizer(groups)
        scheduler = linear_warmup_decay(
            optimizer, warmup=self.warmup, total_steps=self._total_steps()
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does it; but each profile of X-PEFT is clipped by a norm of its own."""
        every = [module for module in self.modules() if isinstance(module, Masks)]
        if not every or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        limit = float(gradient_clip_val)
        heads = heads_of(self)
        own_heads = () if heads is None else tuple(heads.own)
        clipped = [p for masks in every for p in clip_profiles(masks, limit, own_heads)]
        own = [p for group in optimizer.param_groups for p in group["params"]]
        clip_rest(own, clipped, limit)

    def _total_steps(self) -> int | float:
        steps = self.trainer.estimated_stepping_batches
        if self.trainer.ckpt_path is not None:
            # It has set up the training batches, before the checkpoint could say where among them
            # to go on. Told that there are none, Lightning sets them up again, and then it can.
            self.trainer.fit_loop._combined_loader = None
        return steps


def _rows(batch: Mapping[str, Any]) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


def _task_config(task: Task) -> dict[str, Any]:
    fields = dataclasses.asdict(task)  # type: ignore[call-overload]
    path = f"{type(task).__module__}.{type(task).__qualname__}"
    return {
        "class_path": path,
        "init_args": {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()},
    }


def _task(config: Mapping[str, Any]) -> Task:
    """The task that a checkpoint's hyperparameters describe; its class must be imported already."""
    module, _, name = config["class_path"].rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        known: Sequence[type] = Task.__subclasses__()
        raise unknown("class of a task", config["class_path"], [c.__qualname__ for c in known])
    return cls(**config.get("init_args", {}))
