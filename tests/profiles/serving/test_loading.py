"""Damaged checkpoints and stores that do not exist."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lightning_pelt.methods.xpeft.masks import masks_of
from lightning_pelt.profiles.serving.loading import load_model, open_store


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(trained: tuple[Path, Path], tmp_path: Path) -> None:
    whole, path = trained[0].read_bytes(), tmp_path / "damaged.ckpt"
    refused = 0
    for seed in range(24):
        draw, data = random.Random(seed), bytearray(whole)
        if seed % 4 == 0:
            del data[draw.randrange(len(data)) :]
        for _ in range(3 if data else 0):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            assert masks_of(load_model(path)).bank.size == 20
        except ValueError as error:
            assert str(error).startswith(f"{path} is not a checkpoint that `lightning-pelt fit`")
            refused += 1
    assert refused >= 6  # the truncated ones


def test_files_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*nothing\.ckpt"):
        load_model(tmp_path / "nothing.ckpt")
    for url in (f"{tmp_path}/nothing.db", f"sqlite:///{tmp_path}/nothing.db"):
        with pytest.raises(FileNotFoundError, match=r"there is no store .*nothing\.db"):
            open_store(url)
    assert list(tmp_path.iterdir()) == []
