"""``PELTModule``: a backbone, a plan and a task as one LightningModule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import torch
import transformers  # its schedules import PEFT if installed, so not before one is used
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_pelt.attach import Attachment, attach
from lightning_pelt.attach.names import match_names
from lightning_pelt.attach.quantising import Quantisation, check_quantisation
from lightning_pelt.attach.state_dict_hooks import refuse_other_plan
from lightning_pelt.data import RowsDataModule
from lightning_pelt.data.profile_data import PROFILE
from lightning_pelt.methods.config import rebuild
from lightning_pelt.plans import Plan, UniPELT, from_config
from lightning_pelt.plans.require import require_plan
from lightning_pelt.tasks import Classification, Task
from lightning_pelt.training.checkpoint_io import write_whole_files
from lightning_pelt.training.compiled import check_compile, compile_model
from lightning_pelt.training.copies import copy_again
from lightning_pelt.training.fsdp import shard
from lightning_pelt.training.fsdp1 import prepare_fsdp1
from lightning_pelt.training.learning_check import LearningCheck
from lightning_pelt.training.lengths import check_batch, check_rows, most_tokens
from lightning_pelt.training.monitors import check_monitors
from lightning_pelt.training.own_options import (
    OwnGroupOptions,
    OwnSchedule,
    keep_own_options,
)
from lightning_pelt.training.packed_batches import PackedBatches
from lightning_pelt.training.param_groups import (
    make_portable,
    named_groups,
    schedule_steps,
    total_steps,
)
from lightning_pelt.training.quantised_base import (
    keep_from_broadcasts,
    quantise_base,
    refuse_other_quantisation,
)
from lightning_pelt.training.ranks import data_rank
from lightning_pelt.training.resume import Resume
from lightning_pelt.training.step_seed import StepSeed
from lightning_pelt.training.strategy_checks import check_copies, check_strategy
from lightning_pelt.training.tuners import finders, follow_finders, refuse_finder_on_resume, scaled
from lightning_pelt.utils.backbone import load_tokenizer
from lightning_pelt.utils.shards import is_flat


class PELTModule(LightningModule):
    """Tunes a pretrained transformer with a plan.

    ``configure_model`` loads the backbone and attaches the plan, so that every strategy wraps a
    model with submodules, and ``load_from_checkpoint`` finds them. Checkpoints hold submodules,
    gates and head; the frozen base is loaded from ``backbone`` again.

    Args:
        backbone: hub id or folder.
        plan: what is attached where; by default ``UniPELT()``, the paper's APL.
        task: head, loss and metrics; by default single-label classification.
        labels: label names in the order of their ids; the command line takes them from the data.
        lr: learning rate of every group that ``lrs`` does not name.
        lrs: learning rates by group: a method's name, ``gate`` or ``head``.
        weight_decay: of all groups but gates, norms, and methods that declare no decay (BitFit,
            IA3, ...).
        warmup: share of all steps (below 1), or number of steps, over which the learning rate rises
            linearly; it then falls linearly to 0.
        optimizer: called with the named groups.
        base_dropout: whether the dropout of the frozen base is active in training, as in
            pretraining. The head and the submodules always train in train mode.
        checkpoint_activations: recompute the activations of the blocks in backward instead of
            storing them.
        compile: compile the model with its plan; ``{mode: max-autotune}`` gives options of
            :func:`torch.compile`. Gates that a schedule opens or closes, or that are pruned, need
            no further compilation; batches of other lengths may.
        head: paths of the modules of the base that are trained and saved as a whole beside the
            plan, such as ``lm_head``, or ``[classifier, model.norm]``; ``none`` for no module. By
            default the head that the task adds, which such a list replaces: name it too where it is
            new.
        quantise: ``int8``, ``nf4`` or ``fp8``: how the linear layers of the frozen base are
            quantised before the plan is attached, see :func:`lightning_pelt.quantise`; by default
            not at all.
        dtype: of the base's weights; submodules are fp32 unless the precision is ``*-true``.
        seed: of the new weights.

    Example:
        >>> from lightning_pelt import LoRA, PELTModule, Plan
        >>> minilm = "sentence-transformers/all-MiniLM-L6-v2"
        >>> module = PELTModule(minilm, Plan.uniform(LoRA(r=8)), labels=["no", "yes"], lr=5e-4)
        >>> module.task.monitor  # a trainer loads the backbone when it sets up the module
        'accuracy'
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
        compile: bool | dict[str, Any] = False,
        head: str | list[str] | None = None,
        quantise: Quantisation | None = None,
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        given = from_config(plan) if isinstance(plan, Mapping) else plan
        self.plan = UniPELT() if given is None else require_plan(given)
        self.task = rebuild(task) if isinstance(task, Mapping) else task or Classification()
        self.labels = labels
        self.lr, self.lrs, self.weight_decay, self.warmup = lr, lrs, weight_decay, warmup
        self._lr_of_lrs = lr  # a finder of a learning rate scales lrs with lr
        self.optimizer = optimizer
        self.base_dropout = base_dropout
        self.checkpoint_activations = checkpoint_activations
        self.compiling = check_compile(compile)
        self.head = head
        self.quantise = check_quantisation(quantise)
        self.dtype_of_base = dtype
        self.seed = seed
        # Plain data, so that checkpoints load without pickle and rebuild plan and task.
        self.save_hyperparameters(
            {
                "backbone": backbone,
                "plan": self.plan.to_config(),
                "task": self.task.to_config(),
                "labels": None if labels is None else list(labels),
                "lr": lr,
                "lrs": lrs,
                "weight_decay": weight_decay,
                "warmup": warmup,
                "base_dropout": base_dropout,
                "checkpoint_activations": checkpoint_activations,
                "compile": self.compiling,
                "head": head if head is None or isinstance(head, str) else list(head),
                "quantise": quantise,
                "dtype": dtype,
                "seed": seed,
            }
        )
        self.strict_loading = False  # checkpoints lack the base; the attachment's load hook checks
        self.register_load_state_dict_pre_hook(match_names)  # of a compiled or wrapped model
        self.model: PreTrainedModel | None = None
        self.most_tokens: int | None = None
        self.attachment: Attachment | None = None
        self.step_seed, self.resume, self.learning = StepSeed(), Resume(), LearningCheck()
        self.packed = PackedBatches()
        stages = {stage: self.task.build_metrics(labels, stage=stage) for stage in ("val", "test")}
        self.metrics = nn.ModuleDict({s: m.clone(prefix=f"{s}/") for s, m in stages.items()})

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer."""
        return load_tokenizer(self.backbone)

    def setup(self, stage: str) -> None:
        write_whole_files(self.trainer)
        prepare_fsdp1(self.trainer)
        self.packed = PackedBatches()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage != "predict" and isinstance(data, RowsDataModule):
            self.task.check_labels(self.labels, data.labels)
        if stage == "fit" and self.trainer.global_step == 0:
            self.step_seed.seed = None  # of an earlier run

    def configure_model(self) -> None:
        """Load the backbone and attach the plan, once."""
        if self.model is not None:
            return
        # transformers takes a device context for a device map, which needs another package.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # every rank starts with the same head
            model = self.task.load(self.backbone, labels=self.labels, dtype=self.dtype_of_base)
        if self.quantise is not None:
            quantise_base(model, self.quantise, self._trainer)
        self.attachment = attach(model, self.plan, seed=self.seed, head=_paths(self.head))
        self.most_tokens = most_tokens(self.attachment)
        if self.checkpoint_activations:
            model.gradient_checkpointing_enable()
        if self.device_mesh is not None:  # ModelParallelStrategy expects the module to shard
            shard(self.attachment, self.device_mesh)
        compile_model(model, self.compiling)
        self.model = model
        keep_from_broadcasts(self)
        if self._trainer is not None:
            copy_again(self.trainer, self)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights; configure the model first if it is not configured.

        After a fit in spawned processes Lightning loads the weights into the module of the main
        process, which was never configured.
        """
        self.configure_model()
        return super().load_state_dict(state_dict, *args, **kwargs)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One named group per method, so that each has its own rate and is logged by name."""
        optimizer = self.optimizer(self._groups())
        scheduler = self._schedule(optimizer)
        OwnGroupOptions(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _groups(self) -> list[dict[str, Any]]:
        assert self.attachment is not None
        return named_groups(
            self.attachment, lr=self.lr, lrs=self.lrs, weight_decay=self.weight_decay
        )

    def _schedule(self, optimizer: Optimizer) -> OwnSchedule:
        steps = schedule_steps(self.warmup, total_steps(self.trainer))
        linear = transformers.get_linear_schedule_with_warmup(optimizer, *steps)
        return OwnSchedule(optimizer, linear.lr_lambdas)

    def on_fit_start(self) -> None:
        assert self.attachment is not None
        self.attachment.train(base_dropout=self.base_dropout)
        check_strategy(self.trainer, self.attachment, self.task)
        own_schedule = type(self).configure_optimizers is PELTModule.configure_optimizers
        if own_schedule and finders(self.trainer):
            self.lrs = scaled(self.lrs, before=self._lr_of_lrs, lr=self.lr)
            self._lr_of_lrs = self.lr
            self.hparams["lrs"] = self.lrs
            follow_finders(self.trainer, lr=self.lr, groups=self._groups(), schedule=self._schedule)
        check_rows(self.trainer, self.most_tokens)
        self.resume.on_fit_start(self.trainer)
        self.learning.on_fit_start()

    def on_train_start(self) -> None:
        logged = ["train/loss", "val/loss", *self.metrics["val"].keys()]  # type: ignore[operator]
        check_monitors(self.trainer, self, logged)
        self.resume.on_train_start(self.trainer)
        self.step_seed.share(self.trainer)
        check_copies(self.trainer)

    def on_train_epoch_end(self) -> None:
        self.resume.on_train_epoch_end(self.trainer)

    def on_train_batch_start(self, _batch: Any, index: int) -> None:
        self.resume.on_train_batch_start(self.trainer)
        self.step_seed.start(
            epoch=self.current_epoch, batch=index, rank=data_rank(self.trainer), device=self.device
        )

    def training_step(self, batch: dict[str, Any], _index: int) -> Tensor:
        loss, _ = self.task.step(self.model, self._inputs(batch))  # type: ignore[arg-type]
        self.log("train/loss", loss, prog_bar=True, batch_size=_rows(batch))
        return loss

    def on_after_backward(self) -> None:
        self.learning.on_after_backward(self.trainer, self)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, except for methods that clip their own gradients."""
        assert self.attachment is not None
        clipped: set[int] = set()
        # FSDP1 splits parameters over the processes, and Lightning knows that it cannot clip them.
        flat = any(is_flat(p) for group in optimizer.param_groups for p in group["params"])
        if gradient_clip_val and gradient_clip_algorithm != "value" and not flat:
            for module in self.attachment.all_submodules:
                clipped.update(map(id, module.clip_gradients(float(gradient_clip_val))))
        if not clipped:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        rest = [parameter for parameter in parameters if id(parameter) not in clipped]
        torch.nn.utils.clip_grad_norm_(rest, float(gradient_clip_val or 0.0))

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
            tokenizer=self.tokenizer if self.task.decodes else None,
        )
        self.log(f"{stage}/loss", loss, batch_size=_rows(batch), sync_dist=True)
        self.log_dict(metrics, prog_bar=True, on_step=False, on_epoch=True)

    def predict_step(self, batch: dict[str, Any], _index: int) -> list[dict[str, Any]]:
        """One dictionary per row: label and probabilities, a value, or a text."""
        return self.task.predict(
            self.model,  # type: ignore[arg-type]
            self._inputs(batch),
            labels=self.labels,
            tokenizer=self.tokenizer if self.task.decodes else None,
        )

    # A module that is compiled as a whole calls it as it is.
    log = torch.compiler.disable(LightningModule.log)

    def forward(self, **inputs: Tensor) -> Any:
        """The outputs of the Hugging Face model, such as ``.logits``."""
        assert self.model is not None
        return self.model(**inputs)

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch without the indices of profiles, unless a method reads them.

        Raises:
            ValueError: its rows have more tokens than the model has positions for, or are packed
                where the model takes each for one text.
        """
        check_batch(batch, self.most_tokens)
        if self.attachment is not None:
            self.packed.check(batch, self.attachment)
        if any(PROFILE in method.batch_inputs for method in self.plan.methods):
            return batch
        return {name: value for name, value in batch.items() if name != PROFILE}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["step_seed"] = self.step_seed.run_seed()
        self.resume.on_save_checkpoint(self.trainer, checkpoint)
        make_portable(checkpoint.get("optimizer_states", ()), self.trainer.optimizers, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the step seed and the place in the run, and compare plans under every strategy.

        Raises:
            ValueError: the checkpoint was made with another plan, other labels or another task, or
                a run that continues it has its base quantised otherwise.
        """
        self.step_seed.seed = checkpoint.get("step_seed")
        if self._trainer is not None:  # not in load_from_checkpoint
            refuse_finder_on_resume(self.trainer)
            self.resume.on_load_checkpoint(self.trainer, checkpoint)
        saved = checkpoint.get("hyper_parameters", {})
        refuse_other_plan(saved.get("plan"), self.plan)
        if self._trainer is not None:
            refuse_other_quantisation(self.trainer, saved, self.quantise)
            keep_own_options(self.trainer, checkpoint, saved=saved, own=self.hparams)


def _paths(head: str | list[str] | None) -> list[str] | None:
    """The paths of the modules of a head; None for the default."""
    if isinstance(head, str):
        return [] if head == "none" else [head]
    return head


def _rows(batch: Mapping[str, Any]) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))
