"""Base of the data modules of images and sounds with a class."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from lightning_pelt.data._class_labels import class_names, label_kind, warn_of_one_label
from lightning_pelt.data._columns import Column
from lightning_pelt.data.media import MediaDataModule


class LabelledMedia(MediaDataModule):
    """Base of the data modules of files with a class.

    Args:
        backbone: hub id or folder whose processor is used.
        label: name of the column of the label; in a folder, files lie in the folder of their label.
        labels: names of the classes by index; by default the sorted labels of train.
        **places: see :class:`MediaDataModule` (file, train, dev, test, predict, dataset, ...).
    """

    def __init__(
        self,
        backbone: str,
        *,
        label: str = "label",
        labels: list[str] | None = None,
        **places: Any,
    ) -> None:
        super().__init__(backbone, **places)
        self.label = label
        self.given_labels = labels

    @cached_property
    def labels(self) -> list[str]:
        """Names of the classes by index.

        Raises:
            ValueError: neither ``labels`` nor ``train`` is given.
        """
        return class_names(self.given_labels, self.sources, self.label)

    def target(self, split: str) -> Column:
        """The column of the label."""
        return Column(self.label, label_kind(self.labels, self.sources.tables[split], self.label))

    def setup(self, stage: str) -> None:
        """Read the splits of ``stage``. Warn if all training rows have one label."""
        super().setup(stage)
        if stage == "fit":
            source = self.sources.tables["train"].source
            warn_of_one_label(self.rows("train"), self.labels, source, self.label)
