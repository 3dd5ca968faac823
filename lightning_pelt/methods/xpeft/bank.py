"""Banks of frozen adapters, and random banks, which a seed defines."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from lightning_pelt.methods.config import Configured
from lightning_pelt.methods.xpeft._philox import RECIPE, integers

SCALE = 2.0**-7  # of a random weight; exact in every dtype
HUB = "adapterhub"  # among the placements of a bank: that of SeqBnConfig
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, eq=False)
class BankTensors:
    """The weights of a bank: N adapters with bottleneck b for L blocks of width d.

    Adapter i of block l computes ``relu(x @ A + a_bias) @ B + b_bias`` for x (..., d), where A is
    ``A[l, i].view(d, b)`` and B is ``B[l, i].view(b, d)``.

    Attributes:
        A: down-projections (L, N, d * b).
        B: up-projections (L, N, b * d).
        a_bias: (L, N, b); None means zero.
        b_bias: (L, N, d); None means zero.
        width: d.
        digest: SHA-256 of the bank in hexadecimal, equal for all dtypes and devices.
        placements: where the adapters were trained: placements of
            :class:`lightning_pelt.Adapter`, and :data:`HUB` for AdapterHub's. Empty for random
            banks, and where a file does not say it.

    Example:
        >>> tensors = RandomBank(size=3).load(blocks=2, width=8, bottleneck=4)
        >>> tensors.blocks, tensors.size, tensors.width, tensors.bottleneck
        (2, 3, 8, 4)
        >>> tensors.to("cpu", torch.bfloat16).digest == tensors.digest
        True
    """

    A: Tensor
    B: Tensor
    a_bias: Tensor | None
    b_bias: Tensor | None
    width: int
    digest: str
    placements: frozenset[str] = frozenset()

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
        """The same bank on another device or in another dtype."""
        a_bias = None if self.a_bias is None else self.a_bias.to(device, dtype)
        b_bias = None if self.b_bias is None else self.b_bias.to(device, dtype)
        A, B = self.A.to(device, dtype), self.B.to(device, dtype)
        return replace(self, A=A, B=B, a_bias=a_bias, b_bias=b_bias)


class Bank(Configured, ABC):
    """A source of frozen adapters. Subclasses are frozen dataclasses of plain data.

    Example:
        >>> bank: Bank = RandomBank(seed=1, size=8)
        >>> bank.load(blocks=2, width=8, bottleneck=4).A.shape
        torch.Size([2, 8, 32])
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of adapters, N."""

    def load(
        self,
        *,
        blocks: int,
        width: int,
        bottleneck: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> BankTensors:
        """Load the weights for a model.

        Args:
            blocks: number of blocks of the model, L.
            width: width of the model, d.
            bottleneck: width of the bottleneck, b.
            dtype: float32, bfloat16, float16 or float64.
            device: device of the result; the weights are computed on the CPU.

        Raises:
            ValueError: a size is below 1, the dtype is not one of these, or the files do not
                contain such a bank.
        """
        _check_sizes(blocks, width, bottleneck)
        if dtype not in DTYPES:
            raise ValueError(
                f"a bank cannot be loaded as {dtype}: use torch.float32 or torch.bfloat16 (or "
                "float16 or float64)"
            )
        return self._make(blocks, width, bottleneck, dtype).to(device, dtype)

    def digest(self, *, blocks: int, width: int, bottleneck: int) -> str:
        """The :attr:`BankTensors.digest` of the weights that :meth:`load` returns."""
        return self.load(blocks=blocks, width=width, bottleneck=bottleneck).digest

    @abstractmethod
    def _make(self, blocks: int, width: int, bottleneck: int, dtype: torch.dtype) -> BankTensors:
        """The weights on the CPU; in ``dtype`` if that saves time or memory."""


@dataclass(frozen=True)
class RandomBank(Bank):
    """Untrained adapters, drawn from a seed whenever they are needed and never stored.

    Each combination of adapter i, side (0 is A, 1 is B) and block l has a separate random stream:
    Philox-4x64 with 10 rounds, key (seed, version of the algorithm) and counter (w, i, side, l)
    with w = 1, 2, ..., as the raw output of NumPy's ``Philox``. A larger bank, or one for more
    blocks, therefore contains the smaller one unchanged. Each 16 bits, starting with the lowest,
    give one weight, (number of ones - 8) / 128. Its mean is 0, its standard deviation is 1/64,
    close to BERT's 0.02, and it is exact in every dtype. Biases are 0.

    The digest covers these integers before the division, as int8 in the order (block, side,
    adapter), after a header of version and shape. Source: specification of X-PEFT, section 6; the
    generator is from Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3".

    Args:
        seed: 0 to 2^64 - 1.
        size: number of adapters, N.

    Raises:
        ValueError: seed or size is out of range.

    Example:
        >>> bank = RandomBank(seed=0, size=100)
        >>> tensors = bank.load(blocks=2, width=8, bottleneck=4)
        >>> tensors.A.shape
        torch.Size([2, 100, 32])
        >>> larger = RandomBank(seed=0, size=200).load(blocks=2, width=8, bottleneck=4)
        >>> torch.equal(larger.A[:, :100], tensors.A)
        True
    """

    seed: int = 0
    size: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"RandomBank has seed={self.seed}, expected 0 to 2^64 - 1")
        if self.size < 1:
            raise ValueError(f"RandomBank has size={self.size}, expected at least 1 adapter")

    def _make(self, blocks: int, width: int, bottleneck: int, dtype: torch.dtype) -> BankTensors:
        shape = (blocks, self.size, width * bottleneck)
        sides = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
        digest = hashlib.sha256(_header(self, blocks, width, bottleneck))
        arrays = integers(self.seed, blocks=blocks, size=self.size, values=shape[2])
        for index, array in enumerate(arrays):
            digest.update(array.data)
            block, side = divmod(index, 2)
            sides[side][block].copy_(torch.from_numpy(array)).mul_(SCALE)
        return BankTensors(*sides, None, None, width=width, digest=digest.hexdigest())

    def digest(self, *, blocks: int, width: int, bottleneck: int) -> str:
        _check_sizes(blocks, width, bottleneck)
        return _random_digest(self, blocks, width, bottleneck)


def _check_sizes(blocks: int, width: int, bottleneck: int) -> None:
    if min(blocks, width, bottleneck) < 1:
        raise ValueError(
            f"a bank cannot have {format_sizes(blocks, width, bottleneck)}: each must be at least 1"
        )


def format_sizes(blocks: int, width: int, bottleneck: int) -> str:
    """The sizes of a bank, for messages."""
    return f"blocks={blocks}, width={width}, bottleneck={bottleneck}"


def _header(bank: RandomBank, blocks: int, width: int, bottleneck: int) -> bytes:
    return json.dumps(["random bank", RECIPE, blocks, bank.size, width, bottleneck]).encode()


@lru_cache(maxsize=64)
def _random_digest(bank: RandomBank, blocks: int, width: int, bottleneck: int) -> str:
    digest = hashlib.sha256(_header(bank, blocks, width, bottleneck))
    for array in integers(bank.seed, blocks=blocks, size=bank.size, values=width * bottleneck):
        digest.update(array.data)
    return digest.hexdigest()
