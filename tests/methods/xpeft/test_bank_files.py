"""Digests of trained banks, and complete banks in one file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from methods.xpeft.adapters import BERT, HUB, UP, hub_folder, hub_tensors, pelt_folder
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_pelt import RandomBank, TrainedBank, load_bank, save_bank

TRAINED_DIGEST = "572069180755dad771dc958ae3e6d5acbbf0b542099ea2e851db94fdd90bade5"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_digest_of_a_trained_bank_is_pinned_and_the_same_in_every_dtype(tmp_path, dtype):
    bank = TrainedBank([hub_folder(tmp_path, tensors=eighths())])
    assert bank.digest(**HUB) == TRAINED_DIGEST
    tensors = bank.load(**HUB, dtype=dtype)
    assert tensors.digest == TRAINED_DIGEST
    parts = (tensors.A, tensors.B, tensors.a_bias, tensors.b_bias)
    assert {part.dtype for part in parts if part is not None} == {dtype}


def eighths() -> dict[str, Tensor]:
    """Each tensor counts 0, 1/8, 2/8, ..., which bfloat16 holds exactly."""
    state = hub_tensors().items()
    return {key: torch.arange(t.numel()).view(t.shape).float() / 8 for key, t in state}


def test_the_digest_is_over_bfloat16_in_the_layout_of_a_bank():
    A, B = [0, 4, 1, 5, 2, 6, 3, 7], [0, 2, 4, 6, 1, 3, 5, 7]  # (2, 4) and (4, 2), transposed
    counts = [count for part in (A, B, range(2), range(4)) for _ in range(2) for count in part]
    halves = b"".join(struct.pack("<f", count / 8)[2:] for count in counts)
    header = b'["trained bank", "1", 4, [[2, 1, 8], [2, 1, 8], [2, 1, 2], [2, 1, 4]]]'
    assert hashlib.sha256(header + halves).hexdigest() == TRAINED_DIGEST


def test_a_digest_follows_the_files_of_the_folder(tmp_path):
    bank = TrainedBank([hub_folder(tmp_path)])
    before = bank.digest(**HUB)
    hub_folder(tmp_path, tensors={**hub_tensors(), UP: torch.ones(4, 2)})
    assert bank.digest(**HUB) != before


def test_a_saved_bank_loads_unchanged(tmp_path):
    folders = [pelt_folder(tmp_path / "0"), pelt_folder(tmp_path / "1", seed=1)]
    exact = TrainedBank(folders).load(**BERT)
    path = save_bank(exact, tmp_path / "new" / "bank.safetensors")
    assert path == tmp_path / "new" / "bank.safetensors"
    assert [p.name for p in path.parent.iterdir()] == ["bank.safetensors"]

    low, back = TrainedBank(folders).load(**BERT, dtype=torch.bfloat16), load_bank(path)
    file = TrainedBank([str(path)])
    whole = file.load(**BERT)
    assert file.size == 2
    for name in ("A", "B", "a_bias", "b_bias"):
        assert torch.equal(getattr(back, name), getattr(low, name))
        assert getattr(back, name).dtype == torch.bfloat16
        assert torch.equal(getattr(whole, name), getattr(low, name).float())
    assert (back.blocks, back.size, back.width, back.bottleneck) == (2, 2, 32, 4)
    assert exact.digest == low.digest == back.digest == whole.digest == file.digest(**BERT)

    again = save_bank(low, tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()


def test_every_flipped_byte_of_a_saved_bank_raises(tmp_path):
    bank = TrainedBank([hub_folder(tmp_path / "a")]).load(**HUB)
    path = save_bank(bank, tmp_path / "bank.safetensors")
    whole = path.read_bytes()
    assert len(whole) > 2 * sum(t.numel() for t in hub_tensors().values())
    for offset in range(len(whole)):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(ValueError, match=r"damaged|truncated|not a bank of save_bank"):
            load_bank(path)
    path.write_bytes(whole)
    assert load_bank(path).digest == bank.digest


def saved(folder: Path) -> Path:
    """A file with a bank of one adapter."""
    bank = TrainedBank([hub_folder(folder / "a")]).load(**HUB)
    return save_bank(bank, folder / "b.safetensors")


def test_a_flipped_weight_raises_as_damage(tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    message = r"b\.safetensors is damaged: .* expected [0-9a-f]{64}\. Copy the file again"
    with pytest.raises(ValueError, match=message):
        TrainedBank([str(path)]).load(**HUB)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"b\.safetensors is truncated"):
        load_bank(path)
    with pytest.raises(ValueError, match=r"b\.safetensors is truncated"):
        _ = TrainedBank([str(path)]).size


def test_a_loaded_bank_does_not_change_with_its_file(tmp_path):
    path = saved(tmp_path)
    bank = load_bank(path)
    before = bank.A.clone()
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert torch.equal(bank.A, before)


def test_a_file_that_is_not_a_bank_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no bank .*none\.safetensors: write one with"):
        load_bank(tmp_path / "none.safetensors")
    save_file({"A": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors .* not a bank of save_bank"):
        load_bank(tmp_path / "other.safetensors")


def test_a_bank_of_another_model_raises(tmp_path):
    path = saved(tmp_path)
    expected = (
        r"b\.safetensors is a bank of blocks=2, width=4, bottleneck=2, expected "
        "blocks=2, width=2, bottleneck=4"
    )
    with pytest.raises(ValueError, match=expected):
        TrainedBank([str(path)]).load(blocks=2, width=2, bottleneck=4)


def test_only_an_unchanged_trained_bank_can_be_saved(tmp_path):
    path = tmp_path / "bank.safetensors"
    with pytest.raises(ValueError, match="a random bank needs no file"):
        save_bank(RandomBank(size=2).load(**HUB), path)
    bank = TrainedBank([hub_folder(tmp_path / "a")]).load(**HUB)
    with pytest.raises(ValueError, match=f"digest [0-9a-f]{{64}}, expected {bank.digest}"):
        save_bank(dataclasses.replace(bank, A=bank.A * 2), path)
    with pytest.raises(ValueError, match=r"named 'bank\.bin', expected \*\.safetensors"):
        save_bank(bank, tmp_path / "bank.bin")
    assert not path.exists()


@pytest.mark.parametrize(
    ("width", "digest"), [("4", "x"), (True, "x"), (0, "x"), (4.0, "x"), (None, "x"), (4, 7)]
)
def test_a_header_of_other_types_raises(tmp_path, width, digest):
    path = saved(tmp_path)
    header = json.dumps({"format": "1", "width": width, "digest": digest})
    save_file(load_file(path), path, metadata={"lightning_pelt_bank": header})
    with pytest.raises(ValueError, match=r"b\.safetensors is damaged: its header has width="):
        load_bank(path)


def test_tensors_of_other_shapes_dtypes_or_values_raise(tmp_path):
    path = saved(tmp_path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    whole = load_file(path)
    half = torch.bfloat16
    for other in (
        {"A": torch.ones(2, dtype=half)},
        {"A": torch.ones(0, 1, 8, dtype=half)},
        {"b_bias": torch.ones(2, 1, 3, dtype=half)},
        {"B": whole["B"].float()},
        {"B": whole["B"].view(torch.int16)},
    ):
        save_file(whole | other, path, metadata=metadata)
        with pytest.raises(ValueError, match=r"b\.safetensors is damaged: it has A \("):
            load_bank(path)
    save_file(whole | {"B": whole["B"] * torch.nan}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"b\.safetensors contains NaN or infinity"):
        load_bank(path)
    save_file(whole | {"A": torch.ones(2, dtype=half)}, path, metadata=metadata)
    with pytest.raises(ValueError, match=r"b\.safetensors is damaged: A is \(2,\)"):
        _ = TrainedBank([str(path)]).size
