"""A process that is killed at any moment of a write leaves the old file or the new one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_pelt.utils import files
from lightning_pelt.utils.files import write_aside, write_together

EVENTS = ("open", "os.", "shutil.")  # what Python tells of calls to the file system


def killed_at(number: int, folder: Path, paths: list[Path]) -> bool:
    """Write new files in a process that is killed before its n-th call; False if there is none."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL), status
        return status != 0
    try:
        count = 0

        def before(event: str, args: tuple[Any, ...]) -> None:
            nonlocal count
            count += event.startswith(EVENTS)
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(before)
        write_together({path: lambda aside: aside.write_text("new") for path in paths})
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("count", [1, 2])
def test_a_kill_at_any_call(tmp_path: Path, count: int) -> None:
    paths = [tmp_path / f"file{i}" for i in range(count)]
    number, found = 0, set()
    while True:
        number += 1
        for path in paths:
            path.write_text("old")
        killed = killed_at(number, tmp_path, paths)
        found.add("".join(path.read_text()[0] for path in paths))
        assert len(list(tmp_path.iterdir())) <= count + 1  # the next write deletes leftovers
        if not killed:
            break
    assert number > 8
    assert found <= {"o", "n", "oo", "no", "nn"}
    assert sorted(tmp_path.iterdir()) == paths


def leave(folder: Path) -> Path:
    """A leftover of a killed writer of this host."""
    leftover = folder / f".{files._host()}00000000.part"
    leftover.mkdir()
    (leftover / "file").write_text("incompl")
    return leftover


def test_leftovers_are_deleted_except_those_in_use_and_files_of_others(tmp_path: Path) -> None:
    leftover = leave(tmp_path)
    other = tmp_path / ".part"
    other.write_text("of the user")

    def write(aside: Path) -> None:
        assert not leftover.exists()
        write_aside(tmp_path / "second", lambda again: again.write_text("2"))
        aside.write_text("1")

    write_aside(tmp_path / "first", write)
    assert {path.name for path in tmp_path.iterdir()} == {".part", "first", "second"}


def test_leftovers_of_other_hosts_are_deleted_when_they_are_old(tmp_path: Path) -> None:
    """Their locks may not be visible here."""
    here = leave(tmp_path)
    there = here.rename(tmp_path / ".0123456701234567.part")
    write_aside(tmp_path / "file", lambda aside: aside.write_text("1"))
    assert there.exists()
    old = there.stat().st_mtime - files.OTHER_HOSTS - 1
    os.utime(there, (old, old))
    write_aside(tmp_path / "file", lambda aside: aside.write_text("2"))
    assert not there.exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("of the user")
    (tmp_path / f".{files._host()}00000000.part").symlink_to(target)
    write_aside(tmp_path / "file", lambda aside: aside.write_text("1"))
    assert (target / "file").read_text() == "of the user"


def test_the_name_is_flushed_after_the_file(tmp_path: Path, monkeypatch: Any) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flush(descriptor: int) -> None:
        calls.append("folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        fsync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    write_aside(tmp_path / "file", lambda aside: aside.write_text("1"))
    assert calls == ["file", "rename", "folder"]
