"""Checkpoints of shards that are complete or absent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_pelt.utils.files import locked
from lightning_pelt.utils.same_kind import same_kind

PART, OLD = ".part", ".old"  # endings of the hidden names


def write_whole_folders(strategy: Strategy) -> None:
    """Let a strategy that writes shards write them beside their folder, and rename that at the end.

    Lightning writes into the folder that was there, such as ``last.ckpt``. A run that is killed
    meanwhile leaves shards of two steps in it. Here the folder that was there stays whole. Between
    the two renames of the end, both folders are there under hidden names; the next save or load
    completes what a kill has interrupted there, see :func:`complete_replacement`.
    """
    owner = getattr(strategy.save_checkpoint, "__self__", None)
    if not isinstance(owner, _WholeFolders) and _writes_shards(strategy):
        folders = _WholeFolders(strategy)
        strategy.save_checkpoint = folders.save_checkpoint  # type: ignore[method-assign]
        strategy.load_checkpoint = folders.load_checkpoint  # type: ignore[method-assign]


def complete_replacement(path: Path) -> None:
    """Complete the replacement of a folder of shards that a kill has interrupted, if there is one.

    The old folder gets its hidden name after the new one has been flushed. So if there is an old
    one but none at ``path``, the new one takes its place; if that is gone, the old one returns. An
    old one beside ``path`` is removed. A message says so.

    Args:
        path: of the checkpoint.
    """
    aside, old = _hidden(path)
    if not os.path.lexists(old):
        return
    with locked(path.parent):  # a run that is not killed is between its renames
        if not os.path.lexists(old):
            return
        if not path.exists():
            found, what = (aside, "the new") if aside.exists() else (old, "the old")
            found.replace(path)
            rank_zero_warn(
                f"a process was killed while it replaced {path}: {what} checkpoint is there now"
            )
        _remove(old)


def complete_replacements(folder: Path) -> None:
    """Do so for all checkpoints in a folder."""
    if folder.is_dir():
        for old in folder.glob(f".*{OLD}"):
            complete_replacement(folder / old.name[1:].removesuffix(OLD))


def _hidden(path: Path) -> tuple[Path, Path]:
    """Where the new folder is written, and where the old one is until the new one has its name."""
    return path.with_name(f".{path.name}{PART}"), path.with_name(f".{path.name}{OLD}")


def _writes_shards(strategy: Strategy) -> bool:
    if same_kind(strategy, ModelParallelStrategy):
        return bool(getattr(strategy, "_save_distributed_checkpoint", False))
    return same_kind(strategy, FSDPStrategy) and strategy._state_dict_type == "sharded"  # type: ignore[attr-defined]


class _WholeFolders:
    """Saves as a strategy does, into a folder that gets its name when it is complete; loads it."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy, self.original = strategy, strategy.save_checkpoint
        self.loads = strategy.load_checkpoint

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(self.strategy.broadcast(filepath))
        aside, old = _hidden(path)
        self._complete(path)
        if self.strategy.is_global_zero:
            shutil.rmtree(aside, ignore_errors=True)
        self.strategy.barrier()
        self.original(checkpoint, aside, storage_options)
        self.strategy.barrier()
        if self.strategy.is_global_zero:
            _flush(aside)
            with locked(path.parent):
                if path.exists():
                    path.replace(old)  # a folder that is not empty cannot be replaced
                aside.replace(path)
            _remove(old)
        self.strategy.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        self._complete(Path(self.strategy.broadcast(checkpoint_path)))
        self.strategy.barrier()
        return self.loads(checkpoint_path, *args, **kwargs)

    def _complete(self, path: Path) -> None:
        if self.strategy.is_global_zero:
            complete_replacement(path)


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
