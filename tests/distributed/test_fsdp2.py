"""FSDP2 through Lightning's ModelParallelStrategy, on two processes without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import twenty_steps
from callbacks.tiny import Tiny, trainer
from scripts import run_script
from torch import distributed
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from twenty_steps import assert_same, fit, half, last
from zoo import build

from lightning_pelt import XPEFT, PELTCallback, Plan, RandomBank, UniPELT, attach
from lightning_pelt.training.fsdp import shard


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, tiny, one) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    run_script(twenty_steps, str(folder), tiny, str(half(one)), ranks=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("run", ["afresh", "resumed", "from_shards"])
def test_two_processes_take_the_same_steps(one, sharded, run):
    """From the start, from one process's half, and from a half saved as shards."""
    assert_same(last(one), last(sharded / run))


@pytest.mark.nightly
def test_compiled(tmp_path, tiny, one):
    run_script(twenty_steps, str(tmp_path), tiny, str(half(one)), "--compiled", ranks=2)
    assert_same(last(one), last(tmp_path))


@pytest.mark.slow
def test_compacter_prompt_and_norms(one_compacter, sharded):
    assert_same(last(one_compacter), last(sharded / "compacter"))


@pytest.mark.slow
def test_from_two_to_one(tmp_path, tiny, one, sharded):
    fit(tmp_path, tiny, resume=half(sharded / "afresh"))
    assert_same(last(one), last(tmp_path))


@pytest.mark.slow
def test_bf16_mixed(tmp_path, tiny, sharded):
    fit(tmp_path, tiny, precision="bf16-mixed")
    assert_same(last(tmp_path), last(sharded / "mixed"), within=2e-2)


@pytest.mark.slow
def test_a_checkpoint_holds_nothing_of_the_base(sharded):
    state = torch.load(last(sharded / "afresh"), weights_only=True)["state_dict"]
    assert all("pelt" in name or "classifier" in name for name in state)
    shards = FileSystemReader(half(sharded / "sharded")).read_metadata().state_dict_metadata
    assert {n for n in shards if n.startswith("state_dict.")} == {f"state_dict.{n}" for n in state}


# -- alone, in this process -------------------------------------------------------------------


@pytest.fixture
def mesh():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    distributed.destroy_process_group()


def test_every_parameter_is_sharded_by_blocks(mesh):
    model = build("bert")
    attachment = attach(model, UniPELT())
    shard(attachment, mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    units = {n for n, m in model.named_modules() if type(m).__name__.startswith("FSDP")}
    assert units == {"", "bert.encoder.layer.0", "bert.encoder.layer.1"}


def test_blocks_that_are_one_module_are_one_unit(mesh):
    model = build("albert")
    shard(attach(model, UniPELT()), mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def test_profiles_need_to_know_the_processes(mesh):
    """A loop without Lightning calls ``attachment.train()`` after ``fully_shard``."""
    inputs = {"input_ids": torch.tensor([[5, 6]]), "profile": torch.tensor([1])}
    plan = Plan.uniform(XPEFT(RandomBank(size=4), profiles=3, k=2))
    early, late = attach(build("bert"), plan), attach(build("bert"), plan)
    early.train()
    shard(early, mesh)
    with pytest.raises(RuntimeError, match=r"attachment\.train\(\) after fully_shard"):
        early.model(**inputs)

    shard(late, mesh)
    late.train()
    late.model(**inputs).logits.sum().backward()
    late.train()  # an epoch later
    late.model(**inputs).logits.sum().backward()
    logits = late.parameters_of("xpeft")[:3]
    assert [parameter.grad is None for parameter in logits] == [True, False, True]


class ShardsItself(Tiny):
    """A stranger's module that shards its model in configure_model; Tiny's own attaches first."""

    first = True

    def configure_model(self) -> None:
        if self.first:
            super().configure_model()
        fully_shard(self.net, mesh=self.mesh["data_parallel"])


def configured(module: ShardsItself) -> None:
    """Configure a module as a trainer with PELTCallback does."""
    callback = PELTCallback(UniPELT())
    run = trainer(Path(), callback)
    run.strategy._lightning_module = module
    module.trainer = run
    callback.setup(run, module, "fit")
    module.configure_model()


def test_a_module_that_shards_itself_has_to_attach_first(mesh):
    good = ShardsItself()
    good.mesh = mesh
    configured(good)
    assert all(isinstance(p, DTensor) for p in good.attachment.parameters_of("lora"))

    bad = ShardsItself()
    bad.mesh, bad.first = mesh, False
    with pytest.raises(ValueError, match=r"is sharded already .*before fully_shard"):
        configured(bad)
