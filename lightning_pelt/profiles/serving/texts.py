"""Texts of requests as tokens, cut as the data modules cut them for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lightning_pelt.training.module import PELTModule


def check_text(row: int, text: object) -> None:
    """Raise a ``ValueError`` unless ``text`` is a text with characters other than spaces."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"text {row} is empty: every row needs a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text {row} contains a lone surrogate, which is not a character"
        ) from error


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> list[dict[str, list[int]]]:
    """The tokens of each text, cut to ``max_length`` tokens, without padding.

    Raises:
        ValueError: a text cannot be tokenized, or has no tokens.
    """
    with _named_errors():
        columns = tokenizer([*texts], truncation=True, max_length=max_length)
    names = list(columns)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for text, row in zip(texts, rows, strict=True):
        if not any(row["attention_mask"]):
            raise ValueError(f"the text {text[:30]!r} has no tokens")
    return rows


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> int:
    """The number of tokens that the model reads for texts, without padding.

    Raises:
        ValueError: a text cannot be tokenized.
    """
    with _named_errors():
        tokens = tokenizer([*texts], truncation=True, max_length=max_length)
    return sum(map(len, tokens["input_ids"]))


def longest(module: PELTModule, max_length: int) -> int:
    """``max_length``, or the number of tokens for which ``module`` has positions if it is lower."""
    limits = [module.tokenizer.model_max_length, module.most_tokens]
    limit = min(limit for limit in limits if limit is not None)
    assert module.model is not None
    if not module.model.config.is_encoder_decoder:  # which generates at the end of the text
        limit -= getattr(module.task, "max_new_tokens", 0)
    if max_length <= limit:
        return max_length
    if limit < 1:
        raise ValueError(
            "the model has no positions for a text beside its prompt and the tokens that it "
            "generates: use fewer of them"
        )
    rank_zero_warn(
        f"texts are cut to {limit} tokens, for which the model has positions; max_length is "
        f"{max_length}"
    )
    return limit


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any type, from the tokenizer's code
        raise ValueError(f"a text cannot be tokenized: {error}") from error
