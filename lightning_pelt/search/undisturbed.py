"""A fit in the middle of a process leaves random states, flags and logs as they were."""

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
def undisturbed(threads: int | None) -> Iterator[None]:
    """Give back random states, flags, the environment and what is logged as they were.

    Args:
        threads: of torch on the CPU meanwhile; None leaves the number.
    """
    flags = _flags()
    environment = dict(os.environ)
    with isolate_rng(), _quiet():
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            # Filling every new tensor would cost time; nothing here reads one before it is written.
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
def _quiet() -> Iterator[None]:
    """Without the libraries' news, which thousands of fits would repeat; errors are heard."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    bars_of_data = datasets.are_progress_bars_disabled()
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
            if not bars_of_data:
                datasets.enable_progress_bars()
