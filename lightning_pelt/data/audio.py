"""Sounds with a label, in folders, tables or data sets."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from torch import Tensor

from lightning_pelt.data._media_batch import MediaBatch
from lightning_pelt.data._media_files import name_of, source_of
from lightning_pelt.data._sounds import SUFFIXES, duration, read_wave
from lightning_pelt.data.labelled_media import LabelledMedia
from lightning_pelt.utils.processors import load_feature_extractor


class LabelledAudio(LabelledMedia):
    """Sounds with a label.

    A batch has what the backbone's feature extractor makes of the waves, such as ``input_values``
    (B, samples) with an ``attention_mask``, and ``labels`` (B,). Channels are averaged, and waves
    are resampled to the rate of the backbone.

    Args:
        backbone: hub id or folder whose feature extractor is used.
        max_seconds: longer sounds are cut.
        **places: see :class:`LabelledMedia` and :class:`MediaDataModule`.

    Raises:
        ValueError: ``max_seconds`` is not positive.

    Example::

        data = LabelledAudio("facebook/wav2vec2-base", train="commands/train", test="commands/test")
        # commands/train/yes/1.wav, commands/train/no/2.wav, ...
    """

    suffixes: ClassVar[frozenset[str]] = SUFFIXES

    def __init__(self, backbone: str, *, max_seconds: float = 30.0, **places: Any) -> None:
        super().__init__(backbone, **places)
        self.max_seconds = positive(max_seconds)

    def collate(self) -> MediaBatch:
        """Decodes sounds and gives them to the feature extractor of the backbone."""
        return AudioBatch(self.extractor, max_seconds=self.max_seconds)

    def lengths(self, split: str) -> np.ndarray:
        """The duration of each sound in milliseconds, up to ``max_seconds``."""
        found = milliseconds(self.rows(split), desc=f"durations of {split}")
        return np.minimum(found, round(1000 * self.max_seconds))

    @cached_property
    def extractor(self) -> Any:
        """The feature extractor of the backbone."""
        return load_feature_extractor(self.backbone)


class AudioBatch(MediaBatch):
    """A batch of sounds.

    Args:
        extractor: a feature extractor of transformers.
        max_seconds: longer sounds are cut.
    """

    def __init__(self, extractor: Any, *, max_seconds: float) -> None:
        self.extractor = extractor
        self.seconds = max_seconds

    def decode(self, source: Any) -> np.ndarray:
        """A mono wave, (samples,), at the rate of the extractor."""
        return read_wave(source, self.extractor.sampling_rate, seconds=self.seconds)

    def inputs(self, contents: list[Any]) -> dict[str, Tensor]:
        """What the extractor makes of the waves."""
        waves = self.extractor.model_input_names[0] == "input_values"
        # Waves are padded to the longest; spectrograms have the length that the model expects.
        options = {"padding": True} if waves else {}
        rate = self.extractor.sampling_rate
        return dict(self.extractor(contents, sampling_rate=rate, return_tensors="pt", **options))


def milliseconds(rows: Dataset, *, desc: str) -> np.ndarray:
    """The duration of each file of rows, (rows,) int64.

    Args:
        rows: with a column ``file``.
        desc: text of the progress bar.

    Raises:
        ValueError: a file cannot be decoded; the message names it.
    """
    files = rows.select_columns("file")
    found = files.map(_duration, remove_columns="file", desc=desc)
    return np.asarray(found["milliseconds"][:], dtype=np.int64)


def positive(max_seconds: float) -> float:
    """Check a duration.

    Raises:
        ValueError: it is not positive.
    """
    if not max_seconds > 0:
        raise ValueError(f"max_seconds is {max_seconds}, expected a positive number")
    return max_seconds


def _duration(row: dict[str, Any]) -> dict[str, int]:
    try:
        return {"milliseconds": max(1, round(1000 * duration(source_of(row["file"]))))}
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{name_of(row['file'])} cannot be decoded: {error}") from error
