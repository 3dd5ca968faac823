"""Makes batches of files: decodes images and sounds, and gives them to a processor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_pelt.data._media_files import name_of, source_of


class MediaBatch(ABC):
    """Makes a batch of rows with a ``file`` and, except in prediction, a ``label``.

    It holds no data module, so that processes of a loader can receive it.
    """

    @abstractmethod
    def decode(self, source: Any) -> Any:
        """The content of a file, from its path or an open file.

        Raises:
            Exception: any, if the file is damaged.
        """

    @abstractmethod
    def inputs(self, contents: list[Any]) -> dict[str, Tensor]:
        """The inputs of the model for the contents of several files."""

    def targets(self, values: Sequence[Any]) -> Tensor:
        """The targets of a batch: (B,) int64 for classes."""
        return torch.tensor(values)

    def __call__(
        self, rows: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """Make a batch from columns (a slice of a data set) or from a list of rows.

        Raises:
            ValueError: a file cannot be decoded; the message names it.
        """
        if not isinstance(rows, Mapping):
            rows = {name: [row[name] for row in rows] for name in rows[0]}
        batch = self.inputs([self._decoded(file) for file in rows["file"]])
        return {**batch, "labels": self.targets(rows["label"])} if "label" in rows else batch

    def _decoded(self, file: dict[str, Any]) -> Any:
        try:
            return self.decode(source_of(file))
        except Exception as error:
            raise ValueError(f"{name_of(file)} cannot be decoded: {error}") from error
