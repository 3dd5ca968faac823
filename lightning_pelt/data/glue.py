"""The nine GLUE tasks (Wang et al., 2019) from the hub or a folder, with UniPELT's protocol."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from lightning_pelt.data._columns import Column, Label, Number, Text
from lightning_pelt.data._file_rows import READERS
from lightning_pelt.data._glue_tasks import TASKS
from lightning_pelt.data._table_io import Table, convert_columns, read_file, read_hub
from lightning_pelt.data.text_base import TextDataModule
from lightning_pelt.data.text_to_text import encode_targets
from lightning_pelt.utils.errors import unknown

HUB = "nyu-mll/glue"
DEV_ROWS = 1000  # of the low-resource protocol
UNLABELLED = ("-1", "-1.0", "")  # the label column of the official test rows


def _find_column(table: Table, names: tuple[str, ...]) -> str:
    """The first of the names that is a column; without one the first name, for the error."""
    return next((name for name in names if name in table.rows.column_names), names[0])


class GLUE(TextDataModule):
    """One task of the GLUE benchmark.

    The official test labels are not public, so the official dev rows are both dev and test, unless
    ``folder`` has test rows with labels. Official test rows without labels are the predict split.

    With ``low_resource=K`` (UniPELT, Mao et al., 2022, section 4.1) the training rows are shuffled
    by ``data_seed``. The first K rows are train, the next 1,000 are dev, and the official dev rows
    are test.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        task: one of the nine tasks.
        folder: read train, dev and test (.jsonl, .tsv, .csv or .parquet) from this folder, or from
            its subfolder with the name of the task, instead of from the hub. Rows have ``text``,
            ``text2`` and ``label`` (index or name), or the official columns.
        low_resource: K, the number of training rows of the low-resource protocol.
        data_seed: seed of the choice of those rows.
        mismatched: for MNLI, test on the mismatched dev rows; dev stays matched.
        as_text: rows in the format of T5 ("cola sentence: ..."), with label names as target texts.
        **common: see :class:`TextDataModule`.

    Raises:
        ValueError: an unknown task, ``mismatched`` for a task other than MNLI, or too few training
            rows for the low-resource protocol.

    Example::

        data = GLUE("bert-base-uncased", "mrpc", low_resource=100, data_seed=111)
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
            raise ValueError(
                f"only MNLI has mismatched rows, and the task is {task!r}: omit mismatched"
            )
        self.task = task
        self.spec = TASKS[task]
        self.folder = folder
        self.low_resource = low_resource
        self.data_seed = data_seed
        self.mismatched = mismatched
        self.as_text = as_text

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes by index; None for STS-B, whose target is a number."""
        return list(self.spec.labels) if self.spec.labels else None

    @property
    def pair(self) -> bool:
        """Whether a row is a pair of texts."""
        return bool(self.spec.text2)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the task's metrics. The first one selects the best checkpoint."""
        return self.spec.metrics

    def read(self) -> dict[str, Dataset]:
        """Train, dev and test; also predict if the official test rows have no labels."""
        matched = "_matched" if self.task == "mnli" else ""
        splits = {"train": self._rows("train"), "dev": self._rows(f"validation{matched}")}
        splits["test"] = splits["dev"]
        official = self._table(f"test{matched}", optional=True)
        if official and not self._labelled(official):
            splits["predict"] = self._converted(official, labelled=False)
        elif official and self.low_resource is None:
            splits["test"] = self._converted(official)
        if self.low_resource is not None:
            splits |= self._low_resource_splits(splits["train"], self.low_resource)
        if self.mismatched:
            splits["test"] = self._rows("validation_mismatched")
        return splits

    def _low_resource_splits(self, train: Dataset, size: int) -> dict[str, Dataset]:
        if size < 1 or len(train) < size + DEV_ROWS:
            raise ValueError(
                f"low_resource={size} takes {size} rows as train and {DEV_ROWS} as dev, but "
                f"{self.task} has {len(train)} training rows: give at least 1, and leave "
                f"{DEV_ROWS} rows for dev"
            )
        order = train.shuffle(seed=self.data_seed)
        return {
            "train": order.select(range(size)),
            "dev": order.select(range(size, size + DEV_ROWS)),
        }

    def _rows(self, split: str) -> Dataset:
        table = self._table(split)
        assert table is not None
        return self._converted(table)

    def _converted(self, table: Table, *, labelled: bool = True) -> Dataset:
        text = Text(may_be_empty=self.spec.may_be_empty)
        columns = {"text": Column(_find_column(table, self.spec.text), text)}
        if self.pair:
            columns["text2"] = Column(_find_column(table, self.spec.text2), text)
        if labelled:
            kind = Label(self.spec.labels, indexed=True) if self.spec.labels else Number()
            columns["label"] = Column(_find_column(table, self.spec.label), kind)
        return convert_columns(table, columns, desc=f"reading {table.source}")

    def _labelled(self, table: Table) -> bool:
        column = _find_column(table, self.spec.label)
        known = column in table.rows.column_names
        values = table.values(column, distinct=True) if known else []
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
                f"{self._task_folder} has no {split.replace('validation', 'dev')} rows: expected a "
                f"file of that name that ends in {', '.join(READERS)}"
            )
        return read_file(file, header=self.spec.header)

    @cached_property
    def _task_folder(self) -> Path:
        folder = Path(self.folder or ".").expanduser()
        subfolders = (folder / self.task, folder / self.spec.folder)
        return next((each for each in subfolders if each.is_dir()), folder)

    def _file(self, split: str) -> Path | None:
        short = split.replace("validation", "dev")
        names = [short, split, short.removesuffix("_matched"), split.removesuffix("_matched")]
        files = [self._task_folder / (name + suffix) for name in names for suffix in READERS]
        return next((file for file in files if file.is_file()), None)

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens, and the label as an index, a number or, with ``as_text``, as tokens."""
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
        """T5's format (Raffel et al., 2020, appendix D): named columns in alphabetical order."""
        named = [(self.spec.text[1], first)]  # the hub's names
        if second is not None:
            named.append((self.spec.text2[1], second))
        columns = [[f"{name}: {text}" for text in texts] for name, texts in sorted(named)]
        return [" ".join((self.task, *parts)) for parts in zip(*columns, strict=True)]

    def _target(self, label: float) -> str:
        """The name of a class, or a number rounded to the nearest 0.2, as in T5."""
        if self.spec.labels:
            return self.spec.labels[int(label)]
        return f"{round(label * 5) / 5:.1f}"
