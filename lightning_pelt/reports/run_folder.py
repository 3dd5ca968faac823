"""Find the folder of a run: one in which Lightning's ``CSVLogger`` has written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from lightning_pelt.utils.errors import unknown

METRICS, SETTINGS = "metrics.csv", "hparams.yaml"
EXPECTED = (
    f"A run is a folder in which Lightning's CSVLogger has written {METRICS}, such as "
    "runs/quickstart/version_0, or the folder of its versions."
)
DEPTH = 3  # folders between the one that is named and a run
MOST = 1000  # folders that are looked into
VERSION = re.compile(r"version_(\d+)")


@dataclass(frozen=True)
class RunFolder:
    """A folder with ``metrics.csv``.

    Attributes:
        files: file system of the folder.
        path: of the folder, in that file system.
        notes: what the user should know of the choice among several versions.
    """

    files: AbstractFileSystem
    path: str
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last two parts of the path, as in ``quickstart/version_0``."""
        return "/".join(self.path.split("/")[-2:])

    @property
    def location(self) -> str:
        """The path, or the URL if the folder is not on this machine."""
        local = isinstance(self.files, LocalFileSystem)
        return self.path if local else str(self.files.unstrip_protocol(self.path))

    def read(self, name: str) -> bytes | None:
        """The content of a file of the run; None if it does not exist."""
        with suppress(FileNotFoundError):
            return bytes(self.files.cat_file(f"{self.path}/{name}"))
        return None

    def written(self) -> datetime | None:
        """When ``metrics.csv`` was written last, if the file system knows."""
        return _modified(self.files, self.path)


def find_run(location: str) -> RunFolder:
    """The run in a folder, or the newest of the versions in it.

    Args:
        location: path or URL of a run, of its ``metrics.csv``, or of a folder with versions of one.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it. The message names the nearest.
        ValueError: several folders have runs, so none is the newest version of the others.
    """
    files, path = url_to_fs(str(location))
    path = path.removesuffix(f"/{METRICS}").rstrip("/")
    if files.isfile(f"{path}/{METRICS}"):
        return RunFolder(files, path)
    if not files.exists(path):
        raise FileNotFoundError(_missing(files, location))
    found = list(_runs_below(files, path)) if files.isdir(path) else []
    if not found:
        raise FileNotFoundError(_no_run(files, path, location))
    parents = sorted({run.rpartition("/")[0] for run in found})
    if len(parents) > 1:
        some = ", ".join(sorted(run.removeprefix(f"{path}/") for run in found)[:6])
        raise ValueError(f"{location} has {len(found)} runs in several folders: name one of {some}")
    return _newest(files, parents[0], found)


def _newest(files: AbstractFileSystem, parent: str, found: list[str]) -> RunFolder:
    """By the number of the version if all have one, else by the time of writing."""
    numbers = {run: _number(run) for run in found}
    if min(numbers.values()) >= 0:
        chosen = max(found, key=lambda run: numbers[run])
    else:
        chosen = max(found, key=lambda run: (_modified(files, run) or datetime.min, run))
    name = chosen.rpartition("/")[2]
    notes = []
    if len(found) > 1:
        notes.append(f"{name} is the newest of {len(found)} versions in its folder.")
    later = [each for each in _folders(files, parent) if _number(each) > _number(chosen) >= 0]
    notes += [
        f"{each.rpartition('/')[2]} is newer, but has no {METRICS} yet; {name} is shown."
        for each in later
    ]
    return RunFolder(files, chosen, tuple(notes))


def _number(path: str) -> int:
    match = VERSION.fullmatch(path.rpartition("/")[2])
    return int(match[1]) if match else -1


def _modified(files: AbstractFileSystem, run: str) -> datetime | None:
    """In local time without a zone."""
    try:
        time = files.modified(f"{run}/{METRICS}")
    except (NotImplementedError, OSError, KeyError):
        return None
    return datetime.fromtimestamp(time.timestamp()) if time.tzinfo else time


def _folders(files: AbstractFileSystem, path: str) -> list[str]:
    try:
        entries = files.ls(path, detail=True)
    except OSError:  # not readable
        return []
    found = sorted(entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory")
    return [name for name in found if not name.rpartition("/")[2].startswith(".")]


def _runs_below(files: AbstractFileSystem, path: str) -> Iterator[str]:
    """The runs at most ``DEPTH`` folders below ``path``; a run in the folder of another is none."""
    level, left = [path], MOST
    for _ in range(DEPTH):
        below = [folder for each in level for folder in _folders(files, each)][:left]
        left -= len(below)
        runs = {folder for folder in below if files.isfile(f"{folder}/{METRICS}")}
        yield from sorted(runs)
        level = [folder for folder in below if folder not in runs]


def _missing(files: AbstractFileSystem, location: str) -> str:
    """The message for a folder that does not exist, with the nearest that does."""
    head, _, wrong = location.rstrip("/").rpartition("/")
    while head and not files.exists(url_to_fs(head)[1]):
        head, _, wrong = head.rpartition("/")
    absolute = url_to_fs(head or ("/" if location.startswith("/") else "."))[1]
    names = [folder.rpartition("/")[2] for folder in _folders(files, absolute)]
    where = f"; {head} exists, and has no {wrong!r}" if head else ""
    start = f"{head}/" if head or location.startswith("/") else ""
    error = unknown("run", start + wrong, [start + name for name in names], remedy=EXPECTED)
    message = str(error).removeprefix("unknown run ").partition(":")[2].strip()
    return f"there is no folder {location!r}{where}: {message}"


def _no_run(files: AbstractFileSystem, path: str, location: str) -> str:
    """The message for a folder without a run, with the run around it or another logger's files."""
    message = f"{location} is no run: it has no {METRICS}."
    above = path
    for _ in range(DEPTH):
        above = above.rpartition("/")[0]
        if above and files.isfile(f"{above}/{METRICS}"):
            return f"{message} Did you mean {above}? {EXPECTED}"
    names = [name.rpartition("/")[2] for name in files.find(path, maxdepth=2)]
    others = {"TensorBoard": "events.out.tfevents", "W&B": "run-"}
    seen = [kind for kind, start in others.items() if any(n.startswith(start) for n in names)]
    if seen:
        message += f" It has files of {' and '.join(seen)}; add a CSVLogger to trainer.logger."
    elif SETTINGS in names:
        message += f" It has {SETTINGS}, so nothing may have been logged yet."
    return f"{message} {EXPECTED}"
