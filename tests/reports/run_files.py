"""Folders of runs, as Lightning's ``CSVLogger`` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger

HOSTILE = '</script><img src=x onerror="alert(1)"><!--'


def log(
    folder: Path,
    rows: Sequence[tuple[int, Mapping[str, float]]],
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Log rows of ``(step, scalars)`` with Lightning's logger itself.

    Args:
        folder: of the run; it must be new.
        rows: in the order of logging.
        settings: hyperparameters.
    """
    logger = CSVLogger(folder.parent, name="", version=folder.name)
    if settings is not None:
        logger.log_hyperparams(dict(settings))
    for step, scalars in rows:
        logger.log_metrics(dict(scalars), step)
    logger.save()
    return folder


def gated(steps: Sequence[int], blocks: int = 2) -> list[tuple[int, dict[str, float]]]:
    """A run with losses, two gates in each block, and rates; the gates open with the steps."""
    rows: list[tuple[int, dict[str, float]]] = []
    for step in steps:
        gates = {f"gate/{b:02d}/lora.query": 0.5 + step / 1000 for b in range(blocks)}
        gates |= {f"gate/{b:02d}/prefix": 0.5 - step / 1000 for b in range(blocks)}
        means = {"gate/mean/lora": 0.5, "gate/spread/lora": 0.01}
        rates = {"lr-AdamW/lora": 1e-3, "lr-AdamW/prefix": 1e-3, "lr-AdamW/head": 3e-2}
        rows += [(step, {**gates, **means}), (step, rates)]
        rows.append((step, {"epoch": step // 50, "train/loss": 2 - step / 100}))
    return rows


COUNTED = {
    "backbone": "bert-base",
    "lr": 1e-3,
    "parameters/lora/trained": 300,
    "parameters/lora/deployed": 300,
    "parameters/lora/gates": 20,
    "parameters/lora/share": 0.5,
    "parameters/prefix/trained": 6000,
    "parameters/prefix/deployed": 60,
    "parameters/prefix/gates": 10,
    "parameters/prefix/share": 0.25,
    "parameters/total/trained": 6300,
    "parameters/total/deployed": 360,
    "parameters/total/share": 0.75,
    "parameters/head": 12,
    "parameters/backbone": 100_000,
    "parameters/trained": 6342,
    "parameters/bytes": 2048,
}
