"""Reads an offline W&B run back: what a test can know of what the dashboard would show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

# A LevelDB log: blocks of 32 KiB, in them pieces with a header of checksum, length and kind; a
# record is one whole piece, or a first, some middle and a last one. The file begins with 7 bytes
# of its own. https://github.com/google/leveldb/blob/main/doc/log_format.md
BLOCK, HEADER = 32768, 7
WHOLE, FIRST, LAST = 1, 2, 4


def records(path: Path) -> list[bytes]:
    """The serialised records of one ``.wandb`` file."""
    data, at, found, parts = path.read_bytes(), HEADER, [], b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # a header never spans two blocks
            at += BLOCK - at % BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece = data[at + HEADER : at + HEADER + length]
        parts = piece if kind in (WHOLE, FIRST) else parts + piece
        if kind in (WHOLE, LAST):
            found.append(parts)
        at += HEADER + length
    return found


def history(folder: Path) -> list[dict[str, Any]]:
    """Everything that the one offline run under ``folder`` logged, a dictionary per call."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row}
        for row in (each.history.item for each in _all(folder) if each.HasField("history"))
    ]


def config(folder: Path) -> dict[str, Any]:
    """The configuration of the one offline run under ``folder``, as it was at the end."""
    found: dict[str, Any] = {}
    for record in _all(folder):
        for update in (record.run.config.update, record.config.update):
            found |= {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in update}
    return found


def run(folder: Path) -> wandb_internal_pb2.RunRecord:
    """Group, job type, name and so on of the one offline run under ``folder``."""
    return next(record.run for record in _all(folder) if record.HasField("run"))


def summary(folder: Path) -> dict[str, Any]:
    """The summary of the one offline run under ``folder``, as it was at the end."""
    updates = [record.summary.update for record in _all(folder) if record.HasField("summary")]
    found = [item for update in updates for item in update]
    return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in found}


def exit_code(folder: Path) -> int:
    """The exit code of the one offline run under ``folder``."""
    return next(record.exit.exit_code for record in _all(folder) if record.HasField("exit"))


def defined(folder: Path) -> dict[str, wandb_internal_pb2.MetricRecord]:
    """What ``define_metric`` was called with in the one offline run under ``folder``."""
    found = [each.metric for each in _all(folder) if each.HasField("metric")]
    return {metric.name or metric.glob_name: metric for metric in found}


def _all(folder: Path) -> list[wandb_internal_pb2.Record]:
    (path,) = folder.glob("**/*.wandb")
    return [wandb_internal_pb2.Record.FromString(data) for data in records(path)]
