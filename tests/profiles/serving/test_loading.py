"""Damaged checkpoints and stores that do not exist."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from profiles.serving.cases import TEXTS

from lightning_pelt import ProfileServer
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


def test_the_base_is_loaded_in_another_dtype(
    trained: tuple[Path, Path], in_process: ProfileServer
) -> None:
    """The submodules, and what a store holds, stay in full precision; answers are about equal."""
    module = load_model(trained[0], dtype="bfloat16")
    with open_store(str(trained[1])) as store:
        server = ProfileServer(module, store)
        found = server.predict(TEXTS, ["bob"] * len(TEXTS))
    assert module.attachment is not None and module.model is not None
    owned = module.attachment.owned
    kinds = {name in owned: p.dtype for name, p in module.model.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    for one, other in zip(found, in_process.predict(TEXTS, ["bob"] * len(TEXTS)), strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=0.02)
        assert one != other
