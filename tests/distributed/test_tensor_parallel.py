"""FSDP2 with tensor parallelism, on two times two processes without a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensor_parallel_by_hand
import tensor_parallel_steps
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from scripts import run_script
from small import bert
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore
from twenty_steps import PLANS, assert_same, backbone, fit, half, last
from zoo import build

from lightning_pelt import Contrastive, FullFineTuning, LoRA, Plan, UniPELT, attach, split_base
from lightning_pelt.callbacks import WritePredictions
from lightning_pelt.training.ranks import data_rank, data_ranks, tensor_rank
from lightning_pelt.training.strategy_checks import check_strategy
from lightning_pelt.training.tensor_parallel import is_split


@pytest.fixture(scope="module")
def split(tmp_path_factory, tiny, one) -> Path:
    folder = tmp_path_factory.mktemp("split")
    run_script(tensor_parallel_steps, str(folder), tiny, "--half", str(half(one)), ranks=4)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("run", ["afresh", "resumed", "from_shards"])
def test_four_processes_take_the_same_steps(one, split, run):
    """From the start, from one process's half, and from a half saved as shards."""
    assert_same(last(one), last(split / run))


@pytest.mark.slow
def test_from_four_to_one(tmp_path, tiny, one, split):
    fit(tmp_path, tiny, resume=half(split / "afresh"))
    assert_same(last(one), last(tmp_path))


@pytest.mark.slow
def test_a_checkpoint_holds_nothing_of_the_base(one, split):
    state = torch.load(last(split / "afresh"), weights_only=True)["state_dict"]
    assert all("pelt" in name or "classifier" in name for name in state)


@pytest.mark.nightly
@pytest.mark.parametrize("plan", [name for name in PLANS if name != "unipelt"])
def test_other_plans(tmp_path, plan):
    tiny = backbone(tmp_path, plan)
    fit(tmp_path / "one", tiny, plan=plan)
    run_script(tensor_parallel_steps, str(tmp_path / "two"), tiny, "--plan", plan, ranks=2)
    assert_same(last(tmp_path / "one"), last(tmp_path / "two"))


@pytest.mark.nightly
def test_compiled(tmp_path, tiny, one):
    arguments = [str(tmp_path), tiny, "--plan", "unipelt", "--compiled"]
    run_script(tensor_parallel_steps, *arguments, ranks=2)
    assert_same(last(one), last(tmp_path))


@pytest.mark.slow
def test_processes_with_the_same_batch_drop_the_same_values(tmp_path):
    """With dropout, two processes that split the weights take the steps of one.

    The second starts with another seed than the first.
    """
    dropping = bert(tmp_path)
    fit(tmp_path / "one", dropping, seed=7)
    arguments = [str(tmp_path / "two"), dropping, "--plan", "unipelt", "--seed", "7"]
    run_script(tensor_parallel_steps, *arguments, ranks=2)
    assert_same(last(tmp_path / "one"), last(tmp_path / "two"))


@pytest.mark.slow
def test_modules_that_split_themselves(tmp_path):
    """A Llama with ``split_base``; a BERT whose attention ``parallelize_module`` splits.

    A third has heads that differ, and is refused.
    """
    ways = ["split_base", "parallelize_module"]
    alone, together = str(tmp_path / "alone"), str(tmp_path / "together")
    run_script(tensor_parallel_by_hand, alone, *ways, "--alone")
    run_script(tensor_parallel_by_hand, together, *ways, "other heads", ranks=4)
    for way in ways:
        assert_same(tmp_path / "alone" / f"{way}.ckpt", tmp_path / "together" / f"{way}.ckpt")


# -- alone, in this process -------------------------------------------------------------------


@pytest.fixture
def mesh():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    distributed.destroy_process_group()


def test_frozen_layers_of_the_blocks_are_split(mesh):
    model = build("bert")
    attachment = attach(model, UniPELT(norms=True))
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    before = model(**inputs).logits
    split = split_base(attachment, mesh["tensor_parallel"])
    assert len(split) == 2 * 6
    assert all(is_split(model.get_submodule(path)) for path in split)
    weights = {name for name, p in model.named_parameters() if isinstance(p, DTensor)}
    assert weights == {f"{path}.weight" for path in split}
    torch.testing.assert_close(model(**inputs).logits, before)


