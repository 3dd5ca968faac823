"""States of examples for tests of stores, in a module that other processes can import."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_pelt.training.state_store import StateStore

LIMIT = 2**20


def opened(folder: Path, weights: str = "a", *, max_bytes: int = LIMIT, **key: Any) -> StateStore:
    return StateStore(folder, {"weights": weights, **key}, max_bytes=max_bytes)


def digest(number: int) -> bytes:
    return number.to_bytes(16, "big")


def states(number: int, tokens: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(tokens, 4, generator=generator).to(dtype)


def hold(connection: Connection, folder: Path) -> None:
    """Fill a store, and keep it open until the other end says something or is closed."""
    with opened(folder, "theirs") as store:
        store.put(digest(7), states(7))
        store.flush()
        connection.send("written")
        connection.recv()
