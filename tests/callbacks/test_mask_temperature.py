"""The temperature falls geometrically in training; validation uses the stored one."""

from __future__ import annotations

from pathlib import Path

import pytest
from callbacks.tiny import trainer
from lightning.pytorch import Callback
from small import LABELS, Sentences, bert

from lightning_pelt import XPEFT, PELTModule, Plan, RandomBank
from lightning_pelt.callbacks import MaskTemperature
from lightning_pelt.methods.xpeft.masks import masks_of


class Seen(Callback):
    def __init__(self) -> None:
        self.training: list[float] = []
        self.validation: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.training.append(masks_of(pl_module).temperature)

    def on_validation_batch_end(self, trainer, pl_module, *_) -> None:
        self.validation.append(masks_of(pl_module).temperature)


@pytest.mark.slow
def test_it_falls_geometrically_and_ends_at_the_stored_value(tmp_path: Path) -> None:
    backbone = bert(tmp_path / "bert")
    plan = Plan.uniform(XPEFT(bank=RandomBank(size=8), k=2, bottleneck=4, temperature=0.5))
    module, seen = PELTModule(backbone, plan, labels=LABELS), Seen()
    data = Sentences(backbone)  # five batches an epoch
    trainer(tmp_path, MaskTemperature(start=8.0, until=0.5), seen, max_epochs=2).fit(module, data)
    ratio = (0.5 / 8) ** (1 / 5)
    assert seen.training == pytest.approx([8 * ratio**i for i in range(5)] + 5 * [0.5])
    assert set(seen.validation) == {0.5}
    assert masks_of(module).temperature == 0.5


@pytest.mark.parametrize("options", [{"start": 0}, {"until": 0}, {"until": 1.5}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="MaskTemperature has"):
        MaskTemperature(**options)


def test_a_plan_without_masks(tmp_path: Path) -> None:
    backbone = bert(tmp_path / "bert")
    with pytest.raises(ValueError, match="nothing to anneal: no method of this plan has masks"):
        trainer(tmp_path, MaskTemperature()).fit(
            PELTModule(backbone, Plan(), labels=LABELS), Sentences(backbone)
        )
