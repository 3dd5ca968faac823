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
    (path,) = folder.glob("**/*.wandb")
    rows = []
    for data in records(path):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows
