"""Shards: the profiles of a store as safetensors files, and a manifest with their hashes."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lightning_pelt.profiles._mask_codec import HEADER_SIZE, SOFT, read_header
from lightning_pelt.profiles._row_codec import EncodedProfile
from lightning_pelt.profiles.profile import is_digest
from lightning_pelt.utils.files import write_aside
from lightning_pelt.utils.json_data import parse_json

MANIFEST = "manifest.json"
_NO_SHARD = "not a shard of ProfileStore.export"
FORMAT = "1"
SHARD_BYTES = 2**28  # a shard with large rows is closed at this size
_NAME = re.compile(r"profiles-\d{5,9}\.safetensors")
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
        number = len(self.shards)
        while (rest := self.folder / _name(number)).exists():  # of an export that failed
            rest.unlink()
            number += 1
        manifest = {"format": FORMAT, "bank": self.bank, "shards": self.shards}
        content = json.dumps(manifest, indent=2) + "\n"
        write_aside(self.folder / MANIFEST, lambda path: path.write_text(content))

    def _write(self, rows: Sequence[VersionedProfile]) -> None:
        path = self.folder / _name(len(self.shards))
        header = {"format": FORMAT, "bank": self.bank}
        write_aside(path, partial(save_file, _to_tensors(rows), metadata=header))
        self.shards.append({"file": path.name, "rows": len(rows), "sha256": _sha256(path)})


class Shard(NamedTuple):
    """A shard as its manifest describes it.

    Attributes:
        path: of the file.
        rows: number of profiles.
        sha256: of the file.
    """

    path: Path
    rows: int
    sha256: str


def read_manifest(folder: Path) -> tuple[str, list[Shard]]:
    """Read the digest of the bank and the shards, and verify every shard.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: the manifest was not written by :class:`ShardWriter`, names a file outside its
            folder, or does not name all shards; or a shard is missing, truncated or changed. The
            message names the file.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {MANIFEST} in {folder}: use a folder that ProfileStore.export wrote"
        )
    try:
        manifest = parse_json(path.read_bytes(), path)
        found, bank, entries = manifest["format"], manifest["bank"], manifest["shards"]
        shards = [Shard(entry["file"], entry["rows"], entry["sha256"]) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a manifest of ProfileStore.export: {error!r}") from error
    if found != FORMAT:
        found = str(found)[:20]
        raise ValueError(f"{path} has the format {found}, and this version reads {FORMAT}")
    if not is_digest(bank):
        raise ValueError(f"{path} has the bank {bank!r}, expected 64 hexadecimal characters")
    shards = [_inside(folder, shard) for shard in shards]
    _check_complete(path, shards)
    for shard in shards:
        _verify(shard, bank)
    return bank, shards


def _inside(folder: Path, shard: Shard) -> Shard:
    """The shard with its path; its name in the manifest must be that of a file in the folder."""
    name: object = shard.path
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{folder / MANIFEST} names the shard {name!r}, expected a file of its folder with a "
            "name such as 'profiles-00000.safetensors': nothing was imported"
        )
    if type(shard.rows) is not int or shard.rows < 1:
        raise ValueError(
            f"{folder / MANIFEST} gives {name} {shard.rows!r} rows, expected 1 or more: nothing "
            "was imported"
        )
    return shard._replace(path=folder / name)


def _check_complete(manifest: Path, shards: Sequence[Shard]) -> None:
    """Check that the manifest names all shards of its folder, in order and each once."""
    expected = [_name(number) for number in range(len(shards))]
    further = manifest.with_name(_name(len(shards))).exists()
    if [shard.path.name for shard in shards] != expected or not shards or further:
        named = ", ".join(shard.path.name for shard in shards) or "no shard"
        raise ValueError(
            f"{manifest} names {named}, expected all shards of its folder from {_name(0)} on, each "
            "once: nothing was imported; copy the export again"
        )


def _verify(shard: Shard, bank: str) -> None:
    if not shard.path.is_file():
        raise ValueError(f"the shard {shard.path} is missing: nothing was imported")
    if _sha256(shard.path) != shard.sha256:
        raise ValueError(
            f"the shard {shard.path} is truncated or was changed: its SHA-256 differs from the "
            "manifest's. Nothing was imported; copy the export again"
        )
    try:
        with safe_open(shard.path, framework="numpy") as file:
            found = (file.metadata() or {}).get("bank", bank)
            (count,) = file.get_slice("versions").get_shape()
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{shard.path} is {_NO_SHARD}: {error!r}") from error
    if found != bank:
        raise ValueError(
            f"{shard.path} has profiles of the bank {found}, and its manifest names the bank "
            f"{bank}: nothing was imported"
        )
    if count != shard.rows:
        raise ValueError(
            f"{shard.path} has {count} profiles, and its manifest says {shard.rows}: nothing was "
            "imported"
        )


def read_shard(path: Path) -> Iterator[VersionedProfile]:
    """Read the rows of a shard that :func:`read_manifest` has verified.

    Raises:
        ValueError: the file is not a shard of :class:`ShardWriter`.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        rows = _rows(tensors)
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is {_NO_SHARD}: {error!r}") from error
    ids = Counter(encoded.id for encoded, _ in rows)
    if len(ids) < len(rows):
        raise ValueError(f"{path} has the profile {ids.most_common(1)[0][0]!r} more than once")
    yield from rows


def _rows(tensors: Mapping[str, NDArray]) -> list[VersionedProfile]:
    """The rows in the tensors of a shard.

    Raises:
        ValueError, LookupError, AttributeError: a tensor is missing or of another kind or shape.
    """
    versions, headers = tensors["versions"], tensors["headers"]
    count = len(versions) if versions.ndim == 1 else -1
    if versions.dtype != np.int64 or headers.dtype != np.uint8:
        raise ValueError(f"versions are {versions.dtype} and headers {headers.dtype}")
    if headers.shape != (count, HEADER_SIZE) or len(tensors["masks"]) != count:
        raise ValueError(f"{headers.shape} headers and {tensors['masks'].shape} masks")
    masks = tensors["masks"].view(np.uint8).reshape(count, -1)
    packed = np.concatenate([headers, masks], axis=1)
    ids, norms, heads = (_split(tensors, name, count) for name in ("ids", "norms", "heads"))
    return [
        (
            EncodedProfile(
                ids[index].decode(), packed[index].tobytes(), norms[index] or None,
                heads[index] or None,
            ),
            version,
        )
        for index, version in enumerate(versions.tolist())
    ]  # fmt: skip


def _name(number: int) -> str:
    return f"profiles-{number:05d}.safetensors"


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


def _split(tensors: Mapping[str, NDArray], name: str, count: int) -> list[bytes]:
    """The inverse of :func:`_concatenated`.

    Raises:
        ValueError: the ends are not those of ``count`` values.
    """
    joined, ends = tensors[name].tobytes(), tensors[f"{name}.ends"]
    if ends.dtype != np.int64 or ends.shape != (count,):
        raise ValueError(f"{name}.ends is {ends.dtype} of shape {ends.shape}")
    starts = [0, *ends.tolist()]
    if sorted(starts) != starts or starts[-1] != len(joined):
        raise ValueError(f"{name}.ends does not divide the {len(joined)} bytes of {name}")
    return [joined[start:end] for start, end in pairwise(starts)]
