"""The store of hidden states: what it keeps, shares, bounds and drops."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import receive, second_process
from safetensors.torch import save_file
from training.stored_states import digest, hold, opened, states

from lightning_pelt.training import state_store
from lightning_pelt.training.state_store import described

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def filled(folder: Path, count: int, **options: Any) -> None:
    with opened(folder, **options) as store:
        for number in range(count):
            store.put(digest(number), states(number, tokens=number + 1))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("trunk-*/rows-*.safetensors"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_states_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    with opened(tmp_path) as store:
        for number in range(5):
            store.put(digest(number), states(number, number + 1, dtype))
        assert torch.equal(store.get(digest(4)), states(4, 5, dtype))
    with opened(tmp_path) as store:
        assert len(store) == 5 and store.get(digest(9)) is None
        for number in range(5):
            assert torch.equal(store.get(digest(number)), states(number, number + 1, dtype))


def test_put_copies_what_it_keeps(tmp_path: Path) -> None:
    given = states(0)
    with opened(tmp_path) as store:
        store.put(digest(0), given)
        given.zero_()
        assert torch.equal(store.get(digest(0)), states(0))


def test_states_of_a_validation_serve_training(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        with torch.inference_mode():
            store.put(digest(0), states(0))
        kept = store.get(digest(0))
        weight = torch.ones(4, requires_grad=True)
        (kept * weight).sum().backward()
    assert weight.grad is not None


def test_files_are_written_when_there_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_store, "SEGMENT", 200)
    with opened(tmp_path) as store:
        for number in range(4):  # 80 bytes each
            store.put(digest(number), states(number))
        assert len(files(tmp_path)) == 1
        assert torch.equal(store.get(digest(0)), states(0))  # from the file
    assert len(files(tmp_path)) == 2


def test_keys_have_folders_of_their_own(tmp_path: Path) -> None:
    filled(tmp_path, 2, block=3)
    with opened(tmp_path, block=4) as store:
        assert store.get(digest(0)) is None
    with opened(tmp_path, block=3) as store:
        assert len(store) == 2


def test_states_of_other_weights_are_dropped(tmp_path: Path) -> None:
    filled(tmp_path, 2, weights="old")
    with opened(tmp_path, "new") as store:
        assert store.dropped > 0 and not files(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with opened(tmp_path, "newer"):
        assert (tmp_path / "mine" / "notes.txt").exists()


def test_states_in_use_are_not_dropped(tmp_path: Path) -> None:
    with opened(tmp_path, "old") as used:
        used.put(digest(0), states(0))
        used.flush()
        with opened(tmp_path, "new"):
            assert len(files(tmp_path)) == 1
    with opened(tmp_path, "new") as store:
        assert store.dropped > 0


@pytest.mark.slow
def test_another_process_fills_and_holds_a_store(tmp_path: Path) -> None:
    with opened(tmp_path, "theirs") as store, second_process(hold, tmp_path) as (_, connection):
        assert receive(connection) == "written"
        assert store.get(digest(7)) is None
        store.refresh()
        assert torch.equal(store.get(digest(7)), states(7))
        store.close()
        with opened(tmp_path, "mine") as mine:
            assert mine.dropped == 0 and len(files(tmp_path)) == 1  # the process holds it


def test_a_full_store_keeps_what_it_has(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=700) as store:
        for number in range(4):
            store.put(digest(number), states(number))  # 48 bytes each, and what finds them
        assert store.full and len(store) == 2
        assert store.get(digest(3)) is None and torch.equal(store.get(digest(1)), states(1))


def test_the_folder_is_bounded_over_runs_and_processes(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    size = sum(file.stat().st_size for file in files(tmp_path))
    with (
        opened(tmp_path, max_bytes=size + 100) as one,
        opened(tmp_path, max_bytes=size + 100) as two,
    ):
        for store in (one, two):
            store.put(digest(90), states(90))
            store.flush()
    assert sum(file.stat().st_size for file in files(tmp_path)) <= size + 100


def test_room_is_made_of_states_of_other_blocks(tmp_path: Path) -> None:
    filled(tmp_path, 3, block=1)
    (old,) = files(tmp_path)
    with opened(tmp_path, max_bytes=old.stat().st_size + 200, block=2) as store:
        store.put(digest(0), states(0))
    assert not old.exists() and len(files(tmp_path)) == 1


def test_a_damaged_file_is_deleted(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="cannot be read and is deleted"):
        store = opened(tmp_path)
    assert len(store) == 0 and not file.exists()
    store.close()


def test_a_damaged_row_is_not_returned(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    (file,) = files(tmp_path)
    found = bytearray(file.read_bytes())
    place = bytes(found).find(states(2, 3).numpy().tobytes())
    assert place > 0
    found[place] ^= 1
    file.write_bytes(found)
    with opened(tmp_path) as store:
        assert torch.equal(store.get(digest(1)), states(1, 2))
        assert store.get(digest(2)) is None
        store.put(digest(2), states(2, 3))
        assert torch.equal(store.get(digest(2)), states(2, 3))


def test_foreign_files_are_not_states(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    (file,) = files(tmp_path)
    other = file.with_name("rows-00.safetensors")
    save_file({"states": torch.ones(2, 2)}, other)
    with pytest.warns(UserWarning, match="deleted"), opened(tmp_path) as store:
        assert len(store) == 1


def test_a_full_disk_ends_the_filling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, write: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    store = opened(tmp_path)
    store.put(digest(0), states(0))
    monkeypatch.setattr(state_store, "write_aside", fail)
    with pytest.warns(UserWarning, match=r"not filled further.*No space left"):
        store.flush()
    assert store.full and not files(tmp_path)
    store.close()


def test_nothing_is_pickled(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    assert {file.suffix for file in tmp_path.rglob("*.*")} == {".json", ".safetensors"}


def test_description(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.put(digest(0), states(0))
        assert described(store) == f"1 example, 80 B of at most 1.0 MiB, {store.path}"
