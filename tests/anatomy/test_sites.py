"""Sites: selection by pattern, and labels of blocks."""

from __future__ import annotations

from typing import Any

import pytest
from zoo import build

from lightning_pelt.anatomy import examine
from lightning_pelt.testing import tiny_bert, tiny_gpt2, tiny_llama

SELECTED = {
    "query": ["attention.query"],
    "attention.key": ["attention.key"],
    "ffn.in": ["ffn.in", "ffn.in_2"],
    "ffn.out": ["ffn.out"],
    "ffn": ["ffn"],
    "attention": ["attention"],
    "attention.*": ["attention.query", "attention.key", "attention.value", "attention.output"],
    "ffn.*": ["ffn.in", "ffn.in_2", "ffn.out"],
    "*.[kv]*": ["attention.key", "attention.value"],
}


@pytest.mark.parametrize("pattern", SELECTED)
def test_select(pattern: str) -> None:
    found = [site.role for site in examine(tiny_llama()).select(pattern) if site.block == 1]
    assert found == SELECTED[pattern]


def test_select_includes_cross_attention() -> None:
    anatomy = examine(build("bart"))
    decoder = [s.role for s in anatomy.select("query") if (s.stack, s.block) == ("decoder", 0)]
    assert decoder == ["attention.query", "cross_attention.query"]
    self_attention = [s.role for s in anatomy.select("attention.query")]
    assert self_attention == ["attention.query"] * 4
    whole = {s.role for s in anatomy.select("*attention")}
    assert whole == {"attention", "cross_attention"}


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("querry", "query"), ("attention.vallue", "attention.value"), ("fnn.in", "ffn.in")],
)
def test_unknown_site(wrong: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"site on gpt2 '{wrong}': did you mean '{nearest}'"):
        examine(tiny_gpt2()).select(wrong)


def test_block_labels() -> None:
    single, double = examine(tiny_bert()), examine(build("bart"))
    assert {single.block_label(site) for site in single.sites} == {"00", "01", "outer"}
    labels: Any = {double.block_label(site) for site in double.sites}
    assert labels >= {"encoder.00", "encoder.01", "decoder.00", "decoder.01"}
