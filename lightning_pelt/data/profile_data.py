"""Rows that belong to profiles (people): batches mix profiles and hold the index of each."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from datasets import ClassLabel, Dataset
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_pelt.data._columns import Column
from lightning_pelt.data._profile_index import ProfileIndex, profile_name
from lightning_pelt.data._table_io import check_column
from lightning_pelt.data.text import TextClassification
from lightning_pelt.data.text_base import TextDataModule
from lightning_pelt.methods.xpeft import PROFILE
from lightning_pelt.utils.errors import unknown


class Profiled(TextDataModule):
    """Mixin for raw rows with a column ``profile``: batches hold it as a tensor.

    ``profile`` (B,) int64 is the index of each row's profile in :attr:`profiles`.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        only: keep the rows of this profile, or of these. Indices still count all profiles.
        **common: see the class that is mixed in.
    """

    def __init__(self, backbone: str, *, only: str | list[str] | None = None, **common: Any):
        super().__init__(backbone, **common)
        self.only = only

    @property
    @abstractmethod
    def profiles(self) -> list[str]:
        """Names of all profiles by index."""

    def select(self, splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
        """Select the rows of the profiles in ``only``. Splits without the column are not changed.

        A dev or test split without remaining rows is omitted.

        Raises:
            ValueError: ``only`` is empty or names an unknown profile, or no row to predict remains.
        """
        indices, chosen = self._selected_indices(), {}
        for split, rows in splits.items():
            if PROFILE in rows.column_names:
                selected = np.isin(rows[PROFILE][:], indices)
                kept = None if selected.all() else np.flatnonzero(selected)
                rows = self.keep(split, rows, kept)
            if len(rows) or split == "train":
                chosen[split] = rows
            elif split == "predict":
                raise ValueError(
                    "no row to predict belongs to a selected profile: change only, or the rows"
                )
            else:
                rank_zero_info(f"No {split} split: none of its rows belongs to a selected profile.")
        return chosen

    def _selected_indices(self) -> list[int]:
        if self.only is None:
            return [*range(len(self.profiles))]
        names = [self.only] if isinstance(self.only, str | int) else self.only
        if not names:
            raise ValueError("only is empty: name one profile or more, or omit it to keep all")
        index = {name: i for i, name in enumerate(self.profiles)}
        for name in names:
            if str(name) not in index:
                remedy = "only takes profiles with training rows"
                raise unknown("profile", str(name), self.profiles, remedy=remedy)
        return [index[str(name)] for name in names]

    def _encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        columns = super()._encode(rows, split)
        return {**columns, PROFILE: rows[PROFILE]} if PROFILE in rows else columns


class ProfileDataModule(Profiled, TextClassification):
    """:class:`TextClassification` with a profile for each row.

    A column of strings or integers holds the profile of each row. The profiles are those of the
    training rows, sorted as strings. Rows to predict may lack the column.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        profile_column: name of the column of the profile.
        min_rows: drop profiles with fewer rows in ``train`` from every split.
        unseen: for a row whose profile is not in ``train``, raise an error or drop the row.
        **table: ``only``, and see :class:`TextClassification` (text, label, train, dev, ...).

    Raises:
        ValueError: ``min_rows`` is below 1, or ``unseen`` is unknown.

    Example::

        data = ProfileDataModule(
            "sentence-transformers/all-MiniLM-L6-v2",
            train="ratings.csv",
            label="stars",
            profile_column="user",
            min_rows=20,
        )
    """

    def __init__(
        self,
        backbone: str,
        *,
        profile_column: str = "profile",
        min_rows: int = 1,
        unseen: Literal["error", "drop"] = "error",
        **table: Any,
    ) -> None:
        super().__init__(backbone, **table)
        if min_rows < 1:
            raise ValueError(f"min_rows is {min_rows}, expected at least 1")
        if unseen not in ("error", "drop"):
            raise ValueError(f"unseen is {unseen!r}, expected 'error' or 'drop'")
        self.profile_column = profile_column
        self.min_rows = min_rows
        self.unseen = unseen

    @cached_property
    def profiles(self) -> list[str]:
        """Names of all profiles by index: the sorted profiles of ``train``.

        Raises:
            ValueError: ``train`` is not given, or no profile has ``min_rows`` training rows.
        """
        counts = self._training_rows
        source = self.tables["train"].source
        if not counts:
            raise ValueError(f"{source}: the column {self.profile_column!r} is empty in every row")
        kept = sorted(name for name, rows in counts.items() if rows >= self.min_rows)
        if not kept:
            raise ValueError(
                f"{source}: no profile has {self.min_rows} rows, the largest has "
                f"{max(counts.values())}: lower min_rows"
            )
        if small := sorted(counts.keys() - set(kept)):
            rank_zero_info(f"min_rows {self.min_rows} drops the profiles {_first_names(small)}")
        return kept

    @cached_property
    def _training_rows(self) -> Counter[str]:
        """Number of training rows of each profile, before ``min_rows``."""
        if "train" not in self.sources.locations:
            raise ValueError("the profiles are unknown: give train= to collect them")
        return self._rows_by_profile("train")

    def _rows_by_profile(self, split: str) -> Counter[str]:
        """Number of rows of each profile in a split, without rows that lack a profile."""
        table = self.tables[split]
        check_column(table, self.profile_column)
        class_names = self._class_names(split)
        values = table.values(self.profile_column)
        counts = Counter(profile_name(value, class_names) for value in values)
        return Counter({name: rows for name, rows in counts.items() if name})

    def _class_names(self, split: str) -> tuple[str, ...]:
        feature = self.tables[split].rows.features.get(self.profile_column)
        return tuple(feature.names) if isinstance(feature, ClassLabel) else ()

    def columns(self, split: str) -> Mapping[str, Column]:
        """The columns of the texts, and ``profile``, which rows to predict may lack."""
        columns = super().columns(split)
        if split == "predict" and self.profile_column not in self.tables[split].rows.column_names:
            return columns
        small = self._training_rows.keys() - set(self.profiles)
        kind = ProfileIndex(
            tuple(self.profiles),
            dropped=tuple(sorted([*small, *self._dropped_unseen(split)])),
            class_names=self._class_names(split),
            source=self.tables["train"].source,
        )
        return {**columns, PROFILE: Column(self.profile_column, kind)}

    def _dropped_unseen(self, split: str) -> list[str]:
        """The profiles of ``split`` that are not in ``train``, if ``unseen`` drops them."""
        if self.unseen == "error" or split == "train":
            return []
        names = self._rows_by_profile(split)
        unseen = sorted(names.keys() - self._training_rows.keys())
        if unseen:
            rank_zero_info(
                f"{self.tables[split].source}: dropped {sum(names[name] for name in unseen)} "
                f"rows of profiles without training rows: {_first_names(unseen)}"
            )
        return unseen

    def read(self) -> dict[str, Dataset]:
        """The rows of the selected profiles; ``profile`` is the index of each row's profile.

        Raises:
            ValueError: a row is invalid, or ``dev_share`` leaves a profile without training rows.
        """
        splits = self.select(super().read())
        if "train" in splits:
            trained = set(splits["train"].unique(PROFILE))
            indices = self._selected_indices()
            if lost := [self.profiles[i] for i in indices if i not in trained]:
                raise ValueError(
                    f"the dev split took every training row of {_first_names(lost)}: give dev=, "
                    f"or lower dev_share ({self.sources.dev_share}), or raise min_rows "
                    f"({self.min_rows})"
                )
        return splits


def _first_names(names: Sequence[str]) -> str:
    """The first five names, and the number of the others."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more
