"""Every family: its sublayers are where its code has them, and methods hold there what they should.

All of them run with ``pytest -m nightly``, a sample in CI.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import transformers

from families.catalogue import SAMPLE, by_label
from families.check import judge_all, place_of
from families.left_out import LEFT_OUT, unlisted

FAMILIES = by_label()


def marked(label: str) -> object:
    marks = [pytest.mark.slow] if label in SAMPLE else [pytest.mark.slow, pytest.mark.nightly]
    return pytest.param(label, marks=marks)


@pytest.mark.parametrize("label", map(marked, FAMILIES))
def test_family(label: str) -> None:
    family = FAMILIES[label]
    assert place_of(family) == family.place
    for method, verdict in judge_all(family).items():
        assert verdict.takes == (method not in family.without), f"{method}: {verdict.reason}"
        assert family.without.get(method, "") in verdict.reason


def test_the_sample_is_known() -> None:
    assert set(FAMILIES) >= SAMPLE
    assert len(SAMPLE) == 60


PAGE = Path(__file__).parents[2] / "docs" / "families.md"


@pytest.mark.nightly
def test_every_other_type_of_transformers_has_a_reason() -> None:
    """A newer release has types that the page does not know."""
    if f"with transformers {transformers.__version__}." not in PAGE.read_text(encoding="utf-8"):
        pytest.skip("docs/families.md was printed with another release of transformers")
    named = Counter(name for names in LEFT_OUT.values() for name in names)
    assert set(named) == set(unlisted())
    assert max(named.values()) == 1


def test_the_page_has_every_entry() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| (?:yes|no)", PAGE.read_text("utf-8"), re.M)
    assert sorted(rows) == sorted(FAMILIES)
