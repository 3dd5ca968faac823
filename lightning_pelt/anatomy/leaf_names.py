"""Leaf names of the attention projections, for families off transformers' attention interface.

The attention function of these families cannot be recorded, so their query, key and value
projections are found by name. Output projections, feed-forwards and norms are found as in all other
families, by order of execution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Channels = tuple[int, ...]
FusedChannels = Callable[[Any], dict[str, Channels]]


def _grouped(groups: int, queries: int, width: int) -> dict[str, Channels]:
    """Channels by role where each group holds ``queries`` query heads, a key and a value head.

    ``width`` is the number of channels of a head.
    """
    span = (queries + 2) * width

    def channels(first: int, count: int) -> Channels:
        return tuple(
            group * span + first * width + channel
            for group in range(groups)
            for channel in range(count * width)
        )

    return {
        "query": channels(0, queries),
        "key": channels(queries, 1),
        "value": channels(queries + 1, 1),
    }


def per_head(config: Any) -> dict[str, Channels]:
    """Bloom, DeBERTa and the oldest Falcon: query, key and value of head 0, then of head 1, ..."""
    heads = config.num_attention_heads
    return _grouped(heads, 1, config.hidden_size // heads)


def falcon_or_bloom(config: Any) -> dict[str, Channels]:
    """Falcon has three layouts, depending on its configuration; Bloom has the first of them."""
    heads = config.num_attention_heads
    width = config.hidden_size // heads
    if getattr(config, "new_decoder_architecture", False):
        return _grouped(config.num_kv_heads, heads // config.num_kv_heads, width)
    if getattr(config, "multi_query", False):
        return _grouped(1, heads, width)
    return per_head(config)


@dataclass(frozen=True)
class LeafNames:
    """Names of an attention module's children by role; equal names mean a fused projection.

    ``fused`` gives the output channels of each role in a fused projection.
    """

    query: str
    key: str
    value: str
    fused: FusedChannels | None = None

    @property
    def children(self) -> tuple[str, ...]:
        """The different names."""
        return tuple(dict.fromkeys((self.query, self.key, self.value)))


NAMES = (
    LeafNames("query_proj", "key_proj", "value_proj"),  # DeBERTa-v2, -v3
    LeafNames("in_proj", "in_proj", "in_proj", per_head),  # DeBERTa
    LeafNames("query_key_value", "query_key_value", "query_key_value", falcon_or_bloom),
    LeafNames("q_proj", "k_proj", "v_proj"),  # GPT-J, GPT-Neo, XGLM
    LeafNames("query", "key", "value"),  # RoFormer, RemBERT, ConvBERT
    LeafNames("q", "k", "v"),  # MPNet
)
