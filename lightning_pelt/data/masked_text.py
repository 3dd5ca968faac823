"""Texts of which some tokens are hidden, for encoders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from transformers import PreTrainedTokenizerBase

from lightning_pelt.data._columns import Column, Text
from lightning_pelt.data._masking import WORDS, EpochSampler, MaskedRows, Masking
from lightning_pelt.data.bucket_sampler import BucketSampler
from lightning_pelt.data.table import TableDataModule

SPECIAL = 0  # the word of special tokens
EVALUATION_SEED = 0  # of the masks of dev and test, equal in all runs


class Stream(NamedTuple):
    """Tokens, and the number of the word that each belongs to."""

    ids: list[int]
    words: list[int]


class MaskedText(TableDataModule):
    """Texts for masked language modelling.

    A batch has ``input_ids`` with hidden tokens, ``attention_mask`` and ``labels``, all (B, T):
    the hidden tokens, and -100 elsewhere. The tokens that a row hides follow from the ``seed``, the
    epoch and the row, with any number of processes and after a restart. Dev and test rows hide the
    same tokens in every epoch and run, so that perplexities can be compared.

    Rows to predict are texts with the tokenizer's mask token, such as ``"Paris is in [MASK]."``.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        text: name of the column of the text. Empty texts are left out.
        join: whether texts follow each other, with a separator between them, in rows of
            ``max_length`` tokens. Otherwise each text begins a row. In both cases a long text goes
            on in the next row.
        probability: of each token to be chosen.
        whole_words: choose all tokens of a word together, and mask all of them.
        **table: see :class:`TableDataModule` (train, dev, test, predict, dataset, ...).

    Raises:
        ValueError: ``probability`` is not between 0 and 1. When rows are read: the tokenizer has no
            mask token, is not a fast one, or ``max_length`` leaves no room beside special tokens.

    Example::

        data = MaskedText("bert-base-uncased", train="reports/*.jsonl", text="body")
    """

    sampler: ClassVar[type[BucketSampler]] = EpochSampler

    def __init__(
        self,
        backbone: str,
        *,
        text: str = "text",
        join: bool = True,
        probability: float = 0.15,
        whole_words: bool = False,
        **table: Any,
    ) -> None:
        super().__init__(backbone, **table)
        if not 0 < probability < 1:
            raise ValueError(f"probability is {probability}, expected a share between 0 and 1")
        self.text, self.join = text, join
        self.probability, self.whole_words = probability, whole_words

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer.

        Raises:
            ValueError: it has no mask token, or is not a fast one.
        """
        tokenizer = super().tokenizer
        if tokenizer.mask_token is None:
            raise ValueError(
                f"the tokenizer of {self.backbone!r} has no mask token: masked language modelling "
                "needs an encoder that was pretrained with one, such as BERT or RoBERTa"
            )
        if not tokenizer.is_fast:
            raise ValueError(f"MaskedText needs a fast tokenizer, and {self.backbone!r} has none")
        return tokenizer

    @cached_property
    def masking(self) -> Masking:
        """Chooses and hides tokens."""
        return Masking(self.tokenizer, probability=self.probability, whole_words=self.whole_words)

    def columns(self, split: str) -> Mapping[str, Column]:
        """``text``."""
        return {"text": Column(self.text, Text(may_be_empty=split != "predict"))}

    def examples(self, split: str) -> Any:
        """The rows of ``split``, which are masked when they are read; to predict, as they are."""
        rows = super().examples(split)
        if split == "predict":
            return rows
        train = split == "train"
        seed = self.seed if train else EVALUATION_SEED
        return MaskedRows(rows, self.masking, seed=seed, fixed=not train)

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens in rows of at most ``max_length``, and the number of each token's word."""
        if split == "predict":
            return self._to_fill(rows["text"])
        streams = [_stream(each) for each in self._encodings(rows["text"]) if each.ids]
        start, end = self._around
        room = self.max_length - len(start) - len(end)
        if room < 1:
            raise ValueError(
                f"max_length={self.max_length} leaves no room beside {len(start) + len(end)} "
                "special tokens: raise max_length"
            )
        streams = [_joined(streams, end)] if self.join else streams
        pieces = [piece for stream in streams for piece in _pieces(stream, room)]
        if not pieces:
            raise ValueError(f"{split}: {len(rows['text'])} texts in a row are empty")
        ids = [[*start, *piece.ids, *end] for piece in pieces]
        around = [SPECIAL] * len(start), [SPECIAL] * len(end)
        words = [[*around[0], *piece.words, *around[1]] for piece in pieces]
        return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], WORDS: words}

    def _encodings(self, texts: list[str]) -> Any:
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return self.tokenizer(texts, **options).encodings

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens before and after a text."""
        found = self.tokenizer("a", return_special_tokens_mask=True)
        ids, special = found["input_ids"], found["special_tokens_mask"]
        first = special.index(0)
        last = len(special) - special[::-1].index(0)
        return ids[:first], ids[last:]

    def _to_fill(self, texts: list[str]) -> dict[str, list[Any]]:
        options = {"return_token_type_ids": False, "return_attention_mask": True}
        tokens = self.tokenizer(texts, truncation=True, max_length=self.max_length, **options)
        mask, name = self.tokenizer.mask_token_id, str(self.tokenizer.mask_token)
        for text, ids in zip(texts, tokens["input_ids"], strict=True):
            if mask not in ids:
                raise ValueError(
                    f"the text {text[:60]!r} has no {name} to fill within its first "
                    f"{self.max_length} tokens: name a file of texts with {name} in predict="
                )
            if ids.count(mask) < text.count(name):
                raise ValueError(
                    f"the text {text[:60]!r} has {text.count(name)} {name} to fill, of which "
                    f"{ids.count(mask)} are within its first {self.max_length} tokens: raise "
                    "max_length"
                )
        return dict(tokens)

    def fixed_lengths(self) -> dict[str, int]:
        """With a fixed length, that of the labels too."""
        lengths = super().fixed_lengths()
        return {**lengths, "labels": self.max_length} if lengths else {}


def _stream(encoding: Any) -> Stream:
    words: list[int] = []
    before = None
    for word in encoding.word_ids:
        same = word is not None and word == before
        words.append((words[-1] if words else 0) + (not same))
        before = word
    return Stream(encoding.ids, words)


def _joined(streams: list[Stream], end: list[int]) -> Stream:
    """All streams in turn, with ``end`` between them. Words of two texts have other numbers."""
    ids: list[int] = []
    words: list[int] = []
    last = 0
    for stream in streams:
        if ids:
            ids += end
            words += [SPECIAL] * len(end)
        ids += stream.ids
        words += [last + word for word in stream.words]
        last = words[-1]
    return Stream(ids, words)


def _pieces(stream: Stream, room: int) -> list[Stream]:
    starts = range(0, len(stream.ids), room)
    return [Stream(stream.ids[i : i + room], stream.words[i : i + room]) for i in starts]
