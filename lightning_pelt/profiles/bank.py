"""Banks: frozen adapters that profiles choose from, drawn from a seed or read from files."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from lightning_pelt.configured import Configured
from lightning_pelt.profiles._philox import RECIPE, integers
from lightning_pelt.profiles.trained_bank import (
    SUFFIX,
    fingerprint,
    read_adapter,
    read_bank,
    read_size,
    write_bank,
)

SCALE = 2.0**-7  # of a random weight; exact in every dtype
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, eq=False)
class BankTensors:
    """The weights of a bank of N adapters for L blocks, d wide with a bottleneck of b.

    ``A[l, i].view(d, b)`` and ``B[l, i].view(b, d)`` multiply a row x (.., d) from the right:
    ``relu(x @ A + a_bias) @ B + b_bias``.

    Attributes:
        A: down-projections (L, N, d * b).
        B: up-projections (L, N, b * d).
        a_bias: (L, N, b); None is zero.
        b_bias: (L, N, d); None is zero.
        width: d.
        digest: SHA-256 of the bank in hexadecimal, the same for every dtype and device.
    """

    A: Tensor
    B: Tensor
    a_bias: Tensor | None
    b_bias: Tensor | None
    width: int
    digest: str

    @property
    def blocks(self) -> int:
        return self.A.shape[0]

    @property
    def size(self) -> int:
        return self.A.shape[1]

    @property
    def bottleneck(self) -> int:
        return self.A.shape[2] // self.width

    def to(self, device: torch.device | str, dtype: torch.dtype) -> BankTensors:
        """The same bank elsewhere, or in another dtype."""
        a_bias = None if self.a_bias is None else self.a_bias.to(device, dtype)
        b_bias = None if self.b_bias is None else self.b_bias.to(device, dtype)
        A, B = self.A.to(device, dtype), self.B.to(device, dtype)
        return replace(self, A=A, B=B, a_bias=a_bias, b_bias=b_bias)


class Bank(Configured, ABC):
    """Where the adapters of a bank come from; every child is a frozen dataclass of plain data."""

    @property
    @abstractmethod
    def size(self) -> int:
        """N, the number of adapters."""

    def load(
        self,
        *,
        blocks: int,
        width: int,
        bottleneck: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> BankTensors:
        """The weights for a model of L ``blocks``, d wide, with a bottleneck of b.

        Args:
            blocks: L.
            width: d.
            bottleneck: b.
            dtype: float32, bfloat16, float16 or float64.
            device: where they go; they are made on the CPU.

        Raises:
            ValueError: a number below 1, another dtype, or files that do not hold such a bank.
        """
        _check(blocks, width, bottleneck)
        if dtype not in DTYPES:
            raise ValueError(
                f"a bank cannot be loaded as {dtype}: use torch.float32 or torch.bfloat16 (or "
                "float16 or float64)"
            )
        return self._make(blocks, width, bottleneck, dtype).to(device, dtype)

    def digest(self, *, blocks: int, width: int, bottleneck: int) -> str:
        """What :attr:`BankTensors.digest` is going to be."""
        return self.load(blocks=blocks, width=width, bottleneck=bottleneck).digest

    @abstractmethod
    def _make(self, blocks: int, width: int, bottleneck: int, dtype: torch.dtype) -> BankTensors:
        """The weights on the CPU, in ``dtype`` where that saves something."""


@dataclass(frozen=True)
class RandomBank(Bank):
    """Untrained adapters, drawn anew from a seed wherever they are needed and never stored.

    Every pair of adapter i, side (0 is A, 1 is B) and block l has a stream of its own: Philox-4x64
    with 10 rounds, key (seed, version of the recipe), counter (w, i, side, l) with w = 1, 2, ...,
    as NumPy's ``Philox`` gives it raw. So a bank can grow in adapters and blocks, and what it held
    stays. Each 16 bits, the lowest first, give one weight, (number of ones - 8) / 128: its mean is
    0, its standard deviation 1/64, near BERT's 0.02, and it is exact in every dtype. Biases are 0.

    The digest is over these integers before the division, as int8 in the order (block, side,
    adapter), behind a header of version and shape. Source: specification of X-PEFT, section 6; the
    generator is that of Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3".

    Args:
        seed: 0 to 2^64 - 1.
        size: N.

    Raises:
        ValueError: a seed or size out of range.
    """

    seed: int = 0
    size: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"RandomBank has seed={self.seed}: it must lie in [0, 2^64)")
        if self.size < 1:
            raise ValueError(f"RandomBank has size={self.size}: it needs at least 1 adapter")

    def _make(self, blocks: int, width: int, bottleneck: int, dtype: torch.dtype) -> BankTensors:
        shape = (blocks, self.size, width * bottleneck)
        sides = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
        digest = hashlib.sha256(_header(self, blocks, width, bottleneck))
        pieces = integers(self.seed, blocks=blocks, size=self.size, values=shape[2])
        for place, piece in enumerate(pieces):
            digest.update(piece.data)
            block, side = divmod(place, 2)
            sides[side][block].copy_(torch.from_numpy(piece)).mul_(SCALE)
        return BankTensors(*sides, None, None, width=width, digest=digest.hexdigest())

    def digest(self, *, blocks: int, width: int, bottleneck: int) -> str:
        _check(blocks, width, bottleneck)
        return _random_digest(self, blocks, width, bottleneck)


@dataclass(frozen=True)
class TrainedBank(Bank):
    """Adapters that were trained, read from files.

    A folder is one that :func:`lightning_pelt.save_adapters` wrote, of a plan that is one ungated
    ``Adapter`` after the feed-forward layers; or one of AdapterHub's ``adapters`` library with an
    adapter of Pfeiffer et al., ``SeqBnConfig``. Both kinds go together.

    The digest is over the weights as bfloat16, in which :func:`save_bank` keeps them, so that all
    copies of a bank share it, whatever their dtype; it depends on the order of the folders. It is
    computed anew each time, since files change.

    Args:
        folders: one per adapter; or, alone, one file of :func:`save_bank`, which is a whole bank.

    Raises:
        ValueError: no folders, or a bank's file among others.
    """

    folders: Sequence[str]

    def __post_init__(self) -> None:
        if isinstance(self.folders, (str, Path)):
            raise ValueError(
                f"TrainedBank has folders={str(self.folders)!r}, which is one path: give a list, "
                f"TrainedBank(folders=[{str(self.folders)!r}])"
            )
        object.__setattr__(self, "folders", tuple(str(folder) for folder in self.folders))
        files = [folder for folder in self.folders if folder.endswith(SUFFIX)]
        if not self.folders or (files and len(self.folders) > 1):
            found = f"the bank {files[0]!r} among others" if files else "no folders"
            raise ValueError(
                f"TrainedBank has {found}: give folders of one adapter each, or one file of "
                "save_bank alone"
            )

    @property
    def size(self) -> int:
        return len(self.folders) if self._file is None else read_size(self._file)

    @property
    def _file(self) -> Path | None:
        first = self.folders[0]
        return Path(first) if first.endswith(SUFFIX) else None

    def _make(self, blocks: int, width: int, bottleneck: int, dtype: torch.dtype) -> BankTensors:
        if self._file is None:
            return self._gather(blocks, width, bottleneck)
        bank = load_bank(self._file)
        found = (bank.blocks, bank.width, bank.bottleneck)
        if found != (blocks, width, bottleneck):
            raise ValueError(
                f"{self._file} is a bank of {_sizes(*found)}, expected "
                f"{_sizes(blocks, width, bottleneck)}: load it for the model it was made for"
            )
        return bank

    def _gather(self, blocks: int, width: int, bottleneck: int) -> BankTensors:
        adapters = [
            read_adapter(Path(folder), blocks=blocks, width=width, bottleneck=bottleneck)
            for folder in self.folders
        ]
        A, B, a_bias, b_bias = (torch.stack(parts, 1) for parts in zip(*adapters, strict=True))
        digest = fingerprint((A, B, a_bias, b_bias), width)
        return BankTensors(A, B, a_bias, b_bias, width=width, digest=digest)


def save_bank(tensors: BankTensors, path: str | Path) -> Path:
    """Write a trained bank as one safetensors file, in bfloat16, with the digest in its header.

    Args:
        tensors: of :meth:`TrainedBank.load`, in any dtype but float16.
        path: ends in ``.safetensors``; is written aside and renamed.

    Raises:
        ValueError: the bank is random, its digest is not that of its weights, or the path ends
            otherwise.
        OSError: the disk is full or cannot be written.
    """
    if tensors.a_bias is None or tensors.b_bias is None:
        raise ValueError(
            "this bank has no biases, so it is not a trained one: a random bank needs no file, "
            "RandomBank(seed=..., size=...) makes it anew"
        )
    parts = (tensors.A, tensors.B, tensors.a_bias, tensors.b_bias)
    return write_bank(Path(path), parts, width=tensors.width, digest=tensors.digest)


def load_bank(path: str | Path) -> BankTensors:
    """What :func:`save_bank` wrote, in bfloat16 on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, damaged (its digest is not that of its weights) or
            foreign.
    """
    (A, B, a_bias, b_bias), width, digest = read_bank(Path(path))
    return BankTensors(A, B, a_bias, b_bias, width=width, digest=digest)


def _check(blocks: int, width: int, bottleneck: int) -> None:
    if min(blocks, width, bottleneck) < 1:
        raise ValueError(
            f"a bank of {_sizes(blocks, width, bottleneck)} does not exist: each must be at least 1"
        )


def _sizes(blocks: int, width: int, bottleneck: int) -> str:
    return f"blocks={blocks}, width={width}, bottleneck={bottleneck}"


def _header(bank: RandomBank, blocks: int, width: int, bottleneck: int) -> bytes:
    return json.dumps(["random bank", RECIPE, blocks, bank.size, width, bottleneck]).encode()


@lru_cache(maxsize=64)
def _random_digest(bank: RandomBank, blocks: int, width: int, bottleneck: int) -> str:
    digest = hashlib.sha256(_header(bank, blocks, width, bottleneck))
    for piece in integers(bank.seed, blocks=blocks, size=bank.size, values=width * bottleneck):
        digest.update(piece.data)
    return digest.hexdigest()
