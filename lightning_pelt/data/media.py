"""Base of the data modules of images and sounds: files that are decoded in batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset

from lightning_pelt.data._columns import Column
from lightning_pelt.data._media_batch import MediaBatch
from lightning_pelt.data._media_files import MediaFile, folder_of, read_folder
from lightning_pelt.data._table_io import Table
from lightning_pelt.data.base import RowsDataModule
from lightning_pelt.data.sources import Sources


class MediaDataModule(RowsDataModule):
    """Base of the data modules of images and sounds. A child says what a batch is made of.

    A place is a folder with a folder of files for each class; a table (CSV, TSV, JSONL, JSON or
    Parquet) with a column of paths, which may be relative to the table; a folder that
    ``save_to_disk`` wrote; or, with ``dataset``, a split of a data set, whose images and sounds
    lie in a column. The rows to predict may be a folder of files without classes. A missing file is
    an error when the rows are read, and a damaged one when its batch is made: both name it.

    Args:
        backbone: hub id or folder whose processor is used.
        file: name of the column of the file.
        train: a place; with ``dataset``, the name of a split.
        dev: likewise.
        test: likewise.
        predict: likewise, without targets. By default the rows of ``test`` are predicted.
        dataset: name of a data set on the hub, or a folder with several splits.
        config: configuration of the data set, if it has several.
        dev_share: without ``dev``, the share of the training rows to use as dev rows; 0 for no dev
            split.
        data_seed: seed of the choice of those rows.
        **common: see :class:`RowsDataModule`.
    """

    suffixes: ClassVar[frozenset[str]]
    labelled: ClassVar[bool] = True  # whether folders are classes

    def __init__(
        self,
        backbone: str,
        *,
        file: str = "file",
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
        self.file = file
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
            read_folder=self._folder,
        )

    def _folder(self, folder: Path, split: str) -> Table:
        labelled = self.labelled and split != "predict"
        return read_folder(folder, self.suffixes, labelled=labelled)

    @abstractmethod
    def target(self, split: str) -> Column:
        """The column of the target of a row, and how to convert it."""

    @abstractmethod
    def collate(self) -> MediaBatch:
        """Decodes the files of a batch. It runs in the processes of the loader."""

    def columns(self, split: str) -> Mapping[str, Column]:
        """``file``, and ``label`` unless the split is predict."""
        own = self.sources.dataset or self.sources.locations[split]
        columns = {"file": Column(self.file, MediaFile(folder_of(own)))}
        if split != "predict":
            columns["label"] = self.target(split)
        return columns

    def read(self) -> dict[str, Dataset]:
        """The rows of each split, with files that exist."""
        return self.sources.read(self.columns)

    def examples(self, split: str) -> Dataset:
        """The rows of ``split``; to predict, without targets."""
        rows = self.rows(split)
        return rows.select_columns("file") if split == "predict" else rows
