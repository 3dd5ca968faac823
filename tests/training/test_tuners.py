"""What LearningRateFinder and BatchSizeFinder set is what PELTModule trains with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.test_pelt import UserModule, user_module
from callbacks.tiny import loader, trainer
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from small import LABELS, Sentences, bert

from lightning_pelt import GateSchedule, LoRA, PELTCallback, PELTModule, Phase, Plan

PLAN = Plan.uniform(LoRA(r=2))


def finder(**options: Any) -> LearningRateFinder:
    steps = {"num_training_steps": 16, "early_stop_threshold": None}
    return LearningRateFinder(min_lr=1e-4, max_lr=0.5, **steps, **options)  # type: ignore[arg-type]


class Rates(Callback):
    """The rate of every group at every step of the fit."""

    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        self.rates.append({group["name"]: group["lr"] for group in groups})


def module(folder: Path, **options: Any) -> tuple[PELTModule, Sentences]:
    backbone = bert(folder / "backbone")
    options = {"labels": LABELS, "lr": 3e-3, "warmup": 2, **options}
    return PELTModule(backbone, PLAN, **options), Sentences(backbone, rows_of_train=80)


def linear(peak: float, steps: int, warmup: int = 2) -> list[float]:
    """The rates of a rise over ``warmup`` steps and a fall to 0 after ``steps``."""
    rise = [peak * step / warmup for step in range(warmup)]
    return rise + [peak * (steps - step) / (steps - warmup) for step in range(warmup, steps)]


@pytest.mark.slow
def test_the_found_rate_is_scheduled(tmp_path):
    model, data = module(tmp_path)
    rates, found = Rates(), finder()
    trainer(tmp_path, found, rates, max_epochs=2).fit(model, data)
    suggestion = found.optimal_lr.suggestion()  # type: ignore[union-attr]
    assert model.lr == suggestion != 3e-3
    for group in ("lora", "head"):
        assert [step[group] for step in rates.rates] == pytest.approx(linear(suggestion, 40))


@pytest.mark.slow
def test_rates_of_single_groups_are_scaled(tmp_path):
    model, data = module(tmp_path, lr=3e-3, lrs={"head": 0.03})
    rates = Rates()
    trainer(tmp_path, finder(), rates, max_epochs=1).fit(model, data)
    assert [step["head"] for step in rates.rates] == pytest.approx(linear(10 * model.lr, 20))
    assert [step["lora"] for step in rates.rates] == pytest.approx(linear(model.lr, 20))


@pytest.mark.slow
def test_factors_of_a_schedule_apply_to_the_found_rate(tmp_path):
    class AtStep(Rates):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            optimizer = trainer.optimizers[0]
            optimizer.register_step_pre_hook(
                lambda optimizer, *_: self.rates.append(
                    {group["name"]: group["lr"] for group in optimizer.param_groups}
                )
            )

        def on_train_batch_start(self, *_: Any) -> None: ...

    model, data = module(tmp_path, warmup=0)
    halved = GateSchedule({"lora": [Phase(lr_factor=0.5)]})
    rates = AtStep()
    trainer(tmp_path, finder(), halved, rates, max_epochs=1).fit(model, data)
    assert rates.rates[0] == pytest.approx({"lora": model.lr / 2, "head": model.lr})


@pytest.mark.slow
def test_the_schedule_has_the_steps_of_the_found_batch_size(tmp_path):
    model, data = module(tmp_path)
    rates = Rates()
    search = BatchSizeFinder(steps_per_trial=1, init_val=2, max_trials=3)
    trainer(tmp_path, search, rates, max_epochs=2).fit(model, data)
    steps = 2 * 80 // data.batch_size
    assert data.batch_size == search.optimal_batch_size == 8
    assert [step["lora"] for step in rates.rates] == pytest.approx(linear(3e-3, steps))


@pytest.mark.slow
def test_a_tuner_sets_the_rate_before_the_fit(tmp_path):
    model, data = module(tmp_path)
    run = trainer(tmp_path, max_epochs=1)
    search: dict[str, Any] = {"num_training": 16, "early_stop_threshold": None}
    found = Tuner(run).lr_find(model, data, min_lr=1e-4, max_lr=0.5, **search)
    assert found is not None
    rates = Rates()
    trainer(tmp_path, rates, max_epochs=1).fit(model, data)
    assert rates.rates[2]["lora"] == pytest.approx(found.suggestion())


@pytest.mark.slow
def test_a_users_module_trains_with_the_found_rate(tmp_path):
    class Mine(UserModule):
        lr = 1e-3

        def configure_optimizers(self) -> torch.optim.Optimizer:
            groups = [{"params": list(self.parameters()), "name": "all"}]
            return torch.optim.AdamW(groups, lr=self.lr)

    mine, rates = user_module(Mine), Rates()
    trainer(tmp_path, finder(), PELTCallback(PLAN), rates).fit(mine, loader(20))
    assert mine.lr != 1e-3
    assert {step["all"] for step in rates.rates} == {mine.lr}


@pytest.mark.slow
@pytest.mark.parametrize(
    "search", [finder, pytest.param(BatchSizeFinder, marks=pytest.mark.nightly)]
)
def test_a_finder_in_a_resumed_run_is_refused(tmp_path, search):
    """Lightning would begin at step 0."""
    model, data = module(tmp_path)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, data)
    run.save_checkpoint(tmp_path / "half.ckpt")
    again, data = module(tmp_path)
    rest = trainer(tmp_path, search(), max_epochs=2)
    with pytest.raises(ValueError, match=r"resumes from .*half\.ckpt.*Finder would lose"):
        rest.fit(again, data, ckpt_path=tmp_path / "half.ckpt")
    rest.test(again, data, ckpt_path=tmp_path / "half.ckpt", verbose=False)
