"""Reads sounds: mono waves at the rate of a backbone, and their durations."""

from __future__ import annotations

from importlib import import_module
from math import gcd
from typing import Any

import numpy as np

# Containers that libsndfile decodes.
SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au"})


def read_wave(source: Any, rate: int) -> np.ndarray:
    """A sound as one channel, (samples,) fp32, resampled to ``rate`` samples per second.

    Channels are averaged. SciPy's polyphase filter resamples.

    Args:
        source: a path, or an open file.
        rate: in Hz.

    Raises:
        ImportError: soundfile or SciPy is not installed.
        ValueError: the sound has no samples, or one is NaN or infinite.
        RuntimeError: libsndfile cannot decode it.
    """
    wave, own = _optional("soundfile").read(source, dtype="float32", always_2d=True)
    mono = wave.mean(axis=1)
    if not len(mono):
        raise ValueError("it has no samples")
    if not np.isfinite(mono).all():
        raise ValueError("a sample is NaN or infinite")
    if own == rate:
        return mono
    common = gcd(own, rate)
    resample = _optional("scipy.signal").resample_poly
    return resample(mono, rate // common, own // common).astype(np.float32)


def duration(source: Any) -> float:
    """The duration of a sound in seconds, from the header of its file.

    Raises:
        ImportError: soundfile is not installed.
        RuntimeError: libsndfile cannot decode it.
    """
    return float(_optional("soundfile").info(source).duration)


def _optional(name: str) -> Any:
    try:
        return import_module(name)
    except (ImportError, OSError) as error:  # OSError: libsndfile is missing
        raise ImportError(
            f"reading sounds needs {name} ({error}): pip install 'lightning-pelt[audio]'"
        ) from error
