"""What tests of stores need: profiles, a way past the store, other processes."""

from __future__ import annotations

import os
import subprocess
import sys
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
    return {f"u{i:04d}": random_profile(i, n=20) for i in range(first, first + count)}


@contextmanager
def raw(url: str) -> Iterator[Any]:
    """A connection past the store, with all that is done on it committed."""
    place = (
        url.replace("postgresql:", "postgresql+psycopg:") if "://" in url else f"sqlite:///{url}"
    )
    engine = create_engine(place)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@contextmanager
def at_commit(act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` when a transaction has written all and not committed yet."""

    def listener(_: object) -> None:
        act()

    event.listen(Engine, "commit", listener)
    try:
        yield
    finally:
        event.remove(Engine, "commit", listener)


def python(script: str, *args: str) -> subprocess.Popen[str]:
    """A second process, which finds the library and the tests' helpers as this one does."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
