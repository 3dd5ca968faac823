from __future__ import annotations

import errno
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lightning_pelt.utils.files import locked, write_aside, write_together


def test_a_file_is_created_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for text in ("old", "new"):
        write_aside(path, lambda aside, text=text: aside.write_text(text))
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def torn(aside: Path) -> None:
        aside.write_text("incompl")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_aside(path, torn)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_is_complete_while_the_new_one_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(aside: Path) -> None:
        aside.write_text("new")
        assert path.read_text() == "old"

    write_aside(path, write)
    assert path.read_text() == "new"


def test_files_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    write_together({path: lambda aside: aside.write_text("old") for path in paths})

    def fail(aside: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_together({paths[0]: lambda aside: aside.write_text("new"), paths[1]: fail})
    assert [path.read_text() for path in paths] == ["old", "old"]
    assert sorted(tmp_path.iterdir()) == paths


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_may_read(tmp_path: Path, mask: int) -> None:
    """Even where the writer replaces the file with one that only its owner may read."""

    def private(aside: Path) -> None:
        aside.unlink()
        os.close(os.open(aside, os.O_CREAT | os.O_WRONLY, 0o600))

    before = os.umask(mask)
    try:
        write_aside(tmp_path / "file", private)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask


def test_threads_write_one_file_at_once(tmp_path: Path) -> None:
    """Each has a temporary file, since all of them are written before the first one is done."""
    path, writers = tmp_path / "file.txt", 8
    barrier = threading.Barrier(writers, timeout=60)
    asides = []

    def save(number: int) -> None:
        def write(aside: Path) -> None:
            asides.append(aside)
            aside.write_text(str(number) * 1000)
            barrier.wait()

        write_aside(path, write)

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(save, range(writers)))
    assert len({*asides}) == writers
    assert path.read_text() in {str(number) * 1000 for number in range(writers)}
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_waits_until_both_files_are_replaced(tmp_path: Path) -> None:
    found = []

    def read() -> None:
        with locked(tmp_path, shared=True):
            found.append((tmp_path / "file").read_text())

    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path):
            job = pool.submit(read)
            (tmp_path / "file").write_text("new")
            assert not found
        job.result(timeout=60)
    assert found == ["new"]
    with locked(tmp_path, shared=True):
        read()  # readers do not wait for each other
