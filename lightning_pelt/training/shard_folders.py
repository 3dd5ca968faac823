"""Checkpoints of shards that are complete or absent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy

from lightning_pelt.utils.same_kind import same_kind


def write_whole_folders(strategy: Strategy) -> None:
    """Let a strategy that writes shards write them beside their folder, and rename that at the end.

    Lightning writes into the folder that was there, such as ``last.ckpt``. A run that is killed
    meanwhile leaves shards of two steps in it. Here the folder that was there stays whole. Between
    the two renames of the end, both folders are there under hidden names.
    """
    owner = getattr(strategy.save_checkpoint, "__self__", None)
    if not isinstance(owner, _WholeFolders) and _writes_shards(strategy):
        strategy.save_checkpoint = _WholeFolders(strategy).save_checkpoint  # type: ignore[method-assign]


def _writes_shards(strategy: Strategy) -> bool:
    if same_kind(strategy, ModelParallelStrategy):
        return bool(getattr(strategy, "_save_distributed_checkpoint", False))
    return same_kind(strategy, FSDPStrategy) and strategy._state_dict_type == "sharded"  # type: ignore[attr-defined]


class _WholeFolders:
    """Saves as a strategy does, into a folder that gets its name when it is complete."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy, self.original = strategy, strategy.save_checkpoint

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(self.strategy.broadcast(filepath))
        aside, old = (path.with_name(f".{path.name}.{end}") for end in ("part", "old"))
        if self.strategy.is_global_zero:
            for leftover in (aside, old):
                shutil.rmtree(leftover, ignore_errors=True)
        self.strategy.barrier()
        self.original(checkpoint, aside, storage_options)
        self.strategy.barrier()
        if self.strategy.is_global_zero:
            _flush(aside)
            if path.exists():
                path.replace(old)  # a folder that is not empty cannot be replaced
            aside.replace(path)
            _remove(old)
        self.strategy.barrier()


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
