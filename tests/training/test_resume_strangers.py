"""Resuming modules of others with PELTCallback, and other users of Lightning's loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from small import Sentences, bert
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from training.continued import Run, assert_continues, every_step, fit
from transformers import AutoModelForSequenceClassification

from lightning_pelt import Adapter, LoRA, PELTCallback, UniPELT
from lightning_pelt.data.collator import Collate


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert(tmp_path_factory.mktemp("backbone"))


class Stranger(LightningModule):
    """A module that knows nothing of plans. It asks for the number of steps, as many do."""

    def __init__(self, backbone: str, plateau: bool) -> None:
        super().__init__()
        self.plateau = plateau
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=3)

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        loss = self.net(**batch).loss
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        self.log("val/loss", self.net(**batch).loss)

    def configure_optimizers(self) -> Any:
        assert self.trainer.estimated_stepping_batches > 0
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=3e-2)
        if not self.plateau:
            return optimizer
        # With this threshold each reading lowers the rate.
        schedule = ReduceLROnPlateau(optimizer, patience=0, threshold=1.0, factor=0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "val/loss", "interval": "epoch"},
        }


class PlainLoaders(Sentences):
    """The same rows in loaders that have no state."""

    def train_dataloader(self) -> DataLoader:
        return self.plain("train")

    def val_dataloader(self) -> DataLoader:
        return self.plain("dev")

    def plain(self, split: str) -> DataLoader:
        rows = self.tokens(split).remove_columns("length")
        return DataLoader(rows, batch_size=4, collate_fn=Collate(self.tokenizer, {}))


def strange(
    folder: Path,
    backbone: str,
    *callbacks: Callback,
    plateau: bool = False,
    data: type[Sentences] = Sentences,
    batches: int = 3,
    **options: Any,
) -> Run:
    plan = UniPELT(methods=[Adapter(bottleneck=4), LoRA(r=2, dropout=0.2)])
    rows = data(backbone, rows_of_train=4 * batches - 1)
    first = PELTCallback(plan)
    return fit(folder, Stranger(backbone, plateau), rows, first, *callbacks, **options)


def all_but_the_last(folder: Path, whole: Run) -> list[Path]:
    end = f"step={whole.trainer.global_step}"
    checkpoints = [path for path in folder.glob("*.ckpt") if end not in path.name]
    assert checkpoints
    return checkpoints


@pytest.mark.parametrize(
    "options", [{"limit_val_batches": 0}, pytest.param({"max_steps": 8}, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_strangers_module_resumes_after_any_step(tmp_path, backbone, options):
    whole = strange(tmp_path, backbone, every_step(tmp_path), **options)
    for checkpoint in all_but_the_last(tmp_path, whole)[::2]:
        assert_continues(strange(tmp_path / "rest", backbone, resume=checkpoint, **options), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "saving",
    [
        {},
        {"every_n_train_steps": 3},
        pytest.param({"save_on_train_epoch_end": False}, marks=pytest.mark.slow),
    ],
    ids=["epoch-end", "last-batch", "validation-end"],
)
def test_a_plateau_scheduler_reads_each_epoch_once(tmp_path, backbone, saving):
    """Saved before it reads an epoch, it reads the epoch when the run resumes."""
    writer = ModelCheckpoint(tmp_path, save_top_k=-1, **saving)
    whole = strange(tmp_path, backbone, writer, plateau=True)
    assert whole.state["rates"].item() == pytest.approx(3e-2 / 8)
    for checkpoint in all_but_the_last(tmp_path, whole):
        resumed = strange(tmp_path / "rest", backbone, resume=checkpoint, plateau=True)
        assert_continues(resumed, whole)


@pytest.mark.slow
def test_early_stopping_reads_the_metric_of_a_validation_before_the_checkpoint(tmp_path, backbone):
    """Saved at the end of the validation; the metric is read at the end of the epoch."""
    writer = ModelCheckpoint(tmp_path, save_top_k=-1, save_on_train_epoch_end=False)
    whole = strange(tmp_path, backbone, EarlyStopping("val/loss", patience=9), writer)
    for checkpoint in all_but_the_last(tmp_path, whole):
        stops = EarlyStopping("val/loss", patience=9)
        resumed = strange(tmp_path / "rest", backbone, stops, resume=checkpoint)
        assert_continues(resumed, whole)
        assert stops.best_score.isfinite()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saving", "options"),
    [
        ({}, {}),
        ({"every_n_train_steps": 3}, {"limit_val_batches": 0}),
        pytest.param({}, {"max_steps": 9}, marks=pytest.mark.slow),
        pytest.param({"every_n_train_steps": 3}, {"max_steps": 9}, marks=pytest.mark.slow),
    ],
)
def test_loaders_without_a_state_resume_at_the_ends_of_epochs(tmp_path, backbone, saving, options):
    """From the last batch of an epoch too, whose epoch must not take a batch more."""
    writer = ModelCheckpoint(tmp_path, save_top_k=-1, **saving)
    options = {"data": PlainLoaders, **options}
    whole = strange(tmp_path, backbone, writer, **options)
    for checkpoint in all_but_the_last(tmp_path, whole):
        assert_continues(strange(tmp_path / "rest", backbone, resume=checkpoint, **options), whole)


@pytest.mark.slow
def test_a_loader_without_a_state_warns_within_an_epoch(tmp_path, backbone):
    strange(tmp_path, backbone, every_step(tmp_path), data=PlainLoaders, max_epochs=1)
    with pytest.warns(UserWarning, match="your dataloader is not resumable"):
        strange(tmp_path, backbone, data=PlainLoaders, resume=tmp_path / "step=1.ckpt")


@pytest.mark.slow
def test_a_schedule_of_accumulation_applies_within_an_epoch(tmp_path, backbone):
    def accumulation() -> Callback:
        return GradientAccumulationScheduler({0: 1, 1: 2})

    options = {"batches": 4, "max_epochs": 2}
    whole = strange(tmp_path, backbone, accumulation(), every_step(tmp_path), **options)
    assert whole.trainer.global_step == 4 + 2
    resume = tmp_path / "step=5.ckpt"
    resumed = strange(tmp_path / "rest", backbone, accumulation(), resume=resume, **options)
    assert_continues(resumed, whole)
