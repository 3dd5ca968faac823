"""Profiles for tests of stores, and direct access to their databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from profiles.samples import random_profile

from lightning_pelt.profiles.profile import Profile

pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed: extra `profiles`")
from sqlalchemy import Engine, create_engine, event

MIXED: dict[str, dict[str, Any]] = {
    "hard": {},
    "soft": {"soft": True},
    "wide": {"n": 150},
    "one adapter": {"n": 1},
    "norm": {"norm": True},
    "head": {"head": True},
    "both, soft": {"soft": True, "norm": True, "head": True, "blocks": 2},
}


def some(count: int, first: int = 0) -> dict[str, Profile]:
    """Profiles with consecutive ids."""
    return {f"u{i:04d}": random_profile(i, n=20) for i in range(first, first + count)}


@contextmanager
def raw(url: str) -> Iterator[Any]:
    """A connection to the database of a store; the changes are committed."""
    engine = create_engine(
        url.replace("postgresql:", "postgresql+psycopg:") if "://" in url else f"sqlite:///{url}"
    )
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@contextmanager
def at_commit(act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` when a transaction has written everything and not committed yet."""

    def listener(_: object) -> None:
        act()

    event.listen(Engine, "commit", listener)
    try:
        yield
    finally:
        event.remove(Engine, "commit", listener)
