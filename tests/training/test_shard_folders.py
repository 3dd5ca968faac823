"""Shards of one step are never among those of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from lightning_pelt.training.shard_folders import write_whole_folders


class Shards(ModelParallelStrategy):
    """Writes two files; ``killed`` ends it after the first."""

    killed = False
    is_global_zero = True

    def save_checkpoint(self, checkpoint: Any, filepath: Any, storage_options: Any = None) -> None:
        Path(filepath).mkdir(exist_ok=True)
        (Path(filepath) / "0.distcp").write_text(checkpoint)
        if self.killed:
            raise KeyboardInterrupt
        (Path(filepath) / "1.distcp").write_text(checkpoint)

    def barrier(self, name: str | None = None) -> None: ...

    def broadcast(self, value: Any, src: int = 0) -> Any:
        return value


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("there", ["folder", "file"])
def test_a_kill_leaves_the_folder_that_was_there(tmp_path: Path, there: str) -> None:
    strategy = Shards(save_distributed_checkpoint=True)
    write_whole_folders(strategy)
    write_whole_folders(strategy)  # of a second fit
    if there == "folder":
        strategy.save_checkpoint("4", tmp_path / "last.ckpt")
        before = {"last.ckpt/0.distcp": "4", "last.ckpt/1.distcp": "4"}
    else:
        (tmp_path / "last.ckpt").write_text("one process")
        before = {"last.ckpt": "one process"}
    assert contents(tmp_path) == before

    strategy.killed = True
    with pytest.raises(KeyboardInterrupt):
        strategy.save_checkpoint("8", str(tmp_path / "last.ckpt"))
    assert contents(tmp_path) == before | {".last.ckpt.part/0.distcp": "8"}

    strategy.killed = False
    strategy.save_checkpoint("12", tmp_path / "last.ckpt")
    assert contents(tmp_path) == {"last.ckpt/0.distcp": "12", "last.ckpt/1.distcp": "12"}


def test_strategies_that_write_files_stay_as_they_are() -> None:
    sharded = FSDPStrategy(state_dict_type="sharded")
    write_whole_folders(sharded)
    assert "save_checkpoint" in vars(sharded)
    for strategy in (
        FSDPStrategy(state_dict_type="full"),
        ModelParallelStrategy(save_distributed_checkpoint=False),
        SingleDeviceStrategy("cpu"),
    ):
        write_whole_folders(strategy)
        assert "save_checkpoint" not in vars(strategy)
