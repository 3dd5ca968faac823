"""Base of the data modules that read files, or the splits of a data set on the hub."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from datasets import Dataset

from lightning_pelt.data._columns import Column
from lightning_pelt.data._table_io import Table, convert_columns, read_file, read_hub
from lightning_pelt.data.base import TextDataModule

HUB_REMEDY = "Without a network, name files instead: train=, dev=, test= without dataset=."


class TableDataModule(TextDataModule):
    """Reads CSV, TSV, JSONL, JSON or Parquet files, or a data set that ``datasets`` can load.

    A path is a single file, never a pattern. Text files are UTF-8. Each row of a CSV or TSV file
    has as many cells as the header; a TSV file has no quoting. JSONL and JSON files hold an object
    per line, or a list of objects. No row is skipped, so that rows keep their numbers: a blank
    line, a damaged row and a value that is no text, number or label are errors that name the file,
    the row (from 1, without the header) and the column.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        train: a file; with ``dataset``, the name of a split ("train", "train[:10%]").
        dev: likewise.
        test: likewise.
        predict: likewise, without labels. By default the rows of ``test`` are predicted.
        dataset: name of a data set on the hub.
        config: configuration of the data set, if it has several.
        dev_share: without ``dev``, the share of the training rows to use as dev rows; 0 for no dev
            split.
        data_seed: seed of the choice of those rows.
        **common: see :class:`TextDataModule`.
    """

    def __init__(
        self,
        backbone: str,
        *,
        train: str | None = None,
        dev: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        dataset: str | None = None,
        config: str | None = None,
        dev_share: float = 0.1,
        data_seed: int = 42,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        given = {"train": train, "dev": dev, "test": test, "predict": predict}
        self.locations = {split: each for split, each in given.items() if each is not None}
        if not self.locations:
            raise ValueError(f"{type(self).__name__} needs rows: give train, dev, test or predict")
        if not 0 <= dev_share < 1:
            raise ValueError(f"dev_share is {dev_share}, expected at least 0 and less than 1")
        self.dataset = dataset
        self.config = config
        self.dev_share = dev_share
        self.data_seed = data_seed

    @abstractmethod
    def columns(self, split: str) -> Mapping[str, Column]:
        """The columns of a row of ``split``, and the columns of the file that they come from."""

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The rows of each split as they are read."""
        return {split: self._table(location) for split, location in self.locations.items()}

    def _table(self, location: str) -> Table:
        if self.dataset is None:
            return read_file(location)
        return read_hub(self.dataset, self.config, location, remedy=HUB_REMEDY)

    def read(self) -> dict[str, Dataset]:
        """The converted rows of each split; without ``dev`` a share of train is the dev split."""
        splits = {
            split: convert_columns(table, self.columns(split), desc=f"reading {split}")
            for split, table in self.tables.items()
        }
        if "train" in splits and "dev" not in splits and self.dev_share:
            halves = splits["train"].train_test_split(self.dev_share, seed=self.data_seed)
            splits.update(train=halves["train"], dev=halves["test"])
        return splits
