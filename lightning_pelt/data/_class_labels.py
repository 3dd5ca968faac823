"""The names of the classes of a column, and how its values are converted."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import ClassLabel, Dataset
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_pelt.data._columns import Label
from lightning_pelt.data._table_io import Table, label_names
from lightning_pelt.data.sources import Sources


def class_names(given: Sequence[object] | None, sources: Sources, column: str) -> list[str]:
    """The names that are given, or the sorted labels of train.

    Raises:
        ValueError: there is neither.
    """
    if given:
        return [str(label) for label in given]
    if "train" not in sources.locations:
        raise ValueError("the labels are unknown: give labels=[...], or train= to collect them")
    return label_names(sources.tables["train"], column)


def label_kind(labels: Sequence[str], table: Table, column: str) -> Label:
    """Converts the names of labels; of a ``ClassLabel`` column, their indices too."""
    feature = table.rows.features.get(column)
    return Label(tuple(labels), indexed=isinstance(feature, ClassLabel))


def warn_of_one_label(rows: Dataset, labels: Sequence[str], source: str, column: str) -> None:
    """Warn if all training rows have one label.

    Args:
        rows: the converted rows of train, with a column ``label``.
        labels: names of the classes by index.
        source: of the rows.
        column: that the labels come from.
    """
    found = rows.unique("label")
    if len(found) == 1:
        rank_zero_warn(
            f"{source}, column {column!r}: all training rows have the label {labels[found[0]]!r}, "
            "so there is nothing to learn"
        )
