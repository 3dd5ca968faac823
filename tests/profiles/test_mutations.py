"""Random damage to stores and exports: our own error with the file's name, or an equal result."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from profiles.samples import BANK, random_profile
from safetensors.numpy import load_file, save_file

from lightning_pelt.profiles.profile import Profile
from lightning_pelt.profiles.store import (
    DamagedProfile,
    DamagedStore,
    ProfileStore,
    UnknownProfile,
)

KINDS: list[dict[str, Any]] = [{}, {"soft": True}, {"norm": True}, {"head": True}]
PROFILES = {f"ü{i}": random_profile(i, n=20, **KINDS[i % 4]) for i in range(8)}
TABLES = ("xpeft_profiles", "xpeft_profiles", "xpeft_history", "xpeft_store")
VALUES = (
    None, 0, -1, 7, 2**31, 2**63 - 1, 1.5, float("inf"), "", "abc", "ü" * 300, "0" * 64, 10**12,
    b"", b"\xff\xfe", b"x" * 5000,
)  # fmt: skip
JSON_VALUES = (
    None, 0, -1, 1.5, "", "x", "..", "../profiles.db", "/etc/passwd", "a\0b", "x" * 5000, [], {},
    [1], {"file": "a"}, True, "0" * 64, 10**400,
)  # fmt: skip
MANY = [pytest.param(40, id="some"), pytest.param(300, id="many", marks=pytest.mark.nightly)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, with an earlier version and a deleted profile, and its export."""
    folder = tmp_path_factory.mktemp("whole")
    with ProfileStore(folder / "whole.db") as store:
        store.put("ü1", random_profile(99, n=20))
        store.put_many(PROFILES.items())
        store.put("deleted", random_profile(98, n=20))
        store.delete("deleted")
        store.export(folder / "export", rows_per_shard=2)
    return folder


def check(name: str, act: Callable[[], Any], is_right: Callable[[Any], bool]) -> bool:
    """Whether ``act`` raises one of our errors with ``name``; it must otherwise be right."""
    try:
        result = act()
    except (ValueError, UnknownProfile) as error:
        assert type(error) in (ValueError, DamagedProfile, DamagedStore, UnknownProfile), error
        assert name in str(error)
        return True
    assert is_right(result)
    return False


def check_store(path: Path, folder: Path) -> bool:
    """Call every method of a damaged store. Whether any raised an error."""
    try:
        store = ProfileStore(path)
    except (DamagedStore, ValueError) as error:
        assert path.name in str(error)
        return True
    shutil.rmtree(folder / "new", ignore_errors=True)
    ids = list(PROFILES)
    known: Callable[[dict[str, Profile]], bool] = lambda found: all(  # noqa: E731
        PROFILES.get(id, profile) == profile for id, profile in found.items()
    )
    calls: list[tuple[Callable[[], Any], Callable[[Any], bool]]] = [
        (lambda: store.get("ü1"), lambda found: found == PROFILES["ü1"]),
        (lambda: store.get("ü1", version=1), lambda found: found == random_profile(99, n=20)),
        (lambda: store.get_many(ids), lambda found: found == PROFILES),
        (lambda: store.latest(ids), lambda found: {type(v) for v in found.values()} <= {int}),
        (lambda: store.versions("ü1"), lambda found: len(found) <= 2),
        (lambda: store.bank, lambda found: found is None or len(found) == 64),
        (lambda: list(store.ids()), lambda found: all(isinstance(id, str) for id in found)),
        (lambda: dict(store.iterate(batch=3)), known),
        (lambda: (len(store), "ü1" in store, store.verify()), bool),
        (lambda: store.export(folder / "new"), lambda found: found.is_dir()),
        (lambda: store.put("ü2", PROFILES["ü2"]), lambda found: found >= 1),
        (lambda: store.delete("ü3"), lambda found: found is None),
        (lambda: store.import_shards(folder / "export"), lambda found: found <= len(PROFILES)),
    ]
    with store:
        found = [check(path.name, *call) for call in calls]
    return any(found)


def change_value(path: Path, draw: random.Random) -> None:
    """Change a value, a row, a column or a table of a store."""
    database = sqlite3.connect(path)
    table = draw.choice(TABLES)
    columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    column = draw.choice(columns)
    (row,) = draw.choice(database.execute(f"SELECT rowid FROM {table}").fetchall())
    how = draw.choice(["value"] * 8 + ["row", "column", "name", "table"])
    try:
        if how == "value":
            values = (draw.choice(VALUES), row)
            database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", values)
        elif how == "row":
            database.execute(f"DELETE FROM {table} WHERE rowid = ?", (row,))
        elif how == "column":
            database.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        elif how == "name":
            database.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO other")
        else:
            database.execute(f"DROP TABLE {table}")
        database.commit()
    except sqlite3.Error:  # a primary key, or a value that must not be NULL
        pass
    database.close()


