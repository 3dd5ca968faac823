"""Names of labels: that they are there, and what the model's configuration says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def require_labels(labels: Sequence[str] | None) -> Sequence[str]:
    """The names of labels.

    Raises:
        ValueError: there are none, or two are equal.
    """
    if not labels:
        raise ValueError(
            "classification needs the names of its labels in the order of their ids: "
            "pass labels=[...], or take them from the data"
        )
    if len(set(labels)) < len(labels):
        raise ValueError(f"label names must differ from one another, not {list(labels)}")
    return labels


def label_head(labels: Sequence[str]) -> dict[str, Any]:
    """The entries of the model's configuration for a head with these labels."""
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
    }


def check_same_labels(labels: Sequence[str] | None, of_data: Sequence[str] | None) -> None:
    """Check that the labels of the data are those of the module, if both are known.

    Raises:
        ValueError: they differ, or are in another order.
    """
    if labels is not None and of_data is not None and list(labels) != list(of_data):
        raise ValueError(
            f"the module has the labels {list(labels)}, and the data has {list(of_data)}: give "
            "both the same labels in the same order"
        )
