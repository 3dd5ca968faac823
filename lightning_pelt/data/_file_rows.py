"""The readers of files, by suffix. Errors name the file and the row."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lightning_pelt.data._json_rows import json_rows
from lightning_pelt.data._separated_rows import separated
from lightning_pelt.data._text_rows import check_names


def parquet(path: Path, header: Sequence[str]) -> pa.Table:
    """The rows of a Parquet file, with its types; categories become their values.

    Raises:
        ValueError: the file is damaged, or two columns have the same name.
    """
    try:
        table = pq.ParquetFile(path).read()
        table.validate(full=True)  # for example, that texts are UTF-8
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path}: truncated or not a parquet file ({error})") from error
    try:
        check_names(table.column_names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            values = table.column(i).cast(field.type.value_type)
            table = table.set_column(i, field.name, values)
    return table


# Tab-separated files have no quoting: every line is a row, also with an unbalanced quotation mark.
READERS: dict[str, Callable[[Path, Sequence[str]], pa.Table]] = {
    ".csv": partial(separated, delimiter=","),
    ".tsv": partial(separated, delimiter="\t", quoting=csv.QUOTE_NONE),
    ".jsonl": json_rows,
    ".json": json_rows,
    ".parquet": parquet,
}
