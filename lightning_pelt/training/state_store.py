"""Hidden states of examples on the disk, by the digest of what they follow from."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import threading
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_pelt.utils.files import locked, write_aside
from lightning_pelt.utils.text import readable_bytes

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be deleted
    fcntl = None  # type: ignore[assignment]

MANIFEST = "trunk.json"
ROWS = "rows-*.safetensors"
SEGMENT = 64 * 2**20  # bytes that are collected before they are written
HEADER, ROW = 512, 32  # bytes of a file, and of a row, beside the states
WEIGHTS = "weights"  # the entry of a key that tells whether states of a folder are outdated


class Place(NamedTuple):
    """Where a row's states are: in which file, and which of its rows."""

    states: Tensor
    start: int
    size: int
    check: int


class StateStore:
    """States (n, d) of examples in a folder, which several processes may fill and read.

    A process collects rows in memory and writes them in files that are complete when they get their
    names. It maps files into memory and reads from the disk what it uses. A row that is damaged is
    not returned. The store is in a subfolder that is named by its key. Subfolders of other weights
    that no process uses are deleted.

    Args:
        folder: for states of several keys.
        key: plain data from which the states follow, with the digest of ``weights``.
        max_bytes: of all files in ``folder``. A store that is full keeps what it has.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with StateStore(folder, {"weights": "a1"}, max_bytes=2**20) as store:
        ...     store.put(b"0" * 16, torch.ones(3, 2))
        >>> with StateStore(folder, {"weights": "a1"}, max_bytes=2**20) as store:
        ...     store.get(b"0" * 16).shape, store.get(b"1" * 16)
        (torch.Size([3, 2]), None)
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], *, max_bytes: int) -> None:
        self.folder, self.key, self.max_bytes = folder, dict(key), max_bytes
        text = json.dumps(self.key, sort_keys=True)
        self.path = folder / f"trunk-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self.full = False
        self.dropped = 0  # bytes of outdated states
        self._lock = threading.Lock()
        self._files: set[str] = set()
        self._index: dict[bytes, Place] = {}
        self._checked: set[bytes] = set()
        self._buffer: dict[bytes, Tensor] = {}
        self._buffered = self._on_disk = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._drop_outdated()
        self._held = _hold(self.path, text)
        self.refresh()

    def __enter__(self) -> StateStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._index) + len(self._buffer)

    @property
    def size(self) -> int:
        """Bytes of the states, of those in memory too."""
        return _size(self.path) + self._buffered

    def get(self, digest: bytes) -> Tensor | None:
        """The states of an example, (n, d), in memory that must not be changed; None if absent."""
        kept = self._buffer.get(digest)
        if kept is not None:
            return kept
        place = self._index.get(digest)
        if place is None:
            return None
        states = place.states[place.start : place.start + place.size]
        if digest not in self._checked:
            if _checksum(states) != place.check:
                del self._index[digest]
                return None
            self._checked.add(digest)
        return states

    def put(self, digest: bytes, states: Tensor) -> None:
        """Keep the states (n, d) of an example, on the CPU, unless the store is full."""
        size = states.numel() * states.element_size() + ROW
        with self._lock:
            if self.full or digest in self._buffer:
                return
            if not self._fits(size) and not self._make_room(size):
                self.full = True
                return
            with torch.inference_mode(False):  # training reads what a validation computed
                self._buffer[digest] = states.clone()
            self._buffered += size
        if self._buffered >= SEGMENT:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory. A full disk, or folder, ends the filling and nothing else."""
        with self._lock:
            if not self._buffer:
                return
            path = self.path / ROWS.replace("*", secrets.token_hex(8))
            try:
                with locked(self.folder):
                    self._on_disk = _size(self.folder)
                    if self._fits() or self._make_room():
                        write_aside(path, self._save)
                    else:
                        self.full = True
            except OSError as error:
                self.full = True
                rank_zero_warn(f"the trunk cache is not filled further: {error}")
            if path.exists():
                self._open(path)
            self._buffer, self._buffered = {}, 0
            self._on_disk = _size(self.folder)

    def refresh(self) -> None:
        """Find what other processes have written."""
        for path in sorted(self.path.glob(ROWS)):
            if path.name not in self._files:
                self._open(path)
        self._on_disk = _size(self.folder)

    def close(self) -> None:
        """Write what is in memory, and let other processes delete the states."""
        self.flush()
        self._index.clear()
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _save(self, path: Path) -> None:
        rows = list(self._buffer.values())
        tensors = {
            "digests": torch.frombuffer(bytearray(b"".join(self._buffer)), dtype=torch.uint8),
            "sizes": torch.tensor([len(row) for row in rows]),
            "checks": torch.tensor([_checksum(row) for row in rows]),
            "states": torch.cat(rows),
        }
        save_file(tensors, path)

    def _open(self, path: Path) -> None:
        """Index the rows of a file; one that cannot be read is deleted."""
        self._files.add(path.name)
        try:
            with safe_open(path, "pt") as file:
                named = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sizes, checks = named["sizes"].tolist(), named["checks"].tolist()
            digests, states = named["digests"].numpy().tobytes(), named["states"]
            width = len(digests) // max(len(sizes), 1)
            if len(sizes) != len(checks) or sum(sizes) != len(states) or states.dim() != 2:
                raise ValueError("its tables do not fit")
        except FileNotFoundError:
            return
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            rank_zero_warn(f"{path} cannot be read and is deleted: {error}")
            with suppress(OSError):
                path.unlink()
            return
        start = 0
        for row, (size, check) in enumerate(zip(sizes, checks, strict=True)):
            digest = digests[row * width : (row + 1) * width]
            self._index.setdefault(digest, Place(states, start, size, check))
            start += size

    def _drop_outdated(self) -> None:
        """Delete the states of other weights, except those that a process uses."""
        for path in self.folder.glob(f"*/{MANIFEST}"):
            try:
                weights = json.loads(path.read_text(encoding="utf-8")).get(WEIGHTS)
            except (OSError, ValueError, AttributeError):
                continue
            if path.parent != self.path and weights != self.key[WEIGHTS]:
                self.dropped += _drop(path.parent)

    def _fits(self, size: int = 0) -> bool:
        """Whether there is room for the file that is collected, and ``size`` bytes more."""
        return self._on_disk + HEADER + self._buffered + size <= self.max_bytes

    def _make_room(self, size: int = 0) -> bool:
        """Delete states of other keys that no process uses, those used last at the end."""
        others = [p.parent for p in self.folder.glob(f"*/{MANIFEST}") if p.parent != self.path]
        for path in sorted(others, key=lambda p: p.stat().st_mtime if p.exists() else 0.0):
            _drop(path)
            self._on_disk = _size(self.folder)
            if self._fits(size):
                return True
        return False


