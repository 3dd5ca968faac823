"""Random profiles for tests, each determined by its seed."""

from __future__ import annotations

import hashlib

import numpy as np

from lightning_pelt.profiles.profile import Profile

BANK = hashlib.sha256(b"bank").hexdigest()
OTHER_BANK = hashlib.sha256(b"another bank").hexdigest()


def random_profile(
    seed: int = 0,
    *,
    n: int = 100,
    k: int | None = None,
    blocks: int = 3,
    soft: bool = False,
    norm: bool = False,
    head: bool = False,
    bank: str = BANK,
) -> Profile:
    """A profile with random parts; by default, it selects half of the adapters."""
    draw = np.random.default_rng(seed)
    k = max(1, n // 2) if k is None else k
    if soft:
        masks = draw.dirichlet(np.ones(n), size=(blocks, 2)).astype(np.float32)
    else:
        row = np.arange(n) < k
        masks = draw.permuted(np.broadcast_to(row, (blocks, 2, n)), axis=-1)
    return Profile(
        masks=masks,
        bank=bank,
        scale=k**-0.5,
        norm=draw.standard_normal((blocks, 2, 5), dtype=np.float32) if norm else None,
        head={
            "weight": draw.standard_normal((4, 6), dtype=np.float32),
            "bias": draw.standard_normal(4, dtype=np.float32),
        }
        if head
        else None,
    )
