"""Some hostile inputs for every loader; ``run.py`` feeds more."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.driver import Figures, fuzz
from fuzz.targets import TARGETS

INPUTS = 40


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figures]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    return fuzz(list(TARGETS), seed=0, inputs=INPUTS, folder=folder)


@pytest.mark.nightly
@pytest.mark.parametrize("name", TARGETS)
def test_hostile_inputs_are_refused_or_read_as_they_are(
    figures: dict[str, Figures], name: str
) -> None:
    found = figures[name]
    assert found.failures == []
    assert found.outcomes.total() == INPUTS
    assert found.outcomes["refused"] > INPUTS // 20
