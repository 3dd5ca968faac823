"""Checkpoint files that are complete or absent."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from fsspec.implementations.local import LocalFileSystem
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem

from lightning_pelt.training.shard_folders import write_whole_folders
from lightning_pelt.utils.files import write_aside

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its final name, and renames it when it is complete.

    Lightning writes into the temporary folder and then moves the file. Between two disks the move
    is a copy, which a full disk leaves truncated under the final name, over the checkpoint that was
    there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; on other than local file systems as Lightning does.

        Raises:
            OSError: the disk is full or not writable. The file at ``path`` is as it was.
        """
        files = get_filesystem(path)
        if storage_options is not None or not isinstance(files, LocalFileSystem):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(files._strip_protocol(str(path)))
        target.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()  # torch.save into a file hides the error of a full disk
        torch.save(checkpoint, buffer)
        write_aside(target, lambda aside: aside.write_bytes(buffer.getbuffer()))


def write_whole_files(trainer: Trainer) -> None:
    """Let a trainer write its checkpoints with :class:`WholeFiles`, unless it has a plugin.

    Strategies that write shards write whole folders.
    """
    write_whole_folders(trainer.strategy)
    # A class of the same name: pytorch_lightning has one that is not Lightning's.
    if type(trainer.strategy.checkpoint_io).__name__ == TorchCheckpointIO.__name__:
        trainer.strategy.checkpoint_io = WholeFiles()
