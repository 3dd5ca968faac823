"""The heat map never ends a fit, and goes where the run's folder and loggers are."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from callbacks.tiny import Tiny, loader, trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.image import imread
from pytorch_lightning.loggers import CSVLogger as OtherCSVLogger
from pytorch_lightning.loggers import TensorBoardLogger as OtherTensorBoardLogger
from pytorch_lightning.loggers import WandbLogger as OtherWandbLogger

from lightning_pelt import GateMonitor
from lightning_pelt.callbacks._heat_map import show
from lightning_pelt.reports import figures

MEANS = {"00/lora": 0.25, "01/lora": 0.75}


def fit(folder: Any, **options: Any) -> GateMonitor:
    monitor = GateMonitor()
    options = {"limit_val_batches": 1, "logger": False, **options}
    trainer(folder, monitor, **options).fit(Tiny(), loader(1), loader(1))
    return monitor


def at_step_7(folder: Path, *loggers: Any) -> Any:
    """As much of a trainer as a picture needs."""
    return SimpleNamespace(
        loggers=loggers,
        is_global_zero=True,
        fast_dev_run=0,
        default_root_dir=str(folder),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=7)),
    )


def test_a_folder_that_is_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit("memory://runs/first")
    with fsspec.open("memory://runs/first/gates.png", "rb") as file:
        assert imread(BytesIO(file.read())).ndim == 3
    assert not list(tmp_path.iterdir())


def test_a_local_url(tmp_path):
    fit(tmp_path, default_root_dir=f"file://{tmp_path}/own")
    assert (tmp_path / "own" / "gates.png").is_file()


def test_a_picture_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match=r"writing .*gates\.png failed, and training goes on"):
        monitor = fit(tmp_path, default_root_dir=tmp_path / "file")
    assert len(monitor.latest) == 8
    output = capsys.readouterr().out
    assert "Mean gate" in output
    assert "Heat map" not in output


def test_a_picture_that_cannot_be_drawn(tmp_path, monkeypatch):
    def fails(_: Any) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(figures, "gate_heatmap", fails)
    with pytest.warns(UserWarning, match="drawing the gates failed.*RuntimeError: no fonts"):
        fit(tmp_path)


def test_a_logger_that_cannot_take_it_harms_no_other(tmp_path):
    first, second = TensorBoardLogger(tmp_path / "a"), TensorBoardLogger(tmp_path / "b")
    images: list[str] = []
    first._experiment = SimpleNamespace(add_image=None)  # type: ignore[assignment]
    second._experiment = SimpleNamespace(  # type: ignore[assignment]
        add_image=lambda name, *_, **__: images.append(name)
    )
    run = at_step_7(tmp_path, first, CSVLogger(tmp_path), second)
    with pytest.warns(UserWarning, match="logging gate/heatmap with TensorBoardLogger failed"):
        assert show(run, MEANS, str(tmp_path / "gates.png")) == str(tmp_path / "gates.png")
    assert images == ["gate/heatmap"]


def test_the_loggers_of_pytorch_lightning(tmp_path):
    """They are other classes than those of lightning.pytorch."""
    board, wandb = OtherTensorBoardLogger(tmp_path), OtherWandbLogger(save_dir=tmp_path)
    images: list[tuple[str, int]] = []
    board._experiment = SimpleNamespace(  # type: ignore[assignment]
        add_image=lambda name, _pixels, step, dataformats: images.append((name, step))
    )
    wandb.log_image = lambda key, _images, step: images.append((key, step))  # type: ignore[method-assign,misc]
    run = at_step_7(tmp_path, board, OtherCSVLogger(tmp_path, "csv", version=0), wandb)
    show(run, MEANS, str(tmp_path / "gates.png"))
    assert images == [("gate/heatmap", 7), ("gate/heatmap", 7)]
    assert (tmp_path / "csv/version_0/media/gate/heatmap/00000007.png").is_file()