def _hold(path: Path, manifest: str) -> int | None:
    """Create the folder of a store, and keep others from deleting it."""
    while True:
        path.mkdir(exist_ok=True)
        file = path / MANIFEST
        if not file.exists():
            write_aside(file, lambda aside: aside.write_text(manifest, encoding="utf-8"))
        os.utime(path)
        if fcntl is None:
            return None
        with suppress(OSError):
            held = os.open(file, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(held, fcntl.LOCK_SH)
            if file.exists() and os.fstat(held).st_ino == file.stat().st_ino:
                return held
            os.close(held)  # another process has deleted it meanwhile


def _drop(path: Path) -> int:
    """Delete the states in a folder unless a process uses them; returns their bytes."""
    if fcntl is None:
        return 0
    size = _size(path)
    with suppress(OSError):
        lock = os.open(path / MANIFEST, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
            return size
        finally:
            os.close(lock)
    return 0


def _size(folder: Path) -> int:
    """Bytes of the states in a folder, or in the folders inside it."""
    total = 0
    for pattern in (ROWS, f"trunk-*/{ROWS}"):
        for path in folder.glob(pattern):
            with suppress(OSError):  # deleted meanwhile
                total += path.stat().st_size
    return total


def _checksum(states: Tensor) -> int:
    return zlib.crc32(states.contiguous().view(torch.uint8).numpy().data)


def described(store: StateStore) -> str:
    """What a store holds, for messages."""
    limit = readable_bytes(store.max_bytes)
    rows = f"{len(store):,} example{'s' * (len(store) != 1)}"
    return f"{rows}, {readable_bytes(store.size)} of at most {limit}, {store.path}"
