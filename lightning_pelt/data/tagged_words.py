"""Words with a tag each, for token classification."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from lightning_pelt.data._columns import Column
from lightning_pelt.data._table_io import Table
from lightning_pelt.data._token_labels import (
    Words,
    carriers,
    check_tokens,
    inside_tags,
    tag_names,
    tags_kind,
    words_of_tokens,
)
from lightning_pelt.data._window_batch import TAGS, WORD_OF_TOKEN, WORDS
from lightning_pelt.data._windows import Span, cut, owners, spans
from lightning_pelt.data.collator import IGNORED
from lightning_pelt.data.windowed import WindowedText, gather, model_columns

LABEL_ON = ("first", "last", "all")


class TaggedWords(WindowedText):
    """Rows of words with a tag each: named entities, parts of speech, chunks.

    The words and tags of a row are lists of the same length; in a CSV or TSV file, texts in which
    white space separates them, or JSON lists. Tags are names, or their indices. The model reads the
    words with a space between them. A word without a token (an empty one, or characters that the
    tokenizer leaves out) keeps its place, and is predicted ``O``.

    Texts of more than ``max_length`` tokens are read in windows. In training each window is a row;
    in evaluation a word is predicted in the window where it has the most context.

    Args:
        backbone: hub id or folder whose fast tokenizer is used.
        words: name of the column of the words.
        tags: name of the column of the tags.
        labels: names of the tags by index; by default the sorted tags of train, with O first.
        label_on: the token of a word that carries its tag: the first; the last, which suits
            decoders, since no earlier token has read the whole word; or all of them in training,
            where the later tokens of B-X have the tag I-X.
        stride: number of tokens that a window shares with the one before it.
        **table: see :class:`TableDataModule` (train, dev, test, predict, dataset, max_length, ...).

    Raises:
        ValueError: an unknown ``label_on``. When rows are read: a row has another number of tags
            than of words; a word has no token, and no tag is O. See also :class:`WindowedText`.

    Example::

        data = TaggedWords("FacebookAI/roberta-base", train="train.jsonl", tags="ner_tags")
    """

    def __init__(
        self,
        backbone: str,
        *,
        words: str = "tokens",
        tags: str = "ner_tags",
        labels: list[str] | None = None,
        label_on: Literal["first", "last", "all"] = "first",
        stride: int = 32,
        **table: Any,
    ) -> None:
        super().__init__(backbone, stride=stride, **table)
        if label_on not in LABEL_ON:
            raise ValueError(f"label_on is {label_on!r}, expected one of {', '.join(LABEL_ON)}")
        self.words = words
        self.tags = tags
        self.given_labels = labels
        self.label_on = label_on

    @cached_property
    def labels(self) -> list[str]:
        """Names of the tags by index.

        Raises:
            ValueError: neither ``labels`` nor ``train`` is given.
        """
        if self.given_labels:
            return [str(label) for label in self.given_labels]
        if "train" not in self.sources.locations:
            raise ValueError("the tags are unknown: give labels=[...], or train= to collect them")
        return tag_names(self.tables["train"], self.tags)

    def columns(self, split: str) -> Mapping[str, Column]:
        """``words``, and ``tags`` unless the split is predict."""
        columns = {"words": Column(self.words, Words())}
        if split != "predict":
            kind = tags_kind(self.labels, self.tables[split], self.tags)
            columns["tags"] = Column(self.tags, kind)
        return columns

    def check(self, table: Table, rows: Dataset, split: str) -> None:
        """Check that each row has as many tags as words."""
        if split == "predict":
            return
        whole = rows.with_format("arrow")[:]
        words, tags = (pc.list_value_length(whole[name]).to_numpy() for name in ("words", "tags"))
        wrong = np.flatnonzero(words != tags)
        if len(wrong):
            index = int(wrong[0])
            raise ValueError(
                f"{table.place(index)}: {words[index]} words in column {self.words!r}, and "
                f"{tags[index]} tags in column {self.tags!r}: a row needs one tag for each word"
            )

    def most_around(self) -> int:
        """The number of special tokens of a text."""
        return self.tokenizer.num_special_tokens_to_add()

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """The windows of each row; see :class:`WindowedText`."""
        texts = [" ".join(words) for words in rows["words"]]
        encoded = self.tokenizer(texts, return_offsets_mapping=True, verbose=False)
        labelled = rows["tags"] if split != "predict" else [None] * len(texts)
        windows = []
        for row, (words, tags) in enumerate(zip(rows["words"], labelled, strict=True)):
            tokens = model_columns(encoded, row)
            content = _content(encoded.sequence_ids(row))
            if not tokens["input_ids"]:  # a row without words, and no special tokens
                tokens = {name: [int(name == "attention_mask")] for name in tokens}
                tokens["input_ids"], content = [self.tokenizer.pad_token_id], (1, 1)
            word_of = words_of_tokens(words, encoded["offset_mapping"][row][slice(*content)])
            carried = carriers(word_of, self.label_on)
            check_tokens(words, carried, self.labels)
            if split == "train":
                label = self._targets(np.asarray(tags), word_of, carried)
                windows.append(self._windows(tokens, content, labels=label))
            else:
                windows.append(self._evaluated(tokens, content, carried, tags))
        columns = gather(windows, apart=split == "train")
        if split != "train":
            columns[WORDS] = [len(words) for words in rows["words"]]
        return {**columns, TAGS: labelled} if split not in ("train", "predict") else columns

    def _targets(self, tags: np.ndarray, word_of: np.ndarray, carried: np.ndarray) -> np.ndarray:
        """The target of each token of a text; (tokens,) int64."""
        if not len(tags):
            return np.full(len(word_of), IGNORED)
        target = np.where(carried >= 0, tags[carried], IGNORED)
        if self.label_on != "all":
            return target
        inside = np.asarray(inside_tags(self.labels))
        return np.where((word_of >= 0) & (carried < 0), inside[tags[word_of]], target)

    def _evaluated(
        self,
        tokens: Mapping[str, list[int]],
        content: Span,
        carried: np.ndarray,
        tags: list[int] | None,
    ) -> list[dict[str, Any]]:
        """The windows of a row in which each word is predicted, and its tag a target, once."""
        cuts = spans(len(carried), self.room, self.stride)
        owner = owners(cuts, len(carried))
        own = [np.where(owner == window, carried, -1) for window in range(len(cuts))]
        if tags is None:
            return self._windows(tokens, content, own=own)
        target = np.where(carried >= 0, np.asarray([*tags, IGNORED])[carried], IGNORED)
        return self._windows(tokens, content, own=own, labels=target)

    def _windows(
        self,
        tokens: Mapping[str, list[int]],
        content: Span,
        *,
        labels: np.ndarray | None = None,
        own: list[np.ndarray] | None = None,
    ) -> list[dict[str, Any]]:
        """The windows of a row.

        Args:
            tokens: inputs of the model of the whole row.
            content: first token and end of the text.
            labels: (tokens of the text,) targets.
            own: of each window, the word that it predicts at each token of the text.
        """
        size = len(tokens["input_ids"])
        around = {"labels": IGNORED, WORD_OF_TOKEN: -1}

        def whole(name: str, values: np.ndarray) -> list[int]:
            padded = np.full(size, around[name])
            padded[slice(*content)] = values
            return padded.tolist()

        windows = []
        for window, span in enumerate(spans(content[1] - content[0], self.room, self.stride)):
            columns = dict(tokens)
            if own is not None:
                columns[WORD_OF_TOKEN] = whole(WORD_OF_TOKEN, own[window])
            if labels is not None:
                kept = labels if own is None else np.where(own[window] >= 0, labels, IGNORED)
                columns["labels"] = whole("labels", kept)
            windows.append(cut(columns, content, span))
        return windows


def _content(sequence_ids: list[int | None]) -> Span:
    """The first token and the end of the text between special tokens."""
    own = [index for index, sequence in enumerate(sequence_ids) if sequence is not None]
    return (own[0], own[-1] + 1) if own else (len(sequence_ids), len(sequence_ids))
