"""A complete bank of trained adapters in one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_pelt.methods.xpeft.bank import BankTensors
from lightning_pelt.utils.files import write_aside

SUFFIX = ".safetensors"
FORMAT = "1"
HEADER = "lightning_pelt_bank"
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
    found = fingerprint((A, B, a_bias, b_bias), width)
    if found != expected:
        raise ValueError(
            f"{path} is damaged: its weights have the digest {found}, expected {expected}. Copy "
            "the file again, or write it again with save_bank"
        )
    return BankTensors(A, B, a_bias, b_bias, width=width, digest=found)


def read_size(path: Path) -> int:
    """Number of adapters of the bank in a file, from the header alone."""
    with _open(path) as (file, _):
        return file.get_slice("A").get_shape()[1]


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
    text = (file.metadata() or {}).get(HEADER, "null")
    try:
        header = json.loads(text)
        known = (
            header is not None and header["format"] == FORMAT and {"width", "digest"} <= {*header}
        )
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(
            f"{path} is a safetensors file, but not a bank of save_bank: its header has no "
            f"{HEADER!r} of format {FORMAT}"
        )
    return header
