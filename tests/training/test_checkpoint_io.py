"""A checkpoint that cannot be written leaves the one that was there."""

from __future__ import annotations

import errno
import io
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from callbacks.test_pelt import user_module
from callbacks.tiny import Tiny, loader, trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from small import LABELS, Sentences, bert

from lightning_pelt import LoRA, PELTCallback, PELTModule, Plan
from lightning_pelt.training.checkpoint_io import WholeFiles

PLAN = Plan.uniform(LoRA(r=2))
FULL = OSError(errno.ENOSPC, "No space left on device")


class FullDisk:
    """Writes half of every file, and then fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        write = Path.write_bytes

        def half(path: Path, data: Any) -> int:
            if not self.full:
                return write(path, data)
            write(path, bytes(data)[: len(data) // 2])
            raise FULL

        def move(source: str, target: str) -> None:  # how Lightning's own writer ends
            data = Path(source).read_bytes()
            with io.FileIO(target, "w") as file:
                file.write(data[: len(data) // 2] if self.full else data)
            if self.full:
                raise FULL

        monkeypatch.setattr(Path, "write_bytes", half)
        monkeypatch.setattr(shutil, "move", move)


def test_lightnings_writer_leaves_half_a_file(tmp_path, monkeypatch):
    """The fault that the other tests are about."""
    FullDisk(monkeypatch)
    with pytest.raises(OSError, match="No space"):
        TorchCheckpointIO().save_checkpoint({"a": torch.ones(99)}, tmp_path / "a.ckpt")
    with pytest.raises((RuntimeError, EOFError)):
        torch.load(tmp_path / "a.ckpt")


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.ckpt"
    WholeFiles().save_checkpoint({"a": 1}, path)
    disk = FullDisk(monkeypatch)
    with pytest.raises(OSError, match="No space"):
        WholeFiles().save_checkpoint({"a": 2}, path)
    assert torch.load(path) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["a.ckpt"]
    disk.full = False
    WholeFiles().save_checkpoint({"a": 2}, str(path))
    assert torch.load(path) == {"a": 2}


def test_a_full_disk_leaves_no_new_file(tmp_path, monkeypatch):
    FullDisk(monkeypatch)
    with pytest.raises(OSError, match="No space"):
        WholeFiles().save_checkpoint({"a": 2}, tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


def test_other_file_systems_are_left_to_lightning():
    WholeFiles().save_checkpoint({"a": 3}, "memory://runs/a.ckpt")
    with fsspec.open("memory://runs/a.ckpt", "rb") as file:
        assert torch.load(file) == {"a": 3}
    assert WholeFiles().load_checkpoint("memory://runs/a.ckpt") == {"a": 3}


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.slow
def test_a_fit_keeps_its_last_good_checkpoint(tmp_path, monkeypatch, own):
    backbone = bert(tmp_path / "backbone")
    module: Any = PELTModule(backbone, PLAN, labels=LABELS) if own else user_module()
    data = Sentences(backbone) if own else loader(5)
    disk = FullDisk(monkeypatch)
    disk.full = False

    class Fills(ModelCheckpoint):
        def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
            disk.full = trainer.global_step > 5
            super()._save_checkpoint(trainer, filepath)

    kept = Fills(tmp_path / "kept", filename="last", enable_version_counter=False)
    callbacks = [kept] if own else [PELTCallback(PLAN), kept]
    run = trainer(tmp_path, *callbacks, max_epochs=2, enable_checkpointing=True)
    with pytest.raises(OSError, match="No space"):
        run.fit(module, data)
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "kept" / "last.ckpt", weights_only=True)["global_step"] == 5


def test_a_plugin_of_the_user_stays(tmp_path):
    class Mine(TorchCheckpointIO):
        pass

    for plugin in (Mine(), AsyncCheckpointIO()):
        run = trainer(tmp_path, PELTCallback(PLAN), plugins=[plugin])
        run.fit(user_module(), loader(1))
        assert run.strategy.checkpoint_io is plugin


def test_a_trainer_without_the_package_is_not_changed(tmp_path):
    run = trainer(tmp_path)
    run.fit(Tiny(), loader(1))
    assert type(run.strategy.checkpoint_io) is TorchCheckpointIO
