"""One run on one process, which the others are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
from twenty_steps import backbone, fit


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    """The folder of a run on one process."""
    folder = tmp_path_factory.mktemp("one")
    fit(folder, tiny)
    return folder


@pytest.fixture(scope="session")
def one_compacter(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    """The same with the other plan."""
    folder = tmp_path_factory.mktemp("one_compacter")
    fit(folder, tiny, plan="compacter")
    return folder
