"""A complete bank of trained adapters in one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_pelt.methods._sublayer_hooks import Placement
from lightning_pelt.methods.xpeft.bank import HUB, BankTensors
from lightning_pelt.utils.files import write_aside
from lightning_pelt.utils.json_data import parse_json

SUFFIX = ".safetensors"
FORMAT = "1"
HEADER = "lightning_pelt_bank"
KNOWN = ("format", "width", "digest")
NAMES = ("A", "B", "a_bias", "b_bias")


def fingerprint(tensors: Sequence[Tensor], width: int) -> str:
    """SHA-256 of a bank (A, B, a_bias, b_bias) of ``width``, over the values as bfloat16."""
    shapes = [list(tensor.shape) for tensor in tensors]
    digest = hashlib.sha256(json.dumps(["trained bank", FORMAT, width, shapes]).encode())
    for tensor in tensors:
        bits = tensor.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
        digest.update(bits.astype("<i2", copy=False).data)
    return digest.hexdigest()


def save_bank(tensors: BankTensors, path: str | Path) -> Path:
    """Write a trained bank as one safetensors file in bfloat16, with the digest in its header.

    Args:
        tensors: the result of :meth:`TrainedBank.load`, in any dtype except float16.
        path: ends in ``.safetensors``. The file is written under a temporary name and renamed.

    Raises:
        ValueError: the bank is random, its weights do not match its digest, or the path has
            another suffix.
        OSError: the disk is full or not writable.
    """
    if tensors.a_bias is None or tensors.b_bias is None:
        raise ValueError(
            "the bank has no biases, so it is not a trained bank: a random bank needs no file, "
            "RandomBank(seed=..., size=...) draws it again"
        )
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"the file of a bank is named {path.name!r}, expected *{SUFFIX}")
    parts = (tensors.A, tensors.B, tensors.a_bias, tensors.b_bias)
    found = fingerprint(parts, tensors.width)
    if found != tensors.digest:
        raise ValueError(
            f"the weights have the digest {found}, expected {tensors.digest}: save the unchanged "
            "result of TrainedBank.load in float32 or bfloat16"
        )
    low = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in zip(NAMES, parts, strict=True)
    }
    entry = {"format": FORMAT, "width": tensors.width, "digest": found}
    entry["placements"] = sorted(tensors.placements)
    header = {HEADER: json.dumps(entry)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, lambda aside: save_file(low, aside, metadata=header))
    return path


def load_bank(path: str | Path) -> BankTensors:
    """Read a file of :func:`save_bank`, in bfloat16 on the CPU.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is truncated, damaged (its weights do not match its digest), or not a
            file of :func:`save_bank`.
    """
    with _open(Path(path)) as (file, header):
        # Copies, since safetensors returns views of the file, which would change with it.
        A, B, a_bias, b_bias = (file.get_tensor(name).clone() for name in NAMES)
    width, expected = header["width"], header["digest"]
    _refuse_other_tensors(path, (A, B, a_bias, b_bias), width)
    found = fingerprint((A, B, a_bias, b_bias), width)
    if found != expected:
        raise ValueError(
            f"{path} is damaged: its weights have the digest {found}, expected {expected}. Copy "
            "the file again, or write it again with save_bank"
        )
    placements = frozenset(header.get("placements", ()))
    return BankTensors(A, B, a_bias, b_bias, width=width, digest=found, placements=placements)


def read_size(path: Path) -> int:
    """Number of adapters of the bank in a file, from the header alone."""
    with _open(path) as (file, _):
        shape = file.get_slice("A").get_shape()
    if len(shape) != 3:
        raise ValueError(f"{path} is damaged: A is {tuple(shape)}, expected (L, N, d * b)")
    return shape[1]


def _refuse_other_tensors(path: str | Path, parts: Sequence[Tensor], width: int) -> None:
    A = parts[0]
    blocks, size, values = A.shape if A.dim() == 3 else (0, 0, 0)
    shapes = (A.shape, A.shape, (blocks, size, values // width), (blocks, size, width))
    fitting = all(part.shape == shape for part, shape in zip(parts, shapes, strict=True))
    if not A.numel() or not fitting or any(part.dtype != torch.bfloat16 for part in parts):
        found = ", ".join(
            f"{name} {tuple(part.shape)} {part.dtype}"
            for name, part in zip(NAMES, parts, strict=True)
        )
        raise ValueError(
            f"{path} is damaged: it has {found}, expected A and B (L, N, d * b), a_bias (L, N, b) "
            f"and b_bias (L, N, d) in bfloat16 with d={width}"
        )
    if not all(part.isfinite().all() for part in parts):
        raise ValueError(
            f"{path} contains NaN or infinity, which would reach every profile of the bank: write "
            "it again with save_bank, without the adapters that contain them"
        )


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open the file of a bank; gives the file and its header."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no bank {path}: write one with save_bank")
    try:
        with safe_open(path, framework="pt") as file:
            yield file, _header(path, file)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _header(path: Path, file: Any) -> dict[str, Any]:
    try:
        header = parse_json((file.metadata() or {}).get(HEADER, "null"), path)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a safetensors file, but not a bank of save_bank: its header has no "
            f"{HEADER!r} of format {FORMAT}"
        )
    width = header.get("width")
    if type(width) is not int or width < 1 or not isinstance(header.get("digest"), str):
        raise ValueError(
            f"{path} is damaged: its header has width={width!r} and "
            f"digest={header.get('digest')!r}, expected a positive number and a text"
        )
    _refuse_unknown_placements(path, header)
    return header


def _refuse_unknown_placements(path: Path, header: dict[str, Any]) -> None:
    """Files of older versions do not say where their adapters were trained."""
    rest = {name: value for name, value in header.items() if name not in KNOWN}
    placements, expected = rest.pop("placements", []), sorted({HUB, *get_args(Placement)})
    listed = isinstance(placements, list) and all(each in expected for each in placements)
    if rest or not listed:
        raise ValueError(
            f"{path} is damaged: its header has placements={placements!r}"
            f"{f' and {sorted(rest)}' if rest else ''}, expected a list of {', '.join(expected)}"
        )
