"""Data modules whose rows are the user's own files, or splits of a data set of the hub."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from datasets import Dataset

from lightning_pelt.data.base import TextDataModule
from lightning_pelt.data.reading import Column, Table, read_file, read_hub, uniform

HUB_REMEDY = "Without a network, name files instead: train=, dev=, test= without dataset=."


class TableDataModule(TextDataModule):
    """Rows of CSV, TSV, JSONL or Parquet files, or of a data set that ``datasets`` can load.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        train: a file; with ``dataset``, the name of a split ("train", "train[:10%]").
        dev: the same.
        test: the same.
        predict: the same; needs no labels. By default the rows of ``test`` are predicted.
        dataset: name of a data set of the hub.
        config: its configuration, where it has several.
        dev_share: without ``dev``, this share of the training rows becomes it; 0 for none.
        data_seed: of the choice of those rows.
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
        places = {"train": train, "dev": dev, "test": test, "predict": predict}
        self.places = {split: place for split, place in places.items() if place is not None}
        if not self.places:
            raise ValueError(f"{type(self).__name__} needs rows: give train, dev, test or predict")
        if not 0 <= dev_share < 1:
            raise ValueError(f"dev_share is {dev_share}, expected at least 0 and less than 1")
        self.dataset = dataset
        self.config = config
        self.dev_share = dev_share
        self.data_seed = data_seed

    @abstractmethod
    def columns(self, split: str) -> Mapping[str, Column]:
        """What a row of ``split`` consists of, and which columns it comes from."""

    @abstractmethod
    def strings(self) -> list[str]:
        """The columns that are kept as they are written, where a file has no types."""

    @cached_property
    def tables(self) -> dict[str, Table]:
        """What the files hold, split by split."""
        return {split: self._table(place) for split, place in self.places.items()}

    def _table(self, place: str) -> Table:
        if self.dataset is None:
            return read_file(place, strings=self.strings())
        return read_hub(self.dataset, self.config, place, remedy=HUB_REMEDY)

    def read(self) -> dict[str, Dataset]:
        """The checked rows of each split, and a dev split out of train where there is none."""
        splits = {
            split: uniform(table, self.columns(split), desc=f"reading {split}")
            for split, table in self.tables.items()
        }
        if "train" in splits and "dev" not in splits and self.dev_share:
            halves = splits["train"].train_test_split(self.dev_share, seed=self.data_seed)
            splits.update(train=halves["train"], dev=halves["test"])
        return splits
