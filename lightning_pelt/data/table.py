"""Base of the data modules of texts in files, in saved data sets, or on the hub."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from lightning_pelt.data._columns import Column
from lightning_pelt.data._table_io import Table
from lightning_pelt.data.sources import Sources
from lightning_pelt.data.text_base import TextDataModule


class TableDataModule(TextDataModule):
    """Reads CSV, TSV, JSONL, JSON or Parquet files, or a data set that ``datasets`` can load.

    A place is a file, a pattern of files such as ``"part-*.jsonl"``, or a folder that
    ``save_to_disk`` wrote. Text files are UTF-8. Each row of a CSV or TSV file has as many cells as
    the header; a TSV file has no quoting. JSONL and JSON files hold an object per line, or a list
    of objects. No row is skipped, so that rows keep their numbers: a blank line, a damaged row and
    a value that is no text, number or label are errors that name the file, the row (from 1, without
    the header) and the column.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        train: a place; with ``dataset``, the name of a split ("train", "train[:10%]").
        dev: likewise.
        test: likewise.
        predict: likewise, without labels. By default the rows of ``test`` are predicted.
        dataset: name of a data set on the hub, or a folder with several splits.
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
        self.sources = Sources(
            type(self).__name__,
            train=train,
            dev=dev,
            test=test,
            predict=predict,
            dataset=dataset,
            config=config,
            dev_share=dev_share,
            data_seed=data_seed,
        )

    @abstractmethod
    def columns(self, split: str) -> Mapping[str, Column]:
        """The columns of a row of ``split``, and the columns of the file that they come from."""

    @property
    def tables(self) -> dict[str, Table]:
        """The rows of each split as they are read."""
        return self.sources.tables

    def read(self) -> dict[str, Dataset]:
        """The converted rows of each split; without ``dev`` a share of train is the dev split."""
        return self.sources.read(self.columns)
