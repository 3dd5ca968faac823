"""Rows that belong to profiles (people): each batch mixes them and says whose each row is."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal

import numpy as np
from datasets import ClassLabel, Dataset
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_pelt.data.base import TextDataModule
from lightning_pelt.data.reading import Class, Column, check_column
from lightning_pelt.data.text import TextClassification

PROFILE = "profile"  # the column of the raw rows, and the tensor of a batch
LEFT_OUT = -1  # in that column, until the row is dropped


class Profiled(TextDataModule):
    """Mixin: where the raw rows have a column ``profile``, batches have it as a tensor.

    It is the index of each row's profile in :attr:`profiles`: ``(batch,)`` int64.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        only: keep the rows of this profile, or of these. The indices stay those of all profiles.
        **common: see the class that this is mixed into.
    """

    def __init__(self, backbone: str, *, only: str | list[str] | None = None, **common: Any):
        super().__init__(backbone, **common)
        self.only = only

    @property
    @abstractmethod
    def profiles(self) -> list[str]:
        """The names of all profiles, by index."""

    def kept(self, splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
        """The rows of the profiles that ``only`` wants; those without the column stay.

        A dev or test split of which nothing is left is left out.

        Raises:
            ValueError: ``only`` names no profile, or there is nothing left to predict.
        """
        wanted, chosen = self._wanted(), {}
        for split, rows in splits.items():
            if PROFILE in rows.column_names:
                good = np.isin(rows[PROFILE][:], wanted)
                rows = rows if good.all() else rows.select(np.flatnonzero(good))
            if len(rows) or split == "train":
                chosen[split] = rows
            elif split == "predict":
                raise ValueError("none of the rows to predict is of a profile that is kept")
            else:
                rank_zero_info(f"No {split} split: none of its rows is of a profile that is kept.")
        return chosen

    def _wanted(self) -> list[int]:
        if self.only is None:
            return [*range(len(self.profiles))]
        names = [self.only] if isinstance(self.only, str | int) else self.only
        if not names:
            raise ValueError("only is empty: name one profile or more, or leave it out for all")
        index = {name: i for i, name in enumerate(self.profiles)}
        for name in names:
            if str(name) not in index:
                raise _unknown(str(name), self.profiles, "only takes profiles with training rows")
        return [index[str(name)] for name in names]

    def _encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        columns = super()._encode(rows, split)
        return {**columns, PROFILE: rows[PROFILE]} if PROFILE in rows else columns


class ProfileDataModule(Profiled, TextClassification):
    """A label for a text that belongs to a profile: :class:`TextClassification` by person.

    One more column says whose a row is: a string or an integer. The profiles are those of the rows
    that ``train`` names, sorted as strings. Rows to predict may do without the column.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        profile_column: name of the column of the profile.
        min_rows: profiles with fewer rows in ``train`` are left out of every split.
        unseen: what to do with a row of a profile that is not in ``train``.
        **table: ``only``, and see :class:`TextClassification` (text, label, train, dev, ...).
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
        """The names of all profiles, by index: those of ``train``, sorted.

        Raises:
            ValueError: without ``train``, or if no profile has ``min_rows`` rows there.
        """
        counts = self._counts
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
            rank_zero_info(f"min_rows {self.min_rows} leaves out the profiles {_few(small)}")
        return kept

    @cached_property
    def _counts(self) -> Counter[str]:
        """Training rows of each profile, the small ones too."""
        if "train" not in self.places:
            raise ValueError("the profiles are unknown: give train= to collect them")
        return self._names("train")

    def _names(self, split: str) -> Counter[str]:
        """Rows of each profile in a split; those without one are reported when they are read."""
        table = self.tables[split]
        check_column(table, self.profile_column)
        known = self._class_names(split)
        counts = Counter(_name(value, known) for value in table.rows[self.profile_column][:])
        return Counter({name: rows for name, rows in counts.items() if name})

    def _class_names(self, split: str) -> tuple[str, ...]:
        feature = self.tables[split].rows.features.get(self.profile_column)
        return tuple(feature.names) if isinstance(feature, ClassLabel) else ()

    def strings(self) -> list[str]:
        """Those of the texts, and the profile: "007" is not "7"."""
        return [*super().strings(), self.profile_column]

    def columns(self, split: str) -> Mapping[str, Column]:
        """Those of the texts, and ``profile``, which rows to predict may lack."""
        columns = super().columns(split)
        if split == "predict" and self.profile_column not in self.tables[split].rows.column_names:
            return columns
        out = [*(self._counts.keys() - set(self.profiles)), *self._strangers(split)]
        kind = ProfileIndex(
            tuple(self.profiles),
            out=tuple(sorted(out)),
            class_names=self._class_names(split),
            source=self.tables["train"].source,
        )
        return {**columns, PROFILE: Column(self.profile_column, kind)}

    def _strangers(self, split: str) -> list[str]:
        """The profiles of ``split`` that are dropped since ``train`` has no row of them."""
        if self.unseen == "error" or split == "train":
            return []
        names = self._names(split)
        strangers = sorted(names.keys() - self._counts.keys())
        if strangers:
            rank_zero_info(
                f"{self.tables[split].source}: dropped {sum(names[name] for name in strangers)} "
                f"rows of profiles without training rows: {_few(strangers)}"
            )
        return strangers

    def read(self) -> dict[str, Dataset]:
        """The rows of the profiles that are kept; ``profile`` is the index of each row's.

        Raises:
            ValueError: besides what is wrong with a row, if ``dev_share`` left a profile none.
        """
        splits = self.kept(super().read())
        if "train" in splits:
            trained = set(splits["train"].unique(PROFILE))
            if lost := [self.profiles[i] for i in self._wanted() if i not in trained]:
                raise ValueError(
                    f"the dev split took every training row of {_few(lost)}: give dev=, or lower "
                    f"dev_share ({self.dev_share}), or raise min_rows ({self.min_rows})"
                )
        return splits


@dataclass(frozen=True)
class ProfileIndex(Class):
    """The index of a profile by its name, found in one step among a hundred thousand.

    Args:
        labels: the names of the profiles.
        out: names that become ``LEFT_OUT``.
        class_names: what the numbers of a class column of the hub mean.
        source: of the training rows, in the words of an error.
    """

    out: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    source: str = ""

    @cached_property
    def _indices(self) -> dict[str, int]:
        known = {name: i for i, name in enumerate(self.labels)}
        return {**known, **dict.fromkeys(self.out, LEFT_OUT)}

    def __call__(self, value: Any) -> int:
        name = _name(value, self.class_names)
        if not name:
            raise ValueError("the profile is missing")
        if not isinstance(value, str | int):
            raise ValueError(f"the profile {value!r} is neither a string nor an integer")
        if name not in self._indices:
            remedy = f"{self.source} has no rows of it: add some, or drop these with unseen='drop'"
            raise _unknown(name, self.labels, remedy)
        return self._indices[name]


def _few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


def _name(value: Any, class_names: Sequence[str]) -> str:
    """What a value of the column says; empty if it says nothing."""
    if value is None or (class_names and value < 0):
        return ""
    name = class_names[value] if class_names else str(value)
    return name if name.strip() else ""


def _unknown(name: str, profiles: Iterable[str], remedy: str) -> ValueError:
    """As ``errors.unknown``, but there are too many profiles to list them."""
    nearest = get_close_matches(name, profiles, n=1, cutoff=0.5)
    hint = f" did you mean {nearest[0]!r}?" if nearest else ""
    return ValueError(f"unknown profile {name!r}:{hint} {remedy}")
