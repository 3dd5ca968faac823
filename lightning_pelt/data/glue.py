"""The nine GLUE tasks (Wang et al., 2019), from the hub or a folder, and UniPELT's protocol."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from lightning_pelt.data.base import TextDataModule
from lightning_pelt.data.glue_tasks import TASKS
from lightning_pelt.data.reading import (
    READERS,
    Class,
    Column,
    Number,
    Table,
    Text,
    read_file,
    read_hub,
    uniform,
)
from lightning_pelt.data.text_to_text import encode_targets
from lightning_pelt.errors import unknown

HUB = "nyu-mll/glue"
DEV_ROWS = 1000  # of the low-resource protocol
UNLABELLED = ("-1", "-1.0", "")  # what stands for the label in GLUE's own test files


def _present(table: Table, names: tuple[str, ...]) -> str:
    """The first of the names that is a column, or the first one, for the error."""
    return next((name for name in names if name in table.rows.column_names), names[0])


class GLUE(TextDataModule):
    """One task of the GLUE benchmark.

    The official test labels are secret, so the official dev rows are both dev and test, unless
    ``folder`` has test rows with labels. Official test rows without labels are what is predicted.

    With ``low_resource=K`` (UniPELT, Mao et al., 2022, section 4.1) the training rows are shuffled
    by ``data_seed``; the first K are train, the next 1,000 dev, and the official dev rows test.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        task: which of the nine.
        folder: read train, dev and test (.jsonl, .tsv, .csv or .parquet) here, or in its folder of
            the task's name, and not from the hub. Rows have ``text``, ``text2`` and ``label``
            (index or name), or the official columns.
        low_resource: K, the number of training rows of the low-resource protocol.
        data_seed: of the choice of those rows.
        mismatched: MNLI: test on the mismatched dev rows; dev stays the matched ones.
        as_text: rows as T5 takes them ("cola sentence: ..."), the label's name as target text.
        **common: see :class:`TextDataModule`.
    """

    def __init__(
        self,
        backbone: str,
        task: Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"],
        *,
        folder: str | None = None,
        low_resource: int | None = None,
        data_seed: int = 42,
        mismatched: bool = False,
        as_text: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        if task not in TASKS:
            raise unknown("GLUE task", task, TASKS)
        if mismatched and task != "mnli":
            raise ValueError(f"mismatched rows are MNLI's; the task is {task!r}")
        self.task = task
        self.spec = TASKS[task]
        self.folder = folder
        self.low_resource = low_resource
        self.data_seed = data_seed
        self.mismatched = mismatched
        self.as_text = as_text

    @property
    def labels(self) -> list[str] | None:
        """The names of the classes, by index; None for STS-B, whose target is a number."""
        return list(self.spec.labels) if self.spec.labels else None

    @property
    def pair(self) -> bool:
        """Whether a row is a pair of texts."""
        return bool(self.spec.text2)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the task's metrics; the first one decides which checkpoint is best."""
        return self.spec.metrics

    def read(self) -> dict[str, Dataset]:
        """Train, dev and test, and predict where the official test rows have no labels."""
        matched = "_matched" if self.task == "mnli" else ""
        splits = {"train": self._rows("train"), "dev": self._rows(f"validation{matched}")}
        splits["test"] = splits["dev"]
        official = self._table(f"test{matched}", optional=True)
        if official and not self._labelled(official):
            splits["predict"] = self._uniform(official, labelled=False)
        elif official and self.low_resource is None:
            splits["test"] = self._uniform(official)
        if self.low_resource is not None:
            splits |= self._few(splits["train"], self.low_resource)
        if self.mismatched:
            splits["test"] = self._rows("validation_mismatched")
        return splits

    def _few(self, train: Dataset, few: int) -> dict[str, Dataset]:
        if few < 1 or len(train) < few + DEV_ROWS:
            raise ValueError(
                f"low_resource={few} takes {few} rows to train and {DEV_ROWS} as dev, but "
                f"{self.task} has {len(train)} training rows"
            )
        order = train.shuffle(seed=self.data_seed)
        return {
            "train": order.select(range(few)),
            "dev": order.select(range(few, few + DEV_ROWS)),
        }

    def _rows(self, split: str) -> Dataset:
        table = self._table(split)
        assert table is not None
        return self._uniform(table)

    def _uniform(self, table: Table, *, labelled: bool = True) -> Dataset:
        text = Text(may_be_empty=self.spec.empty)
        columns = {"text": Column(_present(table, self.spec.text), text)}
        if self.pair:
            columns["text2"] = Column(_present(table, self.spec.text2), text)
        if labelled:
            kind = Class(self.spec.labels, indexed=True) if self.spec.labels else Number()
            columns["label"] = Column(_present(table, self.spec.label), kind)
        return uniform(table, columns, desc=f"reading {table.source}")

    def _labelled(self, table: Table) -> bool:
        column = _present(table, self.spec.label)
        values = table.rows.unique(column) if column in table.rows.column_names else []
        return any(value is not None and str(value) not in UNLABELLED for value in values)

    def _table(self, split: str, *, optional: bool = False) -> Table | None:
        if self.folder is None:
            remedy = "Without a network, read files instead: folder=."
            return read_hub(HUB, self.task, split, remedy=remedy)
        file = self._file(split)
        if file is None:
            if optional:
                return None
            raise FileNotFoundError(
                f"{self._home} has no {split.replace('validation', 'dev')} rows: expected a file "
                f"of that name that ends in {', '.join(READERS)}"
            )
        strings = [*self.spec.text, *self.spec.text2, *self.spec.label]
        table = read_file(file, strings=strings)
        if self.spec.header and not set(self.spec.text) & set(table.rows.column_names):
            table = read_file(file, strings=strings, column_names=list(self.spec.header))
        return table

    @cached_property
    def _home(self) -> Path:
        folder = Path(self.folder or ".").expanduser()
        homes = (folder / self.task, folder / self.spec.folder)
        return next((home for home in homes if home.is_dir()), folder)

    def _file(self, split: str) -> Path | None:
        short = split.replace("validation", "dev")
        names = [short, split, short.removesuffix("_matched"), split.removesuffix("_matched")]
        files = [self._home / (name + suffix) for name in names for suffix in READERS]
        return next((file for file in files if file.is_file()), None)

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens, and the label as index, number or, with ``as_text``, tokens."""
        first, second = rows["text"], rows.get("text2")
        if self.as_text:
            first, second = self._as_one_text(first, second), None
        tokens = self.tokenizer(first, second, truncation=True, max_length=self.max_length)
        if split == "predict":
            return dict(tokens)
        if not self.as_text:
            return {**tokens, "labels": rows["label"]}
        targets = [self._target(label) for label in rows["label"]]
        return {**tokens, "labels": encode_targets(self.tokenizer, targets, self.max_length)}

    def _as_one_text(self, first: list[str], second: list[str] | None) -> list[str]:
        """The rows as in T5 (Raffel et al., 2020, appendix D): the columns named, by alphabet."""
        named = [(self.spec.text[1], first)]  # the hub's names
        if second is not None:
            named.append((self.spec.text2[1], second))
        columns = [[f"{name}: {text}" for text in texts] for name, texts in sorted(named)]
        return [" ".join((self.task, *parts)) for parts in zip(*columns, strict=True)]

    def _target(self, label: float) -> str:
        """A class's name; a number to the nearest 0.2, as in T5."""
        if self.spec.labels:
            return self.spec.labels[int(label)]
        return f"{round(label * 5) / 5:.1f}"
