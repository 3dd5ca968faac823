"""Where stores of both kinds are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from profiles.postgres import find_binaries, server

if TYPE_CHECKING:
    from lightning_pelt.profiles.store import ProfileStore

_schemas = count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a real server."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no /usr/lib/postgresql/*/bin/initdb: apt-get install postgresql")
    with server(binaries) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a test's own store is, not made yet: a file, or a schema of the server's."""
    if request.param == "sqlite":
        return str(tmp_path / "profiles.db")
    import psycopg

    place = request.getfixturevalue("postgres")
    schema = f"test{next(_schemas)}"
    with psycopg.connect(place, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{place}&options={quote(f'-csearch_path={schema}')}"


@pytest.fixture
def store(url: str) -> Iterator[ProfileStore]:
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed: extra `profiles`")
    from lightning_pelt.profiles.store import ProfileStore

    with ProfileStore(url) as store:
        yield store
