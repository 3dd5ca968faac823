"""Checkpoints of a stranger's module: optimizer state, names of wrappers, late changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import loader, trainer
from lightning.pytorch import LightningModule
from small import LABELS, Sentences, bert
from torch import Tensor, nn
from transformers import BertModel
from zoo import WIDTH, build

from lightning_pelt import LoRA, PELTCallback, PELTModule, Plan
from lightning_pelt.testing import is_ours

PLAN = Plan.uniform(LoRA(r=2))
BATCHES = 3


class AllParameters(LightningModule):
    """The most usual code: the optimizer gets every parameter, frozen ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.net: Any = build("bert", task=False)
        torch.manual_seed(5)
        self.head = nn.Linear(WIDTH, 3)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        states = self.net(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        return nn.functional.cross_entropy(self.head(states[:, 0]), batch["labels"])

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self.loss(batch)

    def test_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.log("loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


class TutorialGroups(AllParameters):
    """Two groups, with and without weight decay, by the names of parameters."""

    def configure_optimizers(self) -> Any:
        named = [*self.named_parameters()]
        without = ("bias", "LayerNorm.weight")
        groups = [
            [p for n, p in named if not n.endswith(without)],
            [p for n, p in named if n.endswith(without)],
        ]
        decays = ({"weight_decay": 0.1}, {"weight_decay": 0.0})
        return torch.optim.AdamW(
            [{"params": group, **decay} for group, decay in zip(groups, decays, strict=True)], 0.01
        )


class Outsider(AllParameters):
    """Its criterion has weights and is no attribute that Lightning sees."""

    def __init__(self) -> None:
        super().__init__()
        self.criteria = [nn.Linear(3, 3)]

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self.loss(batch) + self.criteria[0](torch.ones(3)).square().sum()

    def configure_optimizers(self) -> Any:
        own = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW([*self.criteria[0].parameters(), *own], lr=0.01)


class LateNorms(AllParameters):
    """It unfreezes norms after the plan was attached, and adds them to its optimizer."""

    def configure_optimizers(self) -> Any:
        for name, parameter in self.net.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter.requires_grad_(True)
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)


class Compiled(AllParameters):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")
        self.head = torch.compile(self.head, backend="eager")  # type: ignore[assignment]


def fit(folder: Path, module: Any, epochs: int, checkpoint: Path | None = None) -> Any:
    run = trainer(folder, PELTCallback(PLAN), max_epochs=epochs)
    run.fit(module, loader(BATCHES), ckpt_path=checkpoint, weights_only=True)
    run.save_checkpoint(folder / f"{epochs}.ckpt")
    return run


def optimizer_state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)["optimizer_states"][0]["state"]


@pytest.mark.parametrize("kind", [AllParameters, TutorialGroups, Outsider, LateNorms])
@pytest.mark.slow
def test_resumed_equals_uninterrupted(tmp_path, kind):
    whole, resumed = kind(), kind()
    fit(tmp_path / "whole", whole, 2)
    fit(tmp_path / "half", kind(), 1)
    fit(tmp_path / "half", resumed, 2, tmp_path / "half" / "1.ckpt")
    names = whole.state_dict().keys()
    assert names == resumed.state_dict().keys()
    for name in names:
        assert torch.equal(whole.state_dict()[name], resumed.state_dict()[name]), name


@pytest.mark.parametrize("kind", [AllParameters, TutorialGroups])
@pytest.mark.slow
def test_only_trained_parameters_have_optimizer_state(tmp_path, kind):
    module = kind()
    fit(tmp_path, kind(), 1)
    run = fit(tmp_path, module, 2, tmp_path / "1.ckpt")
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert all(is_ours(name) or name.startswith("head.") for name in trained)
    for epochs in (1, 2):
        assert optimizer_state(tmp_path / f"{epochs}.ckpt").keys() == trained
    held = run.optimizers[0].state
    assert {name for name, p in module.named_parameters() if p in held} == trained


@pytest.mark.slow
def test_a_parameter_outside_the_module_keeps_its_state(tmp_path):
    fit(tmp_path, Outsider(), 1)
    state = optimizer_state(tmp_path / "1.ckpt")
    outside = [state[f"outside the module/{number}"] for number in range(2)]
    assert [tuple(entry["exp_avg"].shape) for entry in outside] == [(3, 3), (3,)]
    module = Outsider()
    run = fit(tmp_path, module, 2, tmp_path / "1.ckpt")
    steps = [run.optimizers[0].state[p]["step"] for p in module.criteria[0].parameters()]
    assert steps == [2 * BATCHES] * 2


def loss_of(module: AllParameters, folder: Path, checkpoint: Path | None) -> float:
    run = trainer(folder, PELTCallback(PLAN))
    options = {"ckpt_path": checkpoint, "verbose": False, "weights_only": True}
    (result,) = run.test(module, loader(2), **options)
    return result["loss"]


@pytest.mark.parametrize("kinds", [(Compiled, AllParameters), (AllParameters, Compiled)])
@pytest.mark.slow
def test_checkpoints_of_compiled_modules(tmp_path, kinds):
    with torch.compiler.set_stance("force_eager"):
        source, target = (kind() for kind in kinds)
        fit(tmp_path, source, 1)
        expected = loss_of(source, tmp_path, None)
        assert loss_of(target, tmp_path, None) != expected
        assert loss_of(target, tmp_path, tmp_path / "1.ckpt") == expected


@pytest.mark.slow
def test_norms_unfrozen_late_are_in_the_checkpoint(tmp_path):
    module, target = LateNorms(), LateNorms()
    fit(tmp_path, module, 1)
    with pytest.warns(UserWarning, match="Loading replaces 5 tensors"):
        loss = loss_of(target, tmp_path, tmp_path / "1.ckpt")
    assert loss == loss_of(module, tmp_path, None)


@pytest.mark.slow
def test_a_backbone_without_a_pooler(tmp_path):
    """transformers draws a pooler, which the module trains and its checkpoints hold."""
    backbone = bert(tmp_path / "backbone")
    BertModel.from_pretrained(backbone, add_pooling_layer=False).save_pretrained(backbone)
    module, data = PELTModule(backbone, PLAN, labels=LABELS), Sentences(backbone)
    run = trainer(tmp_path, limit_train_batches=2)
    run.fit(module, data)
    pooler = "model.bert.pooler.dense.weight"
    assert module.get_parameter(pooler).requires_grad
    run.save_checkpoint(tmp_path / "all.ckpt")
    again = PELTModule.load_from_checkpoint(tmp_path / "all.ckpt", seed=7)
    assert torch.equal(again.get_parameter(pooler), module.get_parameter(pooler))
