"""Reads sounds: mono waves at the rate of a backbone, and their durations."""

from __future__ import annotations

from fractions import Fraction
from importlib import import_module
from math import ceil
from typing import Any

import numpy as np

# Containers that libsndfile decodes.
SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au"})

RATES = (100, 10_000_000)  # in Hz: from seismographs to the echoes of bats
LARGEST_TERM = 10_000  # of a ratio of rates
TAPS = 20  # of SciPy's filter, in samples of the lower rate


def read_wave(source: Any, rate: int, *, seconds: float | None = None) -> np.ndarray:
    """A sound as one channel, (samples,) fp32, resampled to ``rate`` samples per second.

    Channels are averaged. SciPy's polyphase filter resamples.

    Args:
        source: a path, or an open file.
        rate: in Hz.
        seconds: read no more than that; by default the whole sound.

    Raises:
        ImportError: soundfile or SciPy is not installed.
        ValueError: the sound has no samples, one is NaN or infinite, or its rate is none of sounds.
        RuntimeError: libsndfile cannot decode it.
    """
    with _optional("soundfile").SoundFile(source) as file:
        own, frames = _checked_rate(file.samplerate), -1
        if seconds is not None:
            beyond = TAPS * max(1.0, own / rate)  # what the filter reads of the samples that follow
            frames = ceil(seconds * own + beyond)
        mono = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
    if not len(mono):
        raise ValueError("it has no samples")
    if not np.isfinite(mono).all():
        raise ValueError("a sample is NaN or infinite")
    if own != rate:
        # The filter is as long as the larger term. A ratio of large terms, such as of 16,000 and
        # 44,101, is replaced by the nearest one of smaller terms: a millionth or less away.
        ratio = Fraction(rate, own).limit_denominator(LARGEST_TERM)
        resample = _optional("scipy.signal").resample_poly
        mono = resample(mono, ratio.numerator, ratio.denominator).astype(np.float32)
    return mono if seconds is None else mono[: round(seconds * rate)]


def duration(source: Any) -> float:
    """The duration of a sound in seconds, from the header of its file.

    Raises:
        ImportError: soundfile is not installed.
        ValueError: its rate is none of sounds.
        RuntimeError: libsndfile cannot decode it.
    """
    info = _optional("soundfile").info(source)
    return float(info.frames / _checked_rate(info.samplerate))


def _checked_rate(rate: int) -> int:
    low, high = RATES
    if not low <= rate <= high:
        raise ValueError(f"its rate is {rate} Hz, expected {low} to {high:,}")
    return rate


def _optional(name: str) -> Any:
    try:
        return import_module(name)
    except (ImportError, OSError) as error:  # OSError: libsndfile is missing
        raise ImportError(
            f"reading sounds needs {name} ({error}): pip install 'lightning-pelt[audio]'"
        ) from error
