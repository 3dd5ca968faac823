"""Every family: its sublayers are where its code has them, and methods hold there what they should.

All of them run with ``pytest -m nightly``, a sample in CI.
"""

from __future__ import annotations

import pytest

from families.catalogue import SAMPLE, by_label
from families.check import METHODS, judge, place_of

FAMILIES = by_label()


def marked(label: str) -> object:
    marks = [pytest.mark.slow] if label in SAMPLE else [pytest.mark.slow, pytest.mark.nightly]
    return pytest.param(label, marks=marks)


@pytest.mark.parametrize("label", map(marked, FAMILIES))
def test_family(label: str) -> None:
    family = FAMILIES[label]
    assert place_of(family) == family.place
    for method in METHODS:
        verdict = judge(family, method)
        assert verdict.takes == (method not in family.without), f"{method}: {verdict.reason}"
        assert family.without.get(method, "") in verdict.reason


def test_the_sample_is_known() -> None:
    assert set(FAMILIES) >= SAMPLE
    assert len(SAMPLE) == 60
