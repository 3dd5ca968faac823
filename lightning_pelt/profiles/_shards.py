"""Shards: the profiles of a store as safetensors files, and a manifest with their hashes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from lightning_pelt.profiles._mask_codec import HEADER_SIZE, SOFT, read_header
from lightning_pelt.profiles._row_codec import EncodedProfile
from lightning_pelt.utils.files import write_aside

MANIFEST = "manifest.json"
FORMAT = "1"
SHARD_BYTES = 2**28  # a shard with large rows is closed at this size
_HEADER, _MASKS = slice(HEADER_SIZE), slice(HEADER_SIZE, None)
VersionedProfile = tuple[EncodedProfile, int]  # with the number of its version


class ShardWriter:
    """Writes rows to shards, one shard per kind and shape of masks, and the manifest at the end.

    A shard contains ``masks`` (P, L, 2, ⌈N/8⌉) of bytes, or (P, L, 2, N) of fp32 for soft masks;
    ``headers`` (P, 16), see :mod:`._mask_codec`; ``versions`` (P,); and ``ids``, ``norms`` and
    ``heads`` as concatenated bytes, with their ends in ``*.ends`` (P,). A missing norm or head has
    no bytes. The header of the file contains the digest of the bank.
    """

    def __init__(self, folder: Path, bank: str, rows_per_shard: int) -> None:
        self.folder, self.bank, self.rows_per_shard = folder, bank, rows_per_shard
        self.open: dict[tuple[int, ...], list[VersionedProfile]] = {}
        self.sizes: Counter[tuple[int, ...]] = Counter()
        self.shards: list[dict[str, Any]] = []

    def add(self, row: VersionedProfile) -> None:
        """Add a row to the open shard of its kind, and write the shard if it is full."""
        encoded, _ = row
        header = read_header(encoded.masks)
        kind = (header.mode, header.blocks, header.size)
        rows = self.open.setdefault(kind, [])
        rows.append(row)
        parts = (encoded.masks, encoded.norm or b"", encoded.head or b"")
        self.sizes[kind] += sum(map(len, parts))
        if len(rows) == self.rows_per_shard or self.sizes[kind] >= SHARD_BYTES:
            self._write(self.open.pop(kind))
            self.sizes[kind] = 0

    def close(self) -> None:
        """Write the open shards and the manifest."""
        for rows in self.open.values():
            self._write(rows)
        manifest = {"format": FORMAT, "bank": self.bank, "shards": self.shards}
        content = json.dumps(manifest, indent=2) + "\n"
        write_aside(self.folder / MANIFEST, lambda path: path.write_text(content))

    def _write(self, rows: Sequence[VersionedProfile]) -> None:
        path = self.folder / f"profiles-{len(self.shards):05d}.safetensors"
        header = {"format": FORMAT, "bank": self.bank}
        write_aside(path, partial(save_file, _to_tensors(rows), metadata=header))
        self.shards.append({"file": path.name, "rows": len(rows), "sha256": _sha256(path)})


def read_manifest(folder: Path) -> tuple[str, list[Path]]:
    """Read the digest of the bank and the paths of the shards, and verify every shard.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: the manifest was not written by :class:`ShardWriter`; or a shard is missing,
            truncated or changed, and the message names it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {MANIFEST} in {folder}: use a folder that ProfileStore.export wrote"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, bank, shards = manifest["format"], str(manifest["bank"]), manifest["shards"]
        sums = {folder / shard["file"]: shard["sha256"] for shard in shards}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a manifest of ProfileStore.export: {error!r}") from error
    if found != FORMAT:
        raise ValueError(f"{path} has the format {found}, and this version reads {FORMAT}")
    for shard, digest in sums.items():
        if not shard.is_file():
            raise ValueError(f"the shard {shard} is missing: nothing was imported")
        if _sha256(shard) != digest:
            raise ValueError(
                f"the shard {shard} is truncated or was changed: its SHA-256 differs from the "
                "manifest's. Nothing was imported; copy the export again"
            )
    return bank, list(sums)


def read_shard(path: Path) -> Iterator[VersionedProfile]:
    """Read the rows of one shard.

    Raises:
        ValueError: the file is not a shard of :class:`ShardWriter`.
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
        yield EncodedProfile(ids[index].decode(), packed[index].tobytes(), norm, head), version


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _to_tensors(rows: Sequence[VersionedProfile]) -> dict[str, NDArray]:
    header = read_header(rows[0][0].masks)
    packed = np.frombuffer(b"".join(encoded.masks for encoded, _ in rows), np.uint8)
    packed = packed.reshape(len(rows), -1)
    # Copies, since safetensors writes a view with the memory beside it.
    headers, masks = (packed[:, part].copy() for part in (_HEADER, _MASKS))
    masks = masks.reshape(len(rows), header.blocks, 2, header.row_bytes)
    return {
        "headers": headers,
        "masks": masks.view("<f4") if header.mode == SOFT else masks,
        "versions": np.array([version for _, version in rows], dtype=np.int64),
        **_concatenated("ids", [encoded.id.encode() for encoded, _ in rows]),
        **_concatenated("norms", [encoded.norm or b"" for encoded, _ in rows]),
        **_concatenated("heads", [encoded.head or b"" for encoded, _ in rows]),
    }


def _concatenated(name: str, values: Sequence[bytes]) -> dict[str, NDArray]:
    ends = np.cumsum([len(value) for value in values], dtype=np.int64)
    return {name: np.frombuffer(b"".join(values), np.uint8), f"{name}.ends": ends}


def _split(tensors: dict[str, NDArray], name: str) -> list[bytes]:
    joined, ends = tensors[name].tobytes(), tensors[f"{name}.ends"].tolist()
    return [joined[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
