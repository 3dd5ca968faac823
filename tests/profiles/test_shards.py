"""Shards: from one store to another, and the errors of damaged or foreign ones."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from profiles.samples import BANK, OTHER_BANK, random_profile
from profiles.stores import MIXED, raw, some
from safetensors.numpy import load_file, save_file
from sqlalchemy import text

from lightning_pelt.profiles import _shards
from lightning_pelt.profiles.store import DamagedProfile, ProfileStore


@pytest.mark.slow
def test_shards_copy_everything_to_another_store(store: ProfileStore, tmp_path: Path) -> None:
    profiles = {kind: random_profile(i, **given) for i, (kind, given) in enumerate(MIXED.items())}
    profiles |= some(50)
    store.put_many(profiles.items())
    store.put("hard", random_profile(99))
    folder = store.export(tmp_path / "export", rows_per_shard=20)
    with ProfileStore(tmp_path / "copy.db") as copy:
        assert copy.import_shards(folder) == len(profiles)
        assert copy.bank == BANK
        assert dict(copy.iterate()) == {**profiles, "hard": random_profile(99)}
        assert copy.latest(["hard", "soft"]) == {"hard": 2, "soft": 1}
        assert copy.verify() == []
        assert copy.import_shards(folder) == 0  # the store has them already
        assert copy.versions("hard") == [2]
        assert copy.put("hard", random_profile(3)) == 3


def test_a_store_keeps_versions_that_are_newer_than_the_shards(
    store: ProfileStore, tmp_path: Path
) -> None:
    store.put_many([("a", random_profile(0)), ("a", random_profile(1)), ("b", random_profile(2))])
    folder = store.export(tmp_path / "export")
    store.put("b", random_profile(3))
    store.delete("a")
    with ProfileStore(tmp_path / "other.db") as other:
        other.put("a", random_profile(4))
        assert other.import_shards(folder) == 2
        assert other.get("a") == random_profile(1)
        assert other.get("a", version=1) == random_profile(4)
    assert store.import_shards(folder) == 1
    assert store.get("a") == random_profile(1)
    assert store.get("b") == random_profile(3)


def test_a_shard_has_the_documented_tensors(tmp_path: Path) -> None:
    given = {f"ü{i}": random_profile(i, n=20, norm=i == 1) for i in range(3)}
    with ProfileStore(tmp_path / "profiles.db") as store:
        store.put_many(given.items())
        folder = store.export(tmp_path / "export", rows_per_shard=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["bank"], [s["rows"] for s in manifest["shards"]]) == (BANK, [2, 1])
    first = folder / manifest["shards"][0]["file"]
    assert manifest["shards"][0]["sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()
    tensors = load_file(first)
    assert tensors["masks"].dtype == np.uint8 and tensors["masks"].shape == (2, 3, 2, 3)
    bits = np.unpackbits(tensors["masks"], axis=-1, count=20, bitorder="little")
    np.testing.assert_array_equal(bits, [given["ü0"].masks, given["ü1"].masks])
    assert tensors["ids"].tobytes().decode() == "ü0ü1"
    assert tensors["ids.ends"].tolist() == [3, 6]
    assert tensors["versions"].tolist() == [1, 1]
    assert tensors["norms"].tobytes() == given["ü1"].norm_bytes()


def _export(tmp_path: Path) -> Path:
    with ProfileStore(tmp_path / "source.db") as store:
        store.put_many(some(60).items())
        return store.export(tmp_path / "export", rows_per_shard=25)


def test_a_truncated_shard_raises_before_anything_is_written(
    store: ProfileStore, tmp_path: Path
) -> None:
    folder = _export(tmp_path)
    last = sorted(folder.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{last.name} is truncated or was changed"):
        store.import_shards(folder)
    assert (len(store), store.bank) == (0, None)
    last.unlink()
    with pytest.raises(ValueError, match=f"{last.name} is missing"):
        store.import_shards(folder)
    assert (len(store), store.bank) == (0, None)


def test_shards_of_another_bank_raise_with_both_digests(
    store: ProfileStore, tmp_path: Path
) -> None:
    store.put("a", random_profile(bank=OTHER_BANK))
    with pytest.raises(ValueError) as caught:
        store.import_shards(_export(tmp_path))
    assert BANK in str(caught.value) and OTHER_BANK in str(caught.value)
    assert list(store.ids()) == ["a"]


def _update_manifest(folder: Path, shard: Path) -> None:
    """Write the hash of a changed shard to the manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    [entry] = [entry for entry in manifest["shards"] if entry["file"] == shard.name]
    entry["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))


def test_foreign_shards_and_manifests_raise(store: ProfileStore, tmp_path: Path) -> None:
    folder = _export(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json in"):
        store.import_shards(tmp_path)
    shard = folder / "profiles-00000.safetensors"
    tensors = load_file(shard)
    save_file({"weight": np.zeros(3, np.float32)}, shard)
    _update_manifest(folder, shard)
    with pytest.raises(ValueError, match=r"profiles-00000\.safetensors is not a shard"):
        store.import_shards(folder)
    tensors["masks"][7, 0, 0, 0] ^= 1
    save_file(tensors, shard)
    _update_manifest(folder, shard)
    with pytest.raises(DamagedProfile, match="'u0007': block 0, side A selects"):
        store.import_shards(folder)
    assert len(store) == 0
    for foreign in ("[1, 2]", "{", '{"format": "1"}'):
        (folder / "manifest.json").write_text(foreign)
        with pytest.raises(ValueError, match="not a manifest"):
            store.import_shards(folder)
    (folder / "manifest.json").write_text('{"format": "9", "bank": "", "shards": []}')
    with pytest.raises(ValueError, match="has the format 9, and this version reads 1"):
        store.import_shards(folder)


def test_a_wrong_number_of_rows_is_found_before_the_first_shard_is_imported(
    store: ProfileStore, tmp_path: Path
) -> None:
    with ProfileStore(tmp_path / "other.db") as other:
        other.put_many(some(3).items())
        folder = other.export(tmp_path / "export", rows_per_shard=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][2]["rows"] = 7
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="has 1 profiles, and its manifest says 7: nothing was"):
        store.import_shards(folder)
    assert len(store) == 0


def test_an_export_does_not_replace_another(store: ProfileStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no profiles to export"):
        store.export(tmp_path / "export")
    store.put("a", random_profile())
    with pytest.raises(ValueError, match="rows_per_shard is 0"):
        store.export(tmp_path / "export", rows_per_shard=0)
    store.export(tmp_path / "export")
    with pytest.raises(FileExistsError, match="choose another folder"):
        store.export(tmp_path / "export")


def test_an_export_of_a_damaged_store_has_no_manifest(
    url: str, store: ProfileStore, tmp_path: Path
) -> None:
    store.put_many(some(5).items())
    with raw(url) as connection:
        connection.execute(text("UPDATE xpeft_profiles SET version = 9 WHERE id = 'u0003'"))
    with pytest.raises(DamagedProfile, match="u0003"):
        store.export(tmp_path / "export", rows_per_shard=2)
    assert not (tmp_path / "export" / "manifest.json").exists()
    store.delete("u0003")
    store.export(tmp_path / "export", rows_per_shard=2)
    shutil.rmtree(tmp_path / "export")


def test_a_shard_with_large_rows_is_closed_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shards, "SHARD_BYTES", 100)  # three rows of 16 + 18 bytes
    with ProfileStore(tmp_path / "profiles.db") as store:
        store.put_many(some(7).items())
        folder = store.export(tmp_path / "export")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [shard["rows"] for shard in manifest["shards"]] == [3, 3, 1]
