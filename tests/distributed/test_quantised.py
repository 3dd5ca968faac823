"""An int8 base on two processes: DDP takes the steps of one process, and FSDP2 is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import Tiny, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from quantised import needs
from small import LABELS, Sentences
from torch import Tensor
from twenty_steps import Agree

from lightning_pelt import PELTCallback, PELTModule, UniPELT, quantise
from lightning_pelt.training.fsdp import shard

pytestmark = pytest.mark.slow


def fit(folder: Path, backbone: str, **options: Any) -> dict[str, Tensor]:
    """The state after six steps with global batches of 4 rows."""
    needs("int8")
    module = PELTModule(backbone, UniPELT(), labels=LABELS, lr=2e-3, quantise="int8")
    saving = ModelCheckpoint(dirpath=folder, filename="last", every_n_train_steps=6)
    every = {"max_steps": 6, "max_epochs": -1, "enable_checkpointing": True, "devices": 1}
    run = trainer(folder, Agree(), saving, **{**every, **options})
    run.fit(module, datamodule=Sentences(backbone, batch_size=4 // run.world_size))
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    "strategy", ["ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.nightly)]
)
def test_two_processes_take_the_same_steps(strategy, tmp_path, tiny):
    one = fit(tmp_path / "one", tiny)
    two = fit(tmp_path / "two", tiny, strategy=strategy, devices=2)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_module_of_someone_else(tmp_path):
    """DDP leaves the quantised weights of any attached module alone."""
    needs("int8")
    module = Tiny()
    quantise(module.net, "int8")
    module.configure_model = lambda: None  # type: ignore[method-assign]
    options = {"strategy": "ddp_fork", "devices": 2, "max_steps": 2}
    trainer(tmp_path, PELTCallback(UniPELT()), Agree(), **options).fit(module, loader(4))


def test_a_quantised_base_is_not_sharded(tiny):
    needs("int8")
    module = PELTModule(tiny, UniPELT(), labels=LABELS, quantise="int8")
    module.configure_model()
    assert module.attachment is not None
    mesh: Any = None  # a fit would leave its process group to the tests that fork
    with pytest.raises(ValueError, match=r"quantised \(int8 \(torchao\)\).*use strategy=ddp"):
        shard(module.attachment, mesh)
