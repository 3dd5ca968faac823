"""FSDP1 through Lightning's FSDPStrategy, on two processes without a GPU."""

from __future__ import annotations

from pathlib import Path

import fsdp1_steps
import pytest
import torch
from lightning.pytorch.utilities.consolidate_checkpoint import _format_checkpoint
from scripts import run_script
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from twenty_steps import assert_same, fit, half, last

pytestmark = pytest.mark.slow

RUNS = ["afresh", "resumed", "from_one"]


@pytest.fixture(scope="module")
def full(tmp_path_factory, tiny, one) -> Path:
    folder = tmp_path_factory.mktemp("full")
    run_script(fsdp1_steps, str(folder), tiny, str(half(one)), "full", ranks=2)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, tiny, one) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    run_script(fsdp1_steps, str(folder), tiny, str(half(one)), "sharded", ranks=2)
    return folder


def in_one_file(shards: Path, path: Path) -> Path:
    """As ``python -m lightning.pytorch.utilities.consolidate_checkpoint`` does it."""
    dcp_to_torch_save(shards, path)
    state = torch.load(path, weights_only=True) | torch.load(shards / "meta.pt", weights_only=True)
    torch.save(_format_checkpoint(state), path)
    return path


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_take_the_same_steps(one, full, run):
    assert_same(last(one), last(full / run))


@pytest.mark.nightly
@pytest.mark.parametrize("run", RUNS)
def test_checkpoints_of_shards(tmp_path, one, sharded, run):
    shards = FileSystemReader(last(sharded / run)).read_metadata().state_dict_metadata
    names = {name.removeprefix("model.") for name in shards if name.startswith("model.")}
    assert names == set(torch.load(last(one), weights_only=True)["state_dict"])
    assert_same(last(one), in_one_file(last(sharded / run), tmp_path / "one.ckpt"))


@pytest.mark.nightly
def test_activation_checkpointing(tmp_path, tiny, one):
    run_script(fsdp1_steps, str(tmp_path), tiny, str(half(one)), "checkpointed", ranks=2)
    assert_same(last(one), last(tmp_path))


@pytest.mark.parametrize("kind", ["full", pytest.param("sharded", marks=pytest.mark.nightly)])
def test_from_two_to_one(request, tmp_path, tiny, one, kind):
    saved = half(request.getfixturevalue(kind) / "afresh")
    file = saved if kind == "full" else in_one_file(saved, tmp_path / "half.ckpt")
    fit(tmp_path / "run", tiny, resume=file)
    assert_same(last(one), last(tmp_path / "run"))
