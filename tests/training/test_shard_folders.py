"""Shards of one step are never among those of another."""

from __future__ import annotations

import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from lightning_pelt.training import shard_folders
from lightning_pelt.training.shard_folders import complete_replacements, write_whole_folders


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

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        return (Path(checkpoint_path) / "0.distcp").read_text()

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


# A kill in the replacement of a folder: before, between and after the two renames, what is there
# then, and the step that is loaded. The first rename follows the flush of the new folder.
KILLS = {
    "before": ({"last.ckpt", ".last.ckpt.part"}, "4"),
    "between": ({".last.ckpt.old", ".last.ckpt.part"}, "8"),
    "after": ({"last.ckpt", ".last.ckpt.old"}, "8"),
}


def killed(monkeypatch: pytest.MonkeyPatch, folder: Path, kill: str) -> Shards:
    """A strategy that has saved, and was killed when it replaced that."""
    strategy = Shards(save_distributed_checkpoint=True)
    write_whole_folders(strategy)
    strategy.save_checkpoint("4", folder / "last.ckpt")
    renames = {"before": 0, "between": 1, "after": 2}[kill]
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal renames
        renames -= 1
        if renames < 0:
            raise KeyboardInterrupt
        return original(self, target)

    def remove(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", replace)
        patch.setattr(shard_folders, "_remove", remove)
        strategy.save_checkpoint("8", folder / "last.ckpt")
    return strategy


@pytest.mark.parametrize("kill", KILLS)
def test_the_next_load_completes_a_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: str
) -> None:
    there, step = KILLS[kill]
    strategy = killed(monkeypatch, tmp_path, kill)
    assert {path.name for path in tmp_path.iterdir()} == there
    said = pytest.warns(UserWarning, match=r"killed while it replaced .*last\.ckpt: the new")
    with said if kill == "between" else nullcontext():
        assert strategy.load_checkpoint(tmp_path / "last.ckpt") == step
    assert not (tmp_path / ".last.ckpt.old").exists()
    assert contents(tmp_path / "last.ckpt") == {"0.distcp": step, "1.distcp": step}


@pytest.mark.parametrize("kill", KILLS)
def test_the_next_save_completes_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: str
) -> None:
    """A save that fails meanwhile leaves the newest complete checkpoint."""
    strategy = killed(monkeypatch, tmp_path, kill)
    strategy.killed = True
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("ignore")
        strategy.save_checkpoint("12", tmp_path / "last.ckpt")
    assert contents(tmp_path / "last.ckpt")["1.distcp"] == KILLS[kill][1]

    strategy.killed = False
    strategy.save_checkpoint("16", tmp_path / "last.ckpt")
    assert contents(tmp_path) == {"last.ckpt/0.distcp": "16", "last.ckpt/1.distcp": "16"}


def test_an_old_folder_without_a_new_one_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = killed(monkeypatch, tmp_path, "between")
    shutil.rmtree(tmp_path / ".last.ckpt.part")
    with pytest.warns(UserWarning, match="the old checkpoint is there now"):
        assert strategy.load_checkpoint(tmp_path / "last.ckpt") == "4"
    assert contents(tmp_path) == {"last.ckpt/0.distcp": "4", "last.ckpt/1.distcp": "4"}


def test_a_folder_of_checkpoints_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line looks for the last checkpoint by name."""
    killed(monkeypatch, tmp_path, "between")
    (tmp_path / "step=4.ckpt").write_text("of one process")
    with pytest.warns(UserWarning, match="the new checkpoint"):
        complete_replacements(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "step=4.ckpt"}
    complete_replacements(tmp_path / "nowhere")


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