@pytest.fixture
def half_of_two():
    """A mesh of two processes, of which this is the first; the second does not exist."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    distributed.destroy_process_group()


def test_each_process_holds_its_share(half_of_two):
    model = build("bert")
    attachment = attach(model, UniPELT())
    query = model.bert.encoder.layer[0].attention.self.query
    whole = query.weight.detach().clone()
    split_base(attachment, half_of_two)
    assert torch.equal(query.weight.to_local(), whole[: len(whole) // 2])
    assert query.weight.shape == whole.shape


def test_what_cannot_be_split_stays_whole(half_of_two):
    """A trained weight, and one whose number of rows is odd; then nothing is left to split."""
    model = build("bert")
    attachment = attach(model, UniPELT())
    layer = model.bert.encoder.layer[0]
    layer.intermediate.dense.weight.requires_grad_(True)
    odd, other = layer.attention.self.query, layer.attention.self.key
    odd.weight = torch.nn.Parameter(odd.weight[:-1].detach(), requires_grad=False)
    split_base(attachment, half_of_two)
    assert not is_split(layer.intermediate.dense)
    assert not is_split(odd)
    assert is_split(other)
    with pytest.raises(ValueError, match=r"no layer that 2 processes can split"):
        split_base(attachment, half_of_two)


def test_nothing_frozen_is_nothing_to_split(mesh):
    attachment = attach(build("bert"), FullFineTuning())
    with pytest.raises(ValueError, match=r"no layer .*tensor_parallel_size=1"):
        split_base(attachment, mesh["tensor_parallel"])


def test_attach_comes_before_the_split(mesh):
    model = build("bert")
    query = "encoder.layer.0.attention.self.query"
    parallelize_module(model.bert, mesh["tensor_parallel"], {query: ColwiseParallel()})
    with pytest.raises(ValueError, match=rf"{query}.weight and 1 others.*split_base\(attachment"):
        attach(model, UniPELT())


def test_layers_with_submodules_are_split_by_split_base_only(mesh):
    attachment = attach(build("bert"), Plan.uniform(LoRA()))
    path = "bert.encoder.layer.0.attention.self.query"
    trainer: Any = SimpleNamespace(strategy=SingleDeviceStrategy("cpu"))
    check_strategy(trainer, attachment)
    distribute_module(attachment.model.get_submodule(path), mesh["tensor_parallel"])
    with pytest.raises(ValueError, match=rf"has split {path}, which .*split_base\(attachment"):
        check_strategy(trainer, attachment)


# -- which processes have the same batches ----------------------------------------------------


def trainer_of(rank: int, *, data: int = 2, tensor: int = 2) -> Any:
    strategy = ModelParallelStrategy(data_parallel_size=data, tensor_parallel_size=tensor)
    strategy._device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: tensor)}  # type: ignore[assignment]
    return SimpleNamespace(strategy=strategy, global_rank=rank, world_size=data * tensor)


def test_ranks_of_data_and_of_weights():
    ranks = [(data_rank(t), tensor_rank(t)) for t in map(trainer_of, range(4))]
    assert ranks == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert data_ranks(trainer_of(0)) == 2
    single: Any = SimpleNamespace(strategy=SingleDeviceStrategy("cpu"), global_rank=0, world_size=1)
    assert (data_rank(single), data_ranks(single), tensor_rank(single)) == (0, 1, 0)


def test_losses_that_compare_rows_of_processes_are_refused():
    attachment = attach(build("bert"), UniPELT())
    with pytest.raises(ValueError, match=r"Contrastive compares .* 2 of them have the same rows"):
        check_strategy(trainer_of(0), attachment, Contrastive())
    check_strategy(trainer_of(0, data=4, tensor=1), attachment, Contrastive())


def test_predictions_are_written_once(tmp_path):
    for rank in range(4):
        trainer = trainer_of(rank)
        trainer.log_dir = str(tmp_path)
        WritePredictions().write_on_epoch_end(
            trainer, SimpleNamespace(), [[{"label": "yes"}]], [[rank // 2]]
        )
    assert {p.name for p in tmp_path.iterdir()} == {"predictions.0.jsonl", "predictions.1.jsonl"}
