"""Columns of a data set with one number per token: read from Arrow, reordered, and written back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from datasets import Dataset

IDS, POSITIONS, MASK, LENGTH = "input_ids", "position_ids", "attention_mask", "length"


class TokenColumn:
    """A column of lists: the numbers of all examples in turn, and the size of each."""

    def __init__(self, values: np.ndarray, sizes: np.ndarray) -> None:
        self.values, self.sizes = values, sizes

    def chosen(self, order: np.ndarray, row_sizes: np.ndarray) -> pa.Array:
        """The examples in ``order``, in lists of ``row_sizes``."""
        starts = np.cumsum(self.sizes) - self.sizes
        sizes = self.sizes[order]
        shift = starts[order] - (np.cumsum(sizes) - sizes)
        return lists_of(self.values[np.arange(sizes.sum()) + np.repeat(shift, sizes)], row_sizes)


def token_columns(examples: Dataset, same: Sequence[str]) -> dict[str, TokenColumn]:
    """The columns of numbers per token.

    Raises:
        ValueError: see :func:`pack`.
    """
    if IDS not in examples.column_names:
        raise ValueError(
            f"packing needs the column {IDS}, and the rows have "
            f"{', '.join(examples.column_names) or 'no columns'}: tokenize them first"
        )
    table = examples.with_format("arrow")[:]
    missing = [name for name in same if name not in table.column_names]
    if missing:
        raise ValueError(
            f"same={[*same]} names {missing[0]!r}, and the rows have {table.column_names}"
        )
    names = [name for name in table.column_names if name not in (*same, LENGTH)]
    columns = {name: _column(name, table.column(name)) for name in names}
    sizes = columns[IDS].sizes
    for name, column in columns.items():
        if not np.array_equal(column.sizes, sizes):
            at = int(np.flatnonzero(column.sizes != sizes)[0])
            raise ValueError(
                f"example {at} has {sizes[at]} {IDS} and {column.sizes[at]} {name}: packing needs "
                "one for each token"
            )
    mask = columns.pop(MASK, None)
    if mask is not None and not mask.values.all():
        raise ValueError(
            f"{MASK} has zeros, so the examples are padded: tokenize with padding=False"
        )
    if POSITIONS in columns:
        raise ValueError(f"the examples have {POSITIONS}, which packing numbers: remove the column")
    return columns


def _column(name: str, values: pa.ChunkedArray) -> TokenColumn:
    if values.null_count:
        raise ValueError(
            f"packing needs {name} of every example, and {values.null_count} have none"
        )
    kind = values.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not (
        pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)
    ):
        raise ValueError(
            f"packing needs one number per token in every column, and {name} is {kind}: remove the "
            f"column, or pack with same=({name!r},) to put together only examples with the same one"
        )
    chunks = values.chunks or [pa.array([], kind)]
    sizes = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
    if any(chunk.flatten().null_count for chunk in chunks):
        raise ValueError(f"packing needs a number for every token, and some in {name} are missing")
    numbers = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    return TokenColumn(np.concatenate(numbers), np.concatenate(sizes).astype(np.int64))


def lists_of(values: np.ndarray, sizes: np.ndarray) -> pa.Array:
    """``values`` in lists of ``sizes``."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))
