"""Several adapters in Lightning: the active one trains, and checkpoints hold it alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from callbacks.tiny import loader, trainer
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from zoo import build, inputs, output

from lightning_pelt import Adapter, LoRA, PELTCallback, Plan
from lightning_pelt.attach.several import Adapters

ANN, BOB = Plan.uniform(LoRA(r=2)), Plan.uniform(Adapter(bottleneck=4))


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = build("bert")

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        logits = self.net(batch["input_ids"], batch["attention_mask"]).logits
        return nn.functional.cross_entropy(logits, batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)


@torch.no_grad()
def run(adapters: Adapters, name: str | None) -> Tensor:
    with adapters.using(name):
        return output(adapters.model.eval(), inputs("bert"))


@pytest.mark.slow
def test_one_after_another(tmp_path: Path):
    module = Module()
    adapters = Adapters(module)
    adapters.add("ann", ANN)
    adapters.add("bob", BOB)
    base, bob = run(adapters, None), run(adapters, "bob")
    adapters.activate("ann")
    with pytest.warns(UserWarning, match="active adapter 'ann' alone, and not bob"):
        fit = trainer(tmp_path, PELTCallback(ANN), max_epochs=1)
        fit.fit(module, loader())
        fit.save_checkpoint(tmp_path / "ann.ckpt")
    ann = run(adapters, "ann")
    assert not torch.equal(ann, base)
    assert torch.equal(run(adapters, "bob"), bob) and torch.equal(run(adapters, None), base)
    names = torch.load(tmp_path / "ann.ckpt", weights_only=True)["state_dict"].keys()
    assert any("lora" in name for name in names) and not any("adapter_" in name for name in names)
    adapters.activate("bob")
    trainer(tmp_path, PELTCallback(BOB), max_epochs=1).fit(module, loader())
    assert not torch.equal(run(adapters, "bob"), bob)
    assert torch.equal(run(adapters, "ann"), ann) and torch.equal(run(adapters, None), base)


def test_the_plan_of_another_adapter_is_refused(tmp_path: Path):
    module = Module()
    adapters = Adapters(module)
    adapters.add("ann", ANN)
    adapters.add("bob", BOB)
    with pytest.raises(ValueError, match=r"adapters.activate\(name\)"):
        trainer(tmp_path, PELTCallback(ANN), max_epochs=1).fit(module, loader())
    assert adapters.active == "bob"
