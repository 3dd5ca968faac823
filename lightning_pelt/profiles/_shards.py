"""Sealed shards: a store's profiles as safetensors files under a manifest of their hashes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from lightning_pelt.files import write_aside
from lightning_pelt.profiles._records import Parts
from lightning_pelt.profiles._rows import HEADER_SIZE, SOFT, read_form

MANIFEST = "manifest.json"
FORMAT = "1"
SHARD_BYTES = 2**28  # of a shard of few but large rows
_HEADER, _MASKS = slice(HEADER_SIZE), slice(HEADER_SIZE, None)
Versioned = tuple[Parts, int]  # the number of the version


class Writer:
    """Writes rows into shards, each of masks of one kind and shape, and the manifest last.

    A shard has ``masks`` (P, L, 2, ⌈N/8⌉) of bytes, or (P, L, 2, N) of fp32 where they are soft;
    ``headers`` (P, 16), see :mod:`._rows`; ``versions`` (P,); and ``ids``, ``norms`` and ``heads``
    as bytes one after the other, with ``*.ends`` (P,) where each of them ends. A part that a
    profile does not have takes no bytes. The bank's digest is in the file's header.
    """

    def __init__(self, folder: Path, bank: str, rows_per_shard: int) -> None:
        self.folder, self.bank, self.rows_per_shard = folder, bank, rows_per_shard
        self.open: dict[tuple[int, ...], list[Versioned]] = {}
        self.sizes: Counter[tuple[int, ...]] = Counter()
        self.shards: list[dict[str, Any]] = []

    def add(self, row: Versioned) -> None:
        given, _ = row
        form = read_form(given.masks)
        kind = (form.mode, form.blocks, form.size)
        alike = self.open.setdefault(kind, [])
        alike.append(row)
        self.sizes[kind] += len(given.masks) + len(given.norm or b"") + len(given.head or b"")
        if len(alike) == self.rows_per_shard or self.sizes[kind] >= SHARD_BYTES:
            self._write(self.open.pop(kind))
            self.sizes[kind] = 0

    def close(self) -> None:
        """Write what is left, and the manifest."""
        for alike in self.open.values():
            self._write(alike)
        manifest = {"format": FORMAT, "bank": self.bank, "shards": self.shards}
        written = json.dumps(manifest, indent=2) + "\n"
        write_aside(self.folder / MANIFEST, lambda path: path.write_text(written))

    def _write(self, rows: Sequence[Versioned]) -> None:
        path = self.folder / f"profiles-{len(self.shards):05d}.safetensors"
        header = {"format": FORMAT, "bank": self.bank}
        write_aside(path, partial(save_file, _to_tensors(rows), metadata=header))
        self.shards.append({"file": path.name, "rows": len(rows), "sha256": _sha256(path)})


def read_manifest(folder: Path) -> tuple[str, list[Path]]:
    """The bank's digest and the shards, after every one of them was found whole.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: it is foreign; or a shard is missing or another one than was written, and named.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {MANIFEST} in {folder}: ProfileStore.export writes it"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, bank, shards = manifest["format"], str(manifest["bank"]), manifest["shards"]
        sums = {folder / shard["file"]: shard["sha256"] for shard in shards}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a manifest of ProfileStore.export: {error!r}") from error
    if found != FORMAT:
        raise ValueError(f"{path} is of format {found}, and this version reads {FORMAT}")
    for shard, digest in sums.items():
        if not shard.is_file():
            raise ValueError(f"the shard {shard} is missing: nothing was imported")
        if _sha256(shard) != digest:
            raise ValueError(
                f"the shard {shard} is truncated or was changed: its SHA-256 is not the one in the "
                "manifest. Nothing was imported; copy the export anew"
            )
    return bank, list(sums)


def read_shard(path: Path) -> Iterator[Versioned]:
    """The rows of one shard.

    Raises:
        ValueError: it is not a shard of ours.
    """
    try:
        tensors = load(path.read_bytes())
        versions = tensors["versions"].tolist()
        headers, masks = tensors["headers"], tensors["masks"].reshape(len(versions), -1)
        packed = np.concatenate([headers, masks.view(np.uint8)], axis=1)
        ids, norms, heads = (_split(tensors, name) for name in ("ids", "norms", "heads"))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a shard of ProfileStore.export: {error!r}") from error
    for index, version in enumerate(versions):
        norm, head = norms[index] or None, heads[index] or None
        yield Parts(ids[index].decode(), packed[index].tobytes(), norm, head), version


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _to_tensors(rows: Sequence[Versioned]) -> dict[str, NDArray]:
    form = read_form(rows[0][0].masks)
    packed = np.frombuffer(b"".join(given.masks for given, _ in rows), np.uint8)
    packed = packed.reshape(len(rows), -1)
    # Copies, since safetensors writes a view as if it had the memory beside it.
    headers, masks = (packed[:, part].copy() for part in (_HEADER, _MASKS))
    masks = masks.reshape(len(rows), form.blocks, 2, form.row_bytes)
    return {
        "headers": headers,
        "masks": masks.view("<f4") if form.mode == SOFT else masks,
        "versions": np.array([version for _, version in rows], dtype=np.int64),
        **_joined("ids", [given.id.encode() for given, _ in rows]),
        **_joined("norms", [given.norm or b"" for given, _ in rows]),
        **_joined("heads", [given.head or b"" for given, _ in rows]),
    }


def _joined(name: str, pieces: Iterable[bytes]) -> dict[str, NDArray]:
    pieces = list(pieces)
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    return {name: np.frombuffer(b"".join(pieces), np.uint8), f"{name}.ends": ends}


def _split(tensors: dict[str, NDArray], name: str) -> list[bytes]:
    joined, ends = tensors[name].tobytes(), tensors[f"{name}.ends"].tolist()
    return [joined[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
