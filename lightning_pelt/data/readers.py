"""Simulated readers with tastes over topics: profiles that need no file."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from itertools import chain
from math import comb
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from lightning_pelt.data.profiles import PROFILE, Profiled
from lightning_pelt.data.stdlib_docs import StdlibDocs


class SimulatedReaders(Profiled, StdlibDocs):
    """What a reader says of a docstring: whether they like it depends on its topic alone.

    Each reader likes a random half of the topics of :class:`StdlibDocs`, no two the same half.
    Readers come in pairs of opposite tastes, and a text is always judged by both of a pair: a
    model that does not know the reader is right in exactly half of the rows of each split. A
    reader's training rows are half of each label, so that the reader alone says nothing either;
    what profiles can share is the topic. No text is in two splits, and topics are equally frequent.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        readers: number of profiles, an even one.
        rows_per_reader: training texts that each reader has judged.
        test_rows: rows of the test split, two for each of its texts.
        dev_rows: rows of the dev split, likewise.
        noise: share of the texts, in every split, of which both readers say the opposite.
        data_seed: of the tastes, the splits and the noise.
        **common: ``only``, ``min_rows`` (topics with fewer texts are left out), and see
            :class:`TextDataModule`.

    Raises:
        ValueError: for a number that is odd or out of its range.
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
                raise ValueError(f"{name} is {value}, expected an even number: readers are paired")
        if rows_per_reader < 1:
            raise ValueError(f"rows_per_reader is {rows_per_reader}, expected at least 1")
        if not 0 <= noise <= 0.5:
            raise ValueError(f"noise is {noise}, expected 0 (none) to 0.5 (nothing but noise)")
        self.readers = readers
        self.rows_per_reader = rows_per_reader
        self.noise = noise

    @property
    def labels(self) -> list[str]:
        """What a reader can say."""
        return ["dislike", "like"]

    @cached_property
    def profiles(self) -> list[str]:
        """The names of the readers: "reader 01", ..."""
        digits = max(2, len(str(self.readers)))
        return [f"reader {i:0{digits}}" for i in range(1, self.readers + 1)]

    @property
    def topics(self) -> list[str]:
        """The chapters that are liked or not: an even number, so the last may be missing.

        Raises:
            ValueError: if ``min_rows`` leaves fewer than two.
        """
        kept = self._collected[0]
        if len(kept) < 2:
            raise ValueError(f"min_rows {self.min_rows} leaves {len(kept)} topics: lower it")
        return kept[: len(kept) // 2 * 2]

    @cached_property
    def tastes(self) -> np.ndarray:
        """Who likes what: ``(readers, topics)`` bool. Rows 2i and 2i + 1 are opposites.

        Raises:
            ValueError: if there are more readers than different tastes.
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
        """Train, dev and test: ``text``, ``label``, and ``profile``, the reader's index.

        Raises:
            ValueError: if a topic has too few texts, or ``only`` names no reader.
        """
        random = np.random.default_rng([self.data_seed, 1])
        texts = self._shuffled_texts(random)
        splits = {}
        for split, rows in (("test", self.test_rows), ("dev", self.dev_rows)):
            turns = -(-rows // 2 // len(texts))
            splits[split] = self._rows(_dealt(texts, rows // 2), random)
            texts = [pool[turns:] for pool in texts]
        drawn = [self._drawn(texts, pair, random) for pair in range(self.readers // 2)]
        splits["train"] = self._rows([*chain.from_iterable(drawn)], random)
        return self.kept(splits)

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

    def _drawn(
        self, texts: list[list[str]], pair: int, random: np.random.Generator
    ) -> list[Judged]:
        """What a pair is trained on: texts of liked and of disliked topics in turn."""
        taste = self.tastes[2 * pair]
        halves = (random.permutation(np.flatnonzero(half)).tolist() for half in (taste, ~taste))
        order = [*chain.from_iterable(zip(*halves, strict=True))]
        pools = [_shuffled(pool, random) for pool in texts]
        turns = (divmod(i, len(order)) for i in range(self.rows_per_reader))
        return [Judged(pools[order[place]][turn], order[place], pair) for turn, place in turns]

    def _rows(self, judged: list[Judged], random: np.random.Generator) -> Dataset:
        """Two rows for each text: what either reader of its pair says."""
        flipped = set(random.permutation(len(judged))[: round(self.noise * len(judged))].tolist())
        columns: dict[str, list[Any]] = {"text": [], "label": [], PROFILE: []}
        for i, (text, topic, pair) in enumerate(judged):
            first = 2 * pair % self.readers
            for reader in (first, first + 1):
                columns["text"].append(text)
                columns["label"].append(int(self.tastes[reader, topic] != (i in flipped)))
                columns[PROFILE].append(reader)
        return Dataset.from_dict(columns)


class Judged(NamedTuple):
    """A text, the index of its topic, and that of the pair of readers, which starts over."""

    text: str
    topic: int
    pair: int


def _dealt(texts: list[list[str]], count: int) -> list[Judged]:
    """``count`` texts, topic by topic in turn, such that pairs meet all topics equally often."""
    turns = (divmod(i, len(texts)) for i in range(count))
    return [Judged(texts[topic][turn], topic, turn + topic) for turn, topic in turns]


def _shuffled(texts: list[str], random: np.random.Generator) -> list[str]:
    return [texts[i] for i in random.permutation(len(texts))]
