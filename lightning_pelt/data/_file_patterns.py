"""Rows of several files that a pattern names."""

from __future__ import annotations

from glob import glob
from pathlib import Path

from datasets import concatenate_datasets

from lightning_pelt.data._table_io import Table, read_file

MAGIC = frozenset("*?[")


def is_pattern(location: str | Path) -> bool:
    """Whether a place is a pattern of files: a file may have such characters in its name."""
    return bool(MAGIC & set(str(location))) and not Path(location).expanduser().exists()


def read_pattern(pattern: str) -> Table:
    """The rows of all files of a pattern, in the order of their names; ``**`` matches folders.

    Raises:
        FileNotFoundError: no file matches.
        ValueError: as :func:`read_file`, or the files have different columns.
    """
    # Not Path.glob, which takes no absolute patterns.
    paths = map(Path, glob(str(Path(pattern).expanduser()), recursive=True))  # noqa: PTH207
    files = sorted(path for path in paths if path.is_file())
    if not files:
        raise FileNotFoundError(f"no file matches {pattern}")
    tables = [read_file(path) for path in files]
    first = tables[0]
    for table in tables[1:]:
        if table.encoded != first.encoded or table.rows.features != first.rows.features:
            raise ValueError(
                f"{table.source} has {_described(table)}, and {first.source} has "
                f"{_described(first)}: the files of one pattern need the same columns"
            )
    rows = concatenate_datasets([table.rows for table in tables])
    ends = [len(table.rows) for table in tables]
    parts = tuple((table.source, length) for table, length in zip(tables, ends, strict=True))
    return Table(rows, pattern, first.encoded, parts)


def _described(table: Table) -> str:
    kinds = "JSON" if table.encoded else ""
    columns = [f"{name} ({feature.dtype})" for name, feature in table.rows.features.items()]
    return f"{kinds} columns {', '.join(columns)}".strip()
