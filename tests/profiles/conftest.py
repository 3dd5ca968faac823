"""Stores of both kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lightning_pelt.profiles.store import ProfileStore


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a store that does not exist yet: a file, or a schema of the server."""
    if request.param == "sqlite":
        return str(tmp_path / "profiles.db")
    return request.getfixturevalue("postgres")()


@pytest.fixture
def store(url: str) -> Iterator[ProfileStore]:
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed: extra `profiles`")
    from lightning_pelt.profiles.store import ProfileStore

    with ProfileStore(url) as store:
        yield store
