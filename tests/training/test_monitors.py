"""A metric that will not exist is refused before the first step, and others are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from callbacks.tiny import trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from small import LABELS, Sentences, bert

from lightning_pelt import GateMonitor, PELTModule


class NoDev(Sentences):
    """Sentences without a dev split."""

    def read(self) -> Any:
        return {"train": super().read()["train"]}


def fit(
    folder: Path, *callbacks: Callback, data: type[Sentences] = Sentences, **options: Any
) -> Any:
    backbone = bert(folder / "bert")
    options = {"limit_train_batches": 2, "enable_checkpointing": True, **options}
    run = trainer(folder, *callbacks, **options)
    run.fit(PELTModule(backbone, labels=LABELS), data(backbone))
    return run


@pytest.mark.parametrize(
    ("callback", "meant"),
    [
        (ModelCheckpoint(monitor="accuracy"), "val/accuracy"),
        (ModelCheckpoint(monitor="val_accuracy"), "val/accuracy"),
        (EarlyStopping(monitor="val_loss"), "val/loss"),
        (EarlyStopping(monitor="train_loss"), "train/loss"),
    ],
)
def test_a_metric_that_is_not_logged_is_answered_with_the_nearest(tmp_path, callback, meant):
    with pytest.raises(ValueError, match=f"{callback.monitor}': did you mean '{meant}'"):
        fit(tmp_path, callback)


@pytest.mark.parametrize("name", ["val/f1", "test/accuracy", "epoch", "gate/mean/lora"])
def test_a_metric_of_another_task_stage_or_callback_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"EarlyStopping monitors: '{name}'"):
        fit(tmp_path, EarlyStopping(monitor=name))


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({"limit_val_batches": 0}, Sentences),
        ({"check_val_every_n_epoch": 5}, Sentences),
        ({}, NoDev),
    ],
    ids=["no batches", "too few epochs", "no dev split"],
)
def test_a_validation_metric_needs_a_validation(tmp_path, options, data):
    saver = ModelCheckpoint(tmp_path / "kept", monitor="val/accuracy")
    with pytest.raises(ValueError, match="'val/accuracy' is computed in validation, and this fit"):
        fit(tmp_path, saver, data=data, **options)
    assert not list(tmp_path.glob("kept/*.ckpt"))


@pytest.mark.parametrize(
    "name", ["val/loss", "val/accuracy", "train/loss", "step", "lr-AdamW/head", "gate/mean/lora"]
)
@pytest.mark.slow
def test_a_metric_that_is_logged_is_monitored(tmp_path, name):
    saver = ModelCheckpoint(tmp_path / "kept", monitor=name, filename="best")
    run = fit(tmp_path, saver, LearningRateMonitor(), GateMonitor(1, table=False, heatmap=False))
    assert run.global_step == 2
    assert (tmp_path / "kept" / "best.ckpt").exists()


@pytest.mark.slow
def test_a_callback_of_the_user_may_log_the_metric(tmp_path):
    class Own(Callback):
        def on_validation_epoch_end(self, run: Any, module: Any) -> None:
            module.log("val/own", 1.0)

    saver = ModelCheckpoint(tmp_path / "kept", monitor="val/own", filename="best")
    with pytest.warns(UserWarning, match="'val/own'.* missing unless Own logs it"):
        fit(tmp_path, Own(), saver)
    assert (tmp_path / "kept" / "best.ckpt").exists()
