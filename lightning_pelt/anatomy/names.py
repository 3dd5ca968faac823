"""Leaf names of the attention projections, for families off transformers' attention interface.

Where the attention function cannot be watched, the projections are known by name. The rest (output
projection, feed-forward, norms) follows from the order of execution, as it does for everybody else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Channels = tuple[int, ...]
Layout = Callable[[Any], dict[str, Channels]]


def _grouped(groups: int, queries: int, width: int) -> dict[str, Channels]:
    """Fused rows that repeat (queries x q, k, v), each ``width`` rows, for every group."""
    span = (queries + 2) * width

    def rows(first: int, count: int) -> Channels:
        return tuple(
            group * span + first * width + row
            for group in range(groups)
            for row in range(count * width)
        )

    return {"query": rows(0, queries), "key": rows(queries, 1), "value": rows(queries + 1, 1)}


def per_head(config: Any) -> dict[str, Channels]:
    """Bloom, DeBERTa and the oldest Falcon: (q, k, v) of head 0, then of head 1, ..."""
    heads = config.num_attention_heads
    return _grouped(heads, 1, config.hidden_size // heads)


def falcon_or_bloom(config: Any) -> dict[str, Channels]:
    """Falcon has three layouts, by its configuration; Bloom has the first of them."""
    heads = config.num_attention_heads
    width = config.hidden_size // heads
    if getattr(config, "new_decoder_architecture", False):
        return _grouped(config.num_kv_heads, heads // config.num_kv_heads, width)
    if getattr(config, "multi_query", False):
        return _grouped(1, heads, width)
    return per_head(config)


@dataclass(frozen=True)
class Projections:
    """Names of the children of an attention module; equal names mean a fused projection."""

    query: str
    key: str
    value: str
    layout: Layout | None = None

    @property
    def children(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.query, self.key, self.value)))


NAMES = (
    Projections("query_proj", "key_proj", "value_proj"),  # DeBERTa-v2, -v3
    Projections("in_proj", "in_proj", "in_proj", per_head),  # DeBERTa
    Projections("query_key_value", "query_key_value", "query_key_value", falcon_or_bloom),
    Projections("q_proj", "k_proj", "v_proj"),  # GPT-J, GPT-Neo, XGLM
    Projections("query", "key", "value"),  # RoFormer, RemBERT, ConvBERT
    Projections("q", "k", "v"),  # MPNet
)
