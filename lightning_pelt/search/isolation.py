"""Run a fit without changing the process: random states, flags, environment and logging."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import torch
import transformers
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils import deterministic

LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning", "pytorch_lightning")


@contextmanager
def isolated(threads: int | None) -> Iterator[None]:
    """Restore random states, flags, the environment and log levels after the ``with`` block.

    All of them belong to the process, so only one thread at a time may use this.

    Args:
        threads: number of CPU threads of torch during the block; None leaves it unchanged.
    """
    flags = _flags()
    environment = dict(os.environ)
    with isolate_rng(), quiet():
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            # Filling every new tensor costs time, and no tensor is read before it is written.
            deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            yield
        finally:
            _set_flags(flags)
            os.environ.clear()
            os.environ.update(environment)


def _flags() -> dict[str, Any]:
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
    }


def _set_flags(flags: dict[str, Any]) -> None:
    torch.use_deterministic_algorithms(flags["deterministic"], warn_only=flags["warn_only"])
    deterministic.fill_uninitialized_memory = flags["fill"]  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags["cudnn"]
    torch.set_default_dtype(flags["dtype"])
    if torch.get_num_threads() != flags["threads"]:
        torch.set_num_threads(flags["threads"])


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and all log messages below ERROR, which every fit would repeat.

    Log levels belong to the process, so only one thread at a time may use this.
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    data_bars_disabled = datasets.are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            transformers.logging.set_verbosity_error()
            transformers.logging.disable_progress_bar()
            datasets.disable_progress_bars()
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            transformers.logging.set_verbosity(verbosity)
            if bars:
                transformers.logging.enable_progress_bar()
            if not data_bars_disabled:
                datasets.enable_progress_bars()
