"""``SampleTable``: a table of prompts, targets and generated texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_pelt.callbacks._gate_means import logging_step
from lightning_pelt.callbacks._media import log_media
from lightning_pelt.callbacks._sinks import Table

COLUMNS = ["step", "row", "prompt", "target", "generated"]


class SampleTable(Callback):
    """Logs what the model generates for the first rows of each evaluation, as a table.

    The tables are ``val/samples`` and ``test/samples``. W&B, TensorBoard and MLflow show them. With
    another logger, or none, each is a file of JSON lines, ``media/val/samples/<step>.jsonl`` in the
    folder of the run. The rows are those of the first batch, which are the longest if rows are
    bucketed by length. Every process generates, since a sharded model needs all of them, and the
    table has the rows of the first.

    Args:
        rows: number of rows.
        every_n_epochs: the epochs with a table, of those with a validation.

    Raises:
        ValueError: a number is below 1. In the evaluation: the task of the module generates no
            texts to compare.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.loggers import WandbLogger
        >>> from lightning_pelt.callbacks import SampleTable
        >>> trainer = Trainer(logger=WandbLogger(offline=True), callbacks=[SampleTable(rows=4)])
    """

    def __init__(self, rows: int = 8, every_n_epochs: int = 1) -> None:
        for name, value in (("rows", rows), ("every_n_epochs", every_n_epochs)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.rows = rows
        self.every_n_epochs = every_n_epochs

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        due = not trainer.sanity_checking and trainer.current_epoch % self.every_n_epochs == 0
        if due and not batch_idx and not dataloader_idx:
            self._log(trainer, pl_module, batch, "val")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not batch_idx and not dataloader_idx:
            self._log(trainer, pl_module, batch, "test")

    def _log(
        self, trainer: Trainer, pl_module: LightningModule, batch: Mapping[str, Any], stage: str
    ) -> None:
        module: Any = pl_module
        task: Any = getattr(module, "task", None)
        if not hasattr(task, "samples"):
            raise ValueError(
                f"SampleTable compares generated texts with targets, and the task "
                f"{type(task).__name__} does not generate them: use CausalLM, or remove SampleTable"
            )
        first = {
            name: value[: self.rows] if isinstance(value, Tensor | list) else value
            for name, value in batch.items()
        }
        with trainer.precision_plugin.val_step_context():
            samples = task.samples(module.model, first, tokenizer=module.tokenizer)
        step = logging_step(trainer)
        rows = [
            [step, number, row["prompt"], row["target"], row["generated"]]
            for number, row in enumerate(samples)
        ]
        log_media(trainer, f"{stage}/samples", Table(COLUMNS, rows))
