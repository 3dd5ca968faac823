"""The benchmark forks its processes from the server of the other tests."""

from __future__ import annotations

import pytest
from processes import context


@pytest.fixture(autouse=True, scope="session")
def _server() -> None:
    """Start it first: the benchmark would start one that others could not use."""
    context()
