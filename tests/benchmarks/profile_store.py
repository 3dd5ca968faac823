"""Size and speed of a store of many profiles.

    python tests/benchmarks/profile_store.py --folder FOLDER

The profiles are hard, without norm and head, and their ids are in random order. A few thousand
different profiles are made in advance and stored repeatedly, so that the time of loading is that of
the store.
"""

from __future__ import annotations

import hashlib
import json
import platform
import random
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from lightning_pelt.profiles import Profile
from lightning_pelt.profiles.store import ProfileStore

DIFFERENT = 4096
BANK = hashlib.sha256(b"a bank that is not loaded").hexdigest()


def parser() -> ArgumentParser:
    options = ArgumentParser(
        prog="python tests/benchmarks/profile_store.py",
        description="Size and speed of a SQLite store of random profiles.",
    )
    options.add_argument("--folder", type=Path, required=True, help="folder of the store")
    options.add_argument("--rows", type=int, default=1_000_000, help="number of profiles")
    options.add_argument("--adapters", type=int, default=100, help="adapters of the bank, N")
    options.add_argument("--chosen", type=int, default=50, help="adapters that a row selects, k")
    options.add_argument("--blocks", type=int, default=12, help="blocks, L")
    options.add_argument("--reads", type=int, default=300_000, help="profiles read at random")
    options.add_argument("--group", type=int, default=64, help="profiles of one read")
    options.add_argument("--seed", type=int, default=0, help="seed of profiles and order")
    options.add_argument("--keep", action="store_true", help="do not delete the store")
    options.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    return options


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the figures, and return them."""
    given = parser().parse_args(args)
    path = given.folder / "profiles.db"
    if path.exists():
        raise FileExistsError(f"{path} exists already: choose another folder, or remove it")
    pool = random_profiles(given)
    ids = [f"reader-{index:07d}" for index in range(given.rows)]
    random.Random(given.seed).shuffle(ids)
    figures: dict[str, Any] = {"rows": given.rows, "bytes_of_masks": pool[0].bytes_by_part()}
    try:
        figures |= load(path, ids, pool)
        figures |= read(path, ids, pool, given)
    finally:
        if not given.keep:
            for leftover in given.folder.glob("profiles.db*"):
                leftover.unlink()
    print(*report(figures, given), sep="\n")
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def random_profiles(given: Namespace) -> list[Profile]:
    """``DIFFERENT`` profiles whose rows select k random adapters of N."""
    draw = np.random.default_rng(given.seed)
    row = np.arange(given.adapters) < given.chosen
    shape = (DIFFERENT, given.blocks, 2, given.adapters)
    masks = draw.permuted(np.broadcast_to(row, shape), axis=-1)
    return [Profile(masks=one, bank=BANK, scale=given.chosen**-0.5) for one in masks]


def load(path: Path, ids: Sequence[str], pool: Sequence[Profile]) -> dict[str, Any]:
    """Put all profiles, until the file contains them and the log beside it is empty."""
    start = time.perf_counter()
    with ProfileStore(path) as store:
        store.put_many(_cycle(ids, pool))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    seconds = time.perf_counter() - start
    return {"load_seconds": seconds, "file_bytes": path.stat().st_size}


def _cycle(ids: Sequence[str], pool: Sequence[Profile]) -> Iterator[tuple[str, Profile]]:
    for index, id in enumerate(tqdm(ids, desc="loading", unit=" profiles")):
        yield id, pool[index % len(pool)]


def read(
    path: Path, ids: Sequence[str], pool: Sequence[Profile], given: Namespace
) -> dict[str, Any]:
    """Read random groups of profiles from a store that was just opened, and check some."""
    draw = random.Random(given.seed + 1)
    groups = [
        [draw.randrange(len(ids)) for _ in range(given.group)]
        for _ in range(max(1, given.reads // given.group))
    ]
    spent = 0.0
    count = 0
    with ProfileStore(path) as store:
        for group in tqdm(groups, desc="reading", unit=" groups"):
            wanted = [ids[index] for index in group]
            start = time.perf_counter()
            found = store.get_many(wanted)
            spent += time.perf_counter() - start
            count += len(found)
            if found[wanted[0]] != pool[group[0] % len(pool)]:
                raise AssertionError(f"{wanted[0]} was read as another profile")
    return {"reads": count, "reads_per_second": count / spent, "group": given.group}


def report(figures: dict[str, Any], given: Namespace) -> list[str]:
    rows, size = figures["rows"], figures["file_bytes"]
    return [
        f"{rows:,} profiles, N={given.adapters}, k={given.chosen}, L={given.blocks}; "
        f"SQLite {sqlite3.sqlite_version}, {platform.machine()}",
        f"masks  {figures['bytes_of_masks']['masks']} B each",
        f"file   {size / 1e6:.1f} MB, {size / rows:.1f} B for each profile",
        f"load   {figures['load_seconds']:.1f} s, {rows / figures['load_seconds']:,.0f} /s",
        f"read   {figures['reads_per_second']:,.0f} /s at random in groups of {figures['group']}",
    ]


if __name__ == "__main__":
    main()
