"""A disk that fills up during a write: the old file stays, the error names it, nothing is left."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from matplotlib.figure import Figure
from profiles.samples import random_profile
from search.worker_process import SETTINGS, jobs
from zoo import build

from lightning_pelt import LoRA, Plan, WritePredictions, attach, save_adapters
from lightning_pelt.profiles._row_codec import encode
from lightning_pelt.profiles._shards import ShardWriter
from lightning_pelt.profiles.store import ProfileStore
from lightning_pelt.reports.figures import save
from lightning_pelt.search.queue.ledger import Ledger
from lightning_pelt.training.checkpoint_io import WholeFiles
from lightning_pelt.utils.files import write_aside


def checkpoint(folder: Path) -> None:
    WholeFiles().save_checkpoint({"a": torch.ones(3000)}, folder / "a.ckpt")


def adapters(folder: Path) -> None:
    model = build("bert")
    attach(model, Plan.uniform(LoRA(r=2)))
    save_adapters(model, folder)


def predictions(folder: Path) -> None:
    rows = [{"label": "x" * 50} for _ in range(200)]
    trainer: Any = SimpleNamespace(
        log_dir=str(folder),
        default_root_dir=str(folder),
        world_size=1,
        global_rank=0,
        strategy=SingleDeviceStrategy("cpu"),
    )
    WritePredictions().write_on_epoch_end(trainer, None, [rows], [])  # type: ignore[arg-type]


def shards(folder: Path) -> None:
    profile = random_profile()
    writer = ShardWriter(folder, profile.bank, rows_per_shard=50)
    for encoded in encode({f"u{i}": random_profile(i) for i in range(50)}):
        writer.add((encoded, 1))
    writer.close()


def picture(folder: Path) -> None:
    figure = Figure()
    figure.subplots().plot([1, 2])
    save(figure, folder / "gates.png")


WRITERS = [checkpoint, adapters, predictions, shards, picture]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Writes beyond this size fail in the kernel, whatever library writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("write", WRITERS)
def test_the_old_files_stay(tmp_path: Path, write: Callable[[Path], None], share: float) -> None:
    write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    largest = max(map(len, before.values()))
    with (
        files_up_to(int(share * largest)),
        pytest.raises(OSError, match=r"File too.* free") as error,
    ):
        write(tmp_path)
    assert error.value.errno == errno.EFBIG
    assert Path(str(error.value.filename)) in before
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("write", WRITERS)
def test_no_new_file_appears(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with files_up_to(10), pytest.raises(OSError, match="free"):
        write(tmp_path)
    assert not list(tmp_path.iterdir())


CALLS = {
    "mkdir": (Path, "mkdir"),
    "write": (Path, "write_text"),
    "flush": (os, "fsync"),
    "rename": (Path, "replace"),
}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", CALLS)
def test_each_call_may_find_the_disk_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(*args: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number), None if call == "flush" else str(args[0]))

    def write(aside: Path) -> None:
        aside.write_text("new")

    monkeypatch.setattr(*CALLS[call], full)
    with pytest.raises(OSError, match=f"{os.strerror(number)}.* free.*unchanged") as error:
        write_aside(path, write)
    assert (error.value.errno, error.value.filename) == (number, str(path))
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_aside(path, write)
    assert path.read_text() == "new"


def test_an_error_of_another_file_is_left_as_it_is(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError) as error:
        write_aside(tmp_path / "copy", lambda aside: shutil.copyfile(missing, aside))
    assert error.value.filename == str(missing)
    with pytest.raises(ZeroDivisionError):
        write_aside(tmp_path / "copy", lambda aside: 1 / 0)
    assert not list(tmp_path.iterdir())


def test_a_ledger_keeps_its_jobs(tmp_path: Path) -> None:
    path = tmp_path / "ledger.journal"
    ledger = Ledger(str(path), "search", SETTINGS)
    ledger.enqueue(jobs(3))
    with files_up_to(path.stat().st_size + 20), pytest.raises(OSError, match=" free") as error:
        ledger.enqueue(jobs(4))  # writes 20 bytes of its line
    assert error.value.filename == str(path)
    for each in (ledger, Ledger(str(path), "search", SETTINGS)):
        assert each.counts().waiting == 3
    assert ledger.enqueue(jobs(5)) == 2
    assert Ledger(str(path), "search", SETTINGS).counts().waiting == 5


def test_a_store_keeps_its_profiles(tmp_path: Path) -> None:
    path = tmp_path / "profiles.db"
    with ProfileStore(path) as store:
        store.put("a", random_profile(1))
        largest = max(file.stat().st_size for file in tmp_path.iterdir())
        many = {f"b{i}": random_profile(i) for i in range(2000)}
        with files_up_to(largest), pytest.raises(OSError, match=re.escape(str(path))):
            store.put_many(many.items())
        for each in (store, ProfileStore(path)):
            assert dict(each.iterate()) == {"a": random_profile(1)}
            assert each.verify() == []
        store.put_many(many.items())
        assert len(store) == 2001
