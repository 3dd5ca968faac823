"""After a fit in other processes, the module of the main process has the trained weights."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from callbacks.test_pelt import Lazy, UserModule, user_module
from callbacks.tiny import loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from small import LABELS, Sentences, bert

from lightning_pelt import Adapter, LoRA, PELTCallback, PELTModule, Plan, UniPELT, save_adapters
from lightning_pelt.attach import find_attachment

PLAN = Plan.uniform(LoRA(r=2))


def returned(run: Any, module: Any, state: dict[str, Any], folder: Path) -> None:
    """What Lightning does in the main process with the weights of process 0."""
    torch.save(state, folder / "weights.ckpt")
    run.strategy._lightning_module = module
    output = SimpleNamespace(
        best_model_path="",
        weights_path=folder / "weights.ckpt",
        trainer_state=run.state,
        extra={"callback_metrics_bytes": saved({})},
    )
    launcher = _MultiProcessingLauncher(run.strategy, "fork")
    launcher._recover_results_in_main_process(output, run)  # type: ignore[arg-type]


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def assert_same(left: Any, right: Any) -> None:
    assert left.state_dict().keys() == right.state_dict().keys()
    for name, tensor in left.state_dict().items():
        assert torch.equal(tensor, right.state_dict()[name]), name


@pytest.mark.parametrize("kind", [UserModule, Lazy])
def test_a_module_with_a_callback_gets_its_plan_and_weights(tmp_path, kind):
    worker, main = user_module(kind), user_module(kind)
    trainer(tmp_path, PELTCallback(PLAN)).fit(worker, loader(2))
    returned(trainer(tmp_path, PELTCallback(PLAN)), main, worker.state_dict(), tmp_path)
    assert_same(main, worker)
    assert main.net.get_parameter("embeddings.word_embeddings.weight").requires_grad is False


@pytest.mark.slow
def test_a_pelt_module_gets_its_weights(tmp_path):
    backbone = bert(tmp_path / "backbone")
    worker, main = (PELTModule(backbone, UniPELT(), labels=LABELS) for _ in range(2))
    trainer(tmp_path).fit(worker, Sentences(backbone))
    returned(trainer(tmp_path), main, worker.state_dict(), tmp_path)
    assert_same(main, worker)


def test_a_module_without_a_plan_is_as_in_lightning(tmp_path):
    worker, main = user_module(), user_module()
    trainer(tmp_path).fit(worker, loader(2))
    returned(trainer(tmp_path), main, worker.state_dict(), tmp_path)
    assert_same(main, worker)
    assert find_attachment(main) is None


def test_a_model_that_setup_makes_is_named(tmp_path):
    class Late(UserModule):
        def build(self) -> None:
            super().build()
            del self.net

        def setup(self, stage: str) -> None:
            self.net = user_module().net

    worker, main = user_module(Late), user_module(Late)
    trainer(tmp_path, PELTCallback(PLAN)).fit(worker, loader(1))
    with pytest.warns(UserWarning, match=r"trained Late.*does not get their weights.*ckpt_path"):
        returned(trainer(tmp_path, PELTCallback(PLAN)), main, worker.state_dict(), tmp_path)
    assert torch.equal(main.head.weight, worker.head.weight)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["ddp_fork", pytest.param("ddp_notebook", marks=pytest.mark.nightly), "ddp_spawn"]
)
def test_two_processes_of_a_users_module(tmp_path, strategy):
    module = user_module()
    kept = ModelCheckpoint(tmp_path, filename="last")
    options = {"strategy": strategy, "devices": 2, "enable_checkpointing": True}
    run = trainer(tmp_path, PELTCallback(PLAN), kept, **options)
    run.fit(module, loader(4))
    expected = UserModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert_same(module, expected)
    save_adapters(module, tmp_path / "adapters")
    with pytest.raises(ValueError, match="another plan"):
        trainer(tmp_path, PELTCallback(Plan.uniform(Adapter()))).test(module, loader(1))


@pytest.mark.slow
def test_two_processes_of_a_pelt_module(tmp_path):
    backbone = bert(tmp_path / "backbone")
    module = PELTModule(backbone, UniPELT(), labels=LABELS, lr=0.05)
    kept = ModelCheckpoint(tmp_path, filename="last")
    options = {"strategy": "ddp_fork", "devices": 2, "enable_checkpointing": True}
    trainer(tmp_path, kept, **options).fit(module, Sentences(backbone))
    assert_same(module, PELTModule.load_from_checkpoint(tmp_path / "last.ckpt"))
