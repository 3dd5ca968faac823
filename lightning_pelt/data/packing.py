"""Packing: several tokenized examples in one row, each of which attends to itself alone."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_pelt.data._token_columns import (
    IDS,
    LENGTH,
    MASK,
    POSITIONS,
    lists_of,
    token_columns,
)
from lightning_pelt.data.collator import IGNORED

LABELS = "labels"


def pack(examples: Dataset, length: int, *, same: Sequence[str] = ()) -> Dataset:
    """Put tokenized examples together into rows of at most ``length`` tokens.

    Best fit decreasing: the longest example first, each into the fullest row that has room. Equal
    examples give equal rows. The position of each example's first token is 0, by which decoders of
    transformers find the examples of a row: each attends to itself alone. For that, the batch has
    no ``attention_mask``, and the model is called with ``use_cache=False``. Not every model can;
    :func:`lightning_pelt.attach.check_packing` tells. The first label of an example is -100, since
    the token before it belongs to another one.

    Args:
        examples: ``input_ids`` and, optionally, ``labels`` and further lists of numbers of the same
            length. Without labels, all tokens but the first of each example are trained.
            ``attention_mask`` and ``length`` are left out.
        length: maximum number of tokens of a row.
        same: columns with one value per example. Only examples with equal values share a row, which
            has that value: with ``("profile",)``, the examples of one profile.

    Returns:
        ``input_ids``, ``labels``, ``position_ids``, the further columns, and ``length``, the number
        of tokens of each row. Rows are in the order of their longest example; the examples of a row
        are in their original order.

    Raises:
        ValueError: there are no ``input_ids``; an example is empty, longer than ``length``, or
            padded; or a column does not have one number per token.

    Example:
        >>> from datasets import Dataset
        >>> packed = pack(Dataset.from_dict({"input_ids": [[5, 6], [7, 8, 9], [4, 3]]}), 5)
        >>> packed["input_ids"][:]
        [[5, 6, 7, 8, 9], [4, 3]]
        >>> packed["position_ids"][:]
        [[0, 1, 0, 1, 2], [0, 1]]
        >>> packed["labels"][:]
        [[-100, 6, -100, 8, 9], [-100, 3]]
        >>> fill_rate(packed, 5)
        0.7
    """
    columns = token_columns(examples, same)
    sizes = columns[IDS].sizes
    _check_sizes(sizes, length)
    keys = [*zip(*(examples[name][:] for name in same), strict=True)] if same else None
    rows = best_fit(sizes, length, keys=keys)
    order = np.asarray([number for row in rows for number in row], dtype=np.int64)
    row_sizes = np.asarray([sizes[row].sum() for row in rows], dtype=np.int64)
    packed = {name: column.chosen(order, row_sizes) for name, column in columns.items()}
    starts = np.cumsum(sizes[order]) - sizes[order]  # of the examples, in the packed tokens
    positions = np.arange(row_sizes.sum()) - np.repeat(starts, sizes[order])
    packed[POSITIONS] = lists_of(positions.astype(np.int32), row_sizes)
    packed[LABELS] = _without_first(packed.get(LABELS, packed[IDS]), starts, row_sizes)
    firsts = [row[0] for row in rows]
    for name in same:
        packed[name] = examples.with_format("arrow")[:].column(name).take(pa.array(firsts))
    packed[LENGTH] = pa.array(row_sizes)
    return Dataset(pa.table(packed))


def best_fit(
    sizes: Sequence[int] | np.ndarray, length: int, *, keys: Sequence[Hashable] | None = None
) -> list[list[int]]:
    """Numbers of the examples of each row, by best fit decreasing.

    Args:
        sizes: number of tokens of each example, at most ``length``.
        length: maximum number of tokens of a row.
        keys: only examples with equal keys share a row.

    Example:
        >>> best_fit([2, 5, 3, 6], 8)
        [[0, 3], [1, 2]]
    """
    rows: list[list[int]] = []
    # Of each key: the rows by their free tokens, and those numbers in rising order.
    by_space: dict[Hashable, dict[int, list[int]]] = defaultdict(dict)
    spaces: dict[Hashable, list[int]] = defaultdict(list)
    for number in np.argsort(-np.asarray(sizes), kind="stable").tolist():
        size, key = int(sizes[number]), None if keys is None else keys[number]
        here, free = by_space[key], spaces[key]
        at = bisect_left(free, size)
        if at == len(free):
            row, space = len(rows), length
            rows.append([])
        else:
            space = free[at]
            row = here[space].pop()
            if not here[space]:
                del here[space], free[at]
        rows[row].append(number)
        left = space - size
        if left and left not in here:
            insort(free, left)
        if left:
            here.setdefault(left, []).append(row)
    return [sorted(row) for row in rows]


def fill_rate(packed: Dataset, length: int) -> float:
    """The share of tokens in rows of ``length``: 1 if no row has room left."""
    sizes = np.asarray(packed[LENGTH][:])
    return float(sizes.sum() / (len(sizes) * length)) if len(sizes) else 1.0


class CollatePacked:
    """Makes a batch of packed rows, with padding behind the shorter ones.

    Every token of the padding has the label -100 and the position 0, so that it is an example by
    itself: no other token attends to it, and it attends to no other. There is no
    ``attention_mask``, with which transformers would not look for the examples of a row.

    Args:
        tokenizer: its padding token is used, or else its end of text, or 0.
        length: number of tokens of all rows; None for that of the longest row of the batch.

    Raises:
        ValueError: on a row without positions, or one that is longer than ``length``.

    Example:
        >>> rows = pack(Dataset.from_dict({"input_ids": [[5, 6], [7, 8, 9], [4, 3]]}), 5)
        >>> batch = CollatePacked()([*rows])
        >>> batch["position_ids"]
        tensor([[0, 1, 0, 1, 2],
                [0, 1, 0, 0, 0]])
        >>> batch["labels"][1]
        tensor([-100,    3, -100, -100, -100])
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None = None, *, length: int | None = None
    ) -> None:
        tokens = (getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "eos"))
        self.fill = {IDS: next((t for t in tokens if t is not None), 0), LABELS: IGNORED}
        self.length = length

    def __call__(
        self, rows: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """Make a batch from columns (a slice of a data set) or from a list of rows."""
        if not isinstance(rows, Mapping):
            rows = {name: [row[name] for row in rows] for name in rows[0]}
        if POSITIONS not in rows:
            raise ValueError(
                f"a packed row needs {POSITIONS}, and there are only {', '.join(rows)}: make the "
                "rows with pack(examples, length)"
            )
        longest = max(len(ids) for ids in rows[IDS])
        length = longest if self.length is None else self.length
        if longest > length:
            raise ValueError(
                f"a packed row has {longest} tokens, and the batch has length={length}: pack with "
                f"length={length} or less"
            )
        return {
            name: self._tensor(name, values, length)
            for name, values in rows.items()
            if name not in (MASK, LENGTH)
        }

    def _tensor(self, name: str, values: Sequence[Any], length: int) -> Tensor:
        if not isinstance(values[0], Sequence | np.ndarray | Tensor) or isinstance(values[0], str):
            return torch.tensor(values)
        rows = [torch.as_tensor(value) for value in values]
        whole = not any(row.is_floating_point() for row in rows)
        dtype = torch.int64 if whole else torch.float32
        batch = torch.full((len(rows), length), self.fill.get(name, 0), dtype=dtype)
        for row, value in zip(batch, rows, strict=True):
            row[: len(value)] = value
        return batch


def _check_sizes(sizes: np.ndarray, length: int) -> None:
    if length < 1:
        raise ValueError(f"length is {length}: a packed row has at least 1 token")
    if (sizes == 0).any():
        at = int(np.flatnonzero(sizes == 0)[0])
        raise ValueError(f"example {at} has no tokens: remove empty examples before packing")
    if (sizes > length).any():
        at = int(np.flatnonzero(sizes > length)[0])
        raise ValueError(
            f"example {at} has {sizes[at]} tokens, and a packed row has length={length}: cut the "
            "examples first, or pack into longer rows"
        )


def _without_first(labels: pa.Array, starts: np.ndarray, row_sizes: np.ndarray) -> pa.Array:
    """``labels`` with -100 on the first token of each example."""
    values = labels.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    values[starts] = IGNORED
    return lists_of(values, row_sizes)
