"""Files of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from fuzz.target import Target

from lightning_pelt.data._saved_rows import read_saved
from lightning_pelt.data._table_io import Table, read_file

ROWS = [{"text": f'row {i} of, "five" é', "label": i % 2, "score": i / 2} for i in range(5)]


class _Rows(Target):
    suffix: str

    def write(self, folder: Path) -> None:
        self.write_rows(folder / f"rows{self.suffix}")

    def write_rows(self, path: Path) -> None:
        raise NotImplementedError

    def load(self, folder: Path) -> Any:
        datasets.config.HF_DATASETS_CACHE = folder.parent / "cache"
        return self.values(read_file(folder / f"rows{self.suffix}"))

    def values(self, table: Table) -> Any:
        return {name: repr(table.values(name)) for name in table.rows.column_names}

    def problem(self, folder: Path, result: Any) -> str | None:
        return None if result else "no columns were accepted"


class CSV(_Rows):
    name, suffix = "data .csv", ".csv"

    def write_rows(self, path: Path) -> None:
        Dataset.from_list(ROWS).to_csv(path)


class TSV(_Rows):
    name, suffix = "data .tsv", ".tsv"

    def write_rows(self, path: Path) -> None:
        lines = ["text\tlabel\tscore", *(f"row {i}\t{i % 2}\t{i / 2}" for i in range(5))]
        path.write_text("\n".join(lines) + "\n")


class JSON(_Rows):
    name, suffix = "data .json", ".json"

    def write_rows(self, path: Path) -> None:
        path.write_text(json.dumps(ROWS))


class JSONL(_Rows):
    name, suffix = "data .jsonl", ".jsonl"

    def write_rows(self, path: Path) -> None:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


class Parquet(_Rows):
    name, suffix = "data .parquet", ".parquet"

    def write_rows(self, path: Path) -> None:
        Dataset.from_list(ROWS).to_parquet(path)


class SavedRows(_Rows):
    name, suffix = "data saved", ""

    def write(self, folder: Path) -> None:
        Dataset.from_list(ROWS).save_to_disk(folder)

    def load(self, folder: Path) -> Any:
        return self.values(read_saved(str(folder)))