def change_bytes(path: Path, draw: random.Random) -> None:
    """Flip bits, overwrite bytes or truncate a file."""
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 3, 10])):
        at = draw.randrange(len(data) if draw.random() < 0.8 else 200)
        data[at] ^= 1 << draw.randrange(8)
    if draw.random() < 0.2:
        at = draw.randrange(len(data) - 50)
        data[at : at + 50] = draw.randbytes(50)
    if draw.random() < 0.1:
        del data[draw.randrange(len(data)) :]
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("count", MANY)
@pytest.mark.parametrize("change", [change_value, change_bytes])
def test_a_damaged_store_raises_its_own_errors_or_returns_what_was_written(
    whole: Path, tmp_path: Path, change: Callable[[Path, random.Random], None], count: int
) -> None:
    found = 0
    for seed in range(count):
        for old in tmp_path.glob("damaged.db*"):
            old.unlink()
        shutil.copy(whole / "whole.db", tmp_path / "damaged.db")
        change(tmp_path / "damaged.db", random.Random(seed))
        found += check_store(tmp_path / "damaged.db", whole)
    assert found > count / 5


def change_export(folder: Path, draw: random.Random) -> bool:
    """Damage an export. Whether a profile may be missing or another than before."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    entry = draw.choice(manifest["shards"])
    how = draw.choice(["field", "entry", "lost", "twice", "bytes", "shard", "tensor", "deep"])
    if how == "field":
        manifest[draw.choice(list(manifest))] = draw.choice(JSON_VALUES)
    elif how == "entry":
        entry[draw.choice(list(entry))] = draw.choice(JSON_VALUES)
    elif how == "lost":
        manifest["shards"].remove(entry)
    elif how == "twice":
        manifest["shards"].append(entry)
    elif how == "shard":
        change_bytes(folder / entry["file"], draw)
    elif how == "tensor":
        change_tensor(folder / entry["file"], draw)
        entry["sha256"] = hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()
    text = json.dumps(manifest).encode()
    if how == "deep":
        text = draw.choice([b"[" * 100_000, b'{"shards":' * 100_000])
    if how == "bytes":
        at = draw.randrange(len(text))
        text = text[:at] + bytes([text[at] ^ 1 << draw.randrange(8)]) + text[at + 1 :]
    path.write_bytes(text)
    return how == "tensor"


def change_tensor(path: Path, draw: random.Random) -> None:
    tensors = load_file(path)
    name = draw.choice(list(tensors))
    old = tensors.pop(name)
    how = draw.choice(["lost", "dtype", "shape", "short", "minus", "value"])
    if how == "dtype":
        tensors[name] = old.astype(draw.choice([np.float32, np.int32, np.int64, np.float16]))
    elif how == "shape":
        tensors[name] = old.reshape(-1) if draw.random() < 0.5 else old[None]
    elif how == "short":
        tensors[name] = old[:-1].copy()
    elif how == "minus":
        tensors[name] = -old
    elif how == "value":
        tensors[name] = old.copy()
        if old.size:
            tensors[name].reshape(-1)[draw.randrange(old.size)] = draw.choice([0, 1, 127, 255])
    save_file(tensors, path, metadata={"format": "1", "bank": BANK})


@pytest.mark.parametrize("count", MANY)
@pytest.mark.slow
def test_a_damaged_export_raises_its_own_errors_or_imports_what_was_written(
    whole: Path, tmp_path: Path, count: int
) -> None:
    found = 0
    for seed in range(count):
        shutil.rmtree(tmp_path / "export", ignore_errors=True)
        (tmp_path / "new.db").unlink(missing_ok=True)
        shutil.copytree(whole / "export", tmp_path / "export")
        changed = change_export(tmp_path / "export", random.Random(seed))
        with ProfileStore(tmp_path / "new.db") as store:
            found += check(
                str(tmp_path / "export"),
                lambda store=store: store.import_shards(tmp_path / "export"),
                lambda _, store=store, changed=changed: (
                    changed or dict(store.iterate()) == PROFILES
                ),
            )
    assert found > count / 2
