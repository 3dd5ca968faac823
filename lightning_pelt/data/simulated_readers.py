"""Simulated readers who like some topics: profiles without a file."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from itertools import chain
from math import comb
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from lightning_pelt.data.profile_data import PROFILE, Profiled
from lightning_pelt.data.stdlib_docs import StdlibDocs


class SimulatedReaders(Profiled, StdlibDocs):
    """Readers who like or dislike docstrings by topic.

    Each reader likes a random half of the topics of :class:`StdlibDocs`, and no two readers like
    the same half. Readers form pairs with opposite tastes, and both readers of a pair judge the
    same texts, so a model that does not know the reader is right in exactly half of the rows of
    each split. Half of the training rows of a reader have each label, so the reader alone does not
    determine the label either. Profiles can only share the topic. No text is in two splits, and
    topics are equally frequent.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        readers: number of profiles, even.
        rows_per_reader: number of training texts that each reader judges.
        test_rows: number of rows of the test split, two for each text.
        dev_rows: number of rows of the dev split, two for each text.
        noise: share of the texts in every split whose labels are swapped between the two readers.
        data_seed: seed of tastes, splits and noise.
        **common: ``only``, ``min_rows`` (topics with fewer texts are dropped), and see
            :class:`TextDataModule`.

    Raises:
        ValueError: an odd number of readers or rows, or a value outside its range.

    Example:
        >>> from lightning_pelt import SimulatedReaders
        >>> data = SimulatedReaders(readers=4, rows_per_reader=20, test_rows=40, dev_rows=20)
        >>> data.profiles
        ['reader 01', 'reader 02', 'reader 03', 'reader 04']
        >>> data.labels
        ['dislike', 'like']
    """

    def __init__(
        self,
        backbone: str = "sentence-transformers/all-MiniLM-L6-v2",
        *,
        readers: int = 12,
        rows_per_reader: int = 150,
        test_rows: int = 600,
        dev_rows: int = 300,
        noise: float = 0.0,
        data_seed: int = 42,
        **common: Any,
    ) -> None:
        super().__init__(
            backbone, test_rows=test_rows, dev_rows=dev_rows, data_seed=data_seed, **common
        )
        for name, value in (("readers", readers), ("test_rows", test_rows), ("dev_rows", dev_rows)):
            if value < 2 or value % 2:
                raise ValueError(
                    f"{name} is {value}, expected an even number from 2: readers form pairs"
                )
        if rows_per_reader < 1:
            raise ValueError(f"rows_per_reader is {rows_per_reader}, expected at least 1")
        if not 0 <= noise <= 0.5:
            raise ValueError(f"noise is {noise}, expected 0 (no noise) to 0.5 (only noise)")
        self.readers = readers
        self.rows_per_reader = rows_per_reader
        self.noise = noise

    @property
    def labels(self) -> list[str]:
        """Both judgements of a reader."""
        return ["dislike", "like"]

    @cached_property
    def profiles(self) -> list[str]:
        """Names of the readers: "reader 01", ..."""
        digits = max(2, len(str(self.readers)))
        return [f"reader {i:0{digits}}" for i in range(1, self.readers + 1)]

    @property
    def topics(self) -> list[str]:
        """The chapters that readers judge: an even number, without the last one if need be.

        Raises:
            ValueError: ``min_rows`` leaves fewer than two topics.
        """
        kept = self._collected[0]
        if len(kept) < 2:
            raise ValueError(f"min_rows {self.min_rows} leaves {len(kept)} topics: lower it")
        return kept[: len(kept) // 2 * 2]

    @cached_property
    def tastes(self) -> np.ndarray:
        """Which reader likes which topic: (readers, topics) bool. Rows 2i and 2i + 1 are opposite.

        Raises:
            ValueError: there are more readers than distinct tastes.
        """
        topics = len(self.topics)
        if self.readers > (most := comb(topics, topics // 2)):
            raise ValueError(
                f"readers is {self.readers}, but {topics} topics have only {most} different "
                "halves: lower readers, or min_rows"
            )
        random = np.random.default_rng([self.data_seed, 0])
        tastes: dict[bytes, np.ndarray] = {}
        while len(tastes) < self.readers:
            half = random.permutation(np.arange(topics) % 2).astype(bool)
            tastes |= {taste.tobytes(): taste for taste in (half, ~half)}
        return np.stack([*tastes.values()])

    def read(self) -> dict[str, Dataset]:
        """Train, dev and test with ``text``, ``label``, and ``profile``, the index of the reader.

        Raises:
            ValueError: a topic has too few texts, or ``only`` names an unknown reader.
        """
        random = np.random.default_rng([self.data_seed, 1])
        texts = self._shuffled_texts(random)
        splits = {}
        for split, rows in (("test", self.test_rows), ("dev", self.dev_rows)):
            turns = -(-rows // 2 // len(texts))
            splits[split] = self._rows(_in_turn(texts, rows // 2), random)
            texts = [pool[turns:] for pool in texts]
        train = [self._training_texts(texts, pair, random) for pair in range(self.readers // 2)]
        splits["train"] = self._rows([*chain.from_iterable(train)], random)
        return self.select(splits)

    def _shuffled_texts(self, random: np.random.Generator) -> list[list[str]]:
        """The texts of each topic, in random order."""
        texts = defaultdict(list)
        for text, chapter in self._collected[1]:
            texts[chapter].append(text)
        topics = self.topics
        per_split = (self.test_rows // 2, self.dev_rows // 2, self.rows_per_reader)
        needed = sum(-(-n // len(topics)) for n in per_split)
        for topic in topics:
            if needed > len(texts[topic]):
                raise ValueError(
                    f"{needed} texts of each topic are needed, and {topic!r} has only "
                    f"{len(texts[topic])}: lower rows_per_reader, test_rows or dev_rows"
                )
        return [_shuffled(texts[topic], random) for topic in topics]

    def _training_texts(
        self, texts: list[list[str]], pair: int, random: np.random.Generator
    ) -> list[JudgedText]:
        """The training texts of a pair, alternately of liked and of disliked topics."""
        taste = self.tastes[2 * pair]
        halves = (random.permutation(np.flatnonzero(half)).tolist() for half in (taste, ~taste))
        order = [*chain.from_iterable(zip(*halves, strict=True))]
        pools = [_shuffled(pool, random) for pool in texts]
        turns = (divmod(i, len(order)) for i in range(self.rows_per_reader))
        return [JudgedText(pools[order[i]][turn], order[i], pair) for turn, i in turns]

    def _rows(self, judged: list[JudgedText], random: np.random.Generator) -> Dataset:
        """Two rows for each text: the judgements of both readers of its pair."""
        flipped = set(random.permutation(len(judged))[: round(self.noise * len(judged))].tolist())
        columns: dict[str, list[Any]] = {"text": [], "label": [], PROFILE: []}
        for i, (text, topic, pair) in enumerate(judged):
            first = 2 * pair % self.readers
            for reader in (first, first + 1):
                columns["text"].append(text)
                columns["label"].append(int(self.tastes[reader, topic] != (i in flipped)))
                columns[PROFILE].append(reader)
        return Dataset.from_dict(columns)


class JudgedText(NamedTuple):
    """A text, the index of its topic, and of the pair that judges it, modulo the pairs."""

    text: str
    topic: int
    pair: int


def _in_turn(texts: list[list[str]], count: int) -> list[JudgedText]:
    """``count`` texts of the topics in turn, so that pairs judge all topics equally often."""
    turns = (divmod(i, len(texts)) for i in range(count))
    return [JudgedText(texts[topic][turn], topic, turn + topic) for turn, topic in turns]


def _shuffled(texts: list[str], random: np.random.Generator) -> list[str]:
    return [texts[i] for i in random.permutation(len(texts))]
