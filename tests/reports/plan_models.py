"""Tiny models and a design for the tests of plan reports, with numbers worked out by hand."""

from __future__ import annotations

from transformers import (
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from lightning_pelt import Design, Gate


def small_bert(depth: int = 2) -> BertForSequenceClassification:
    """A BERT 16 wide, with a feed-forward width of 32."""
    config = BertConfig(
        vocab_size=14,
        hidden_size=16,
        num_hidden_layers=depth,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return BertForSequenceClassification(config)


def small_t5(depth: int = 2) -> T5ForConditionalGeneration:
    """A T5 16 wide, with a feed-forward width of 32."""
    config = T5Config(
        vocab_size=14, d_model=16, d_kv=8, d_ff=32, num_layers=depth, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def line(text: str, start: str) -> list[str]:
    """The words after ``start`` in the only line of ``text`` that starts with it."""
    (found,) = [each for each in text.splitlines() if each.startswith(start)]
    return found.removeprefix(start).split()


def two_groups(gate: Gate | None = None) -> Design:
    """A design with 600 parameters for each block of :func:`small_bert`.

    (A,L): 32 are fixed, 284 each buy m=4 at 66 and r=4 at 64. (P,B): 112 are B's, l=15 at 32.
    """
    return Design(["AL", "PB"], 1_200, pattern="uniform", gate=gate)


FIRST = ["1", "m=4", "296", "r=4", "256", "-", "-", "552", "600", "92%"]
