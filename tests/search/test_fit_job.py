"""Jobs: one fit each, paired by their seed, that leaves the process unchanged."""

from __future__ import annotations

import gc
import logging
import os
import random
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lightning.pytorch import Trainer
from small import LABELS, Sentences, bert, t5

from lightning_pelt import (
    Adapter,
    BitFit,
    Gate,
    Group,
    HeadOnly,
    LoRA,
    PELTModule,
    Plan,
    Prefix,
)
from lightning_pelt.search import fit_job
from lightning_pelt.search.fit_job import FitModule, Fitter
from lightning_pelt.search.gate_search import gate_metric
from lightning_pelt.search.queue.job import Job
from lightning_pelt.search.settings import FitSettings, Settings, TaskSettings
from lightning_pelt.search.task_settings import TrunkCacheSettings
from lightning_pelt.tasks import Classification, TextToText

BOTH = ("accuracy", "macro_f1")
SMALL = Plan.uniform(LoRA(r=2))
LARGE = Plan(
    [Group([LoRA(r=2), Adapter(bottleneck=3)], [1]), Group([BitFit(), Prefix(mlp=None)], [0])]
)


class Counted(Sentences):
    """Counts how often rows are tokenised."""

    encoded = 0

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        type(self).encoded += 1
        return super().encode(rows, split)


class Watched(FitModule):
    """Records the initial weights of a fit and its batches."""

    every: list[Watched] = []  # noqa: RUF012

    def on_fit_start(self) -> None:
        super().on_fit_start()
        type(self).every.append(self)
        assert self.model is not None
        self.start = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.batches: list[list[list[int]]] = []
        self.scored = 0
        self.alive = weakref.ref(self.model)

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        self.batches.append(batch["input_ids"].tolist())
        return super().training_step(batch, index)

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        self.scored += len(batch["labels"])
        super().validation_step(batch, index)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    monkeypatch.setattr(Watched, "every", [])
    monkeypatch.setattr(fit_job, "FitModule", Watched)
    return Watched.every


def settings(folder: Path, fit: dict[str, Any] | None = None, **options: Any) -> Settings:
    data = partial(options.pop("kind", Sentences), rows_of_train=40)
    return Settings(
        options.pop("backbone", None) or bert(folder / "backbone"),
        {"length": TaskSettings(data, Classification(metrics=BOTH))},
        FitSettings(**{"max_epochs": 2, "lr": 1e-2, **(fit or {})}),
        accelerator="cpu",
        holdout=0.25,
        **options,
    )


def job(plan: Plan, seed: int = 0, scored_on: Any = "holdout") -> Job:
    return Job(plan.to_config(), "length", seed, scored_on)


@pytest.mark.slow
def test_a_job_is_an_ordinary_lightning_fit(tmp_path):
    """If only the head is trained, a plain fit has the same result."""
    asked = settings(tmp_path)
    outcome = Fitter(asked)(job(HeadOnly(), seed=5))
    order, weights, dropout = (int(n) for n in np.random.SeedSequence(5).generate_state(3))
    data = Sentences(asked.backbone, rows_of_train=40, holdout=0.25, seed=order)
    task = Classification(metrics=BOTH)
    module = PELTModule(asked.backbone, HeadOnly(), task, labels=LABELS, lr=1e-2, seed=weights)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    run = Trainer(accelerator="cpu", max_epochs=2, limit_val_batches=1.0, **quiet)
    torch.manual_seed(dropout)
    run.fit(module, data)
    (plain,) = run.validate(module, data)
    assert outcome.score == 100 * plain["val/accuracy"]
    assert outcome.metrics["loss"] == plain["val/loss"]
    assert outcome.metrics["macro_f1"] == plain["val/macro_f1"]
    assert outcome.metrics["steps"] == 2 * 30 / 4 + 1  # the last batch of an epoch holds two rows
    assert outcome.metrics["parameters"] == 0


@pytest.mark.slow
def test_a_job_has_the_same_result_bit_by_bit(tmp_path):
    asked = settings(tmp_path)
    fitter = Fitter(asked)
    first = fitter(job(LARGE, seed=3))
    fitter(job(SMALL, seed=4))
    torch.manual_seed(99)
    again, elsewhere = fitter(job(LARGE, seed=3)), Fitter(asked)(job(LARGE, seed=3))
    for other in (again, elsewhere):
        assert other.score == first.score
        assert other.metrics["loss"] == first.metrics["loss"]
    assert fitter(job(LARGE, seed=4)).metrics["loss"] != first.metrics["loss"]


@pytest.mark.slow
def test_a_seed_gives_all_plans_the_same_batches_head_and_modules(tmp_path, watched):
    fitter = Fitter(settings(tmp_path))
    for plan, seed in ((SMALL, 0), (LARGE, 0), (SMALL, 1)):
        fitter(job(plan, seed))
    small, large, other = watched
    assert small.batches == large.batches
    assert small.batches != other.batches
    trained = {name for name in small.start if "pelt" in name or "classifier" in name}
    common = {name for name in trained if name in large.start}
    assert sum("lora" in name for name in common) == 3  # block 1: A, and B of query and value
    assert any("classifier" in name for name in common)
    for name in common:
        assert torch.equal(small.start[name], large.start[name]), name
    random_ones = [name for name in trained if small.start[name].count_nonzero()]
    assert len(random_ones) == 3  # the head's weight, and two down-projections
    for name in random_ones:
        assert not torch.equal(small.start[name], other.start[name]), name
    first, second = (small.start[name] for name in random_ones if "lora" in name)
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_dropout_depends_on_the_job_and_not_on_earlier_draws(tmp_path):
    """With the base's dropout, a fit that draws from the process's random state would differ."""
    fitter = Fitter(settings(tmp_path, fit={"base_dropout": True}))
    losses = set()
    for draws in range(3):
        torch.rand(draws)
        losses.add(fitter(job(SMALL)).metrics["loss"])
    without = Fitter(settings(tmp_path, fit={"base_dropout": False}))(job(SMALL))
    assert len(losses | {without.metrics["loss"]}) == 2


@pytest.mark.parametrize(("scored_on", "trained", "scored"), [("holdout", 30, 10), ("dev", 40, 8)])
@pytest.mark.slow
def test_a_job_trains_and_scores_on_the_rows_that_it_names(
    tmp_path, watched, scored_on, trained, scored
):
    Fitter(settings(tmp_path))(job(SMALL, scored_on=scored_on))
    (module,) = watched
    assert sum(map(len, module.batches)) == 2 * trained
    assert module.scored == scored  # once, after the last step


@pytest.mark.slow
def test_rows_are_tokenised_once_for_each_split(tmp_path, monkeypatch):
    monkeypatch.setattr(Counted, "encoded", 0)
    fitter = Fitter(settings(tmp_path, kind=Counted))
    for seed in range(2):
        for scored_on in ("holdout", "dev"):
            fitter(job(SMALL, seed, scored_on))
    assert Counted.encoded == 4  # train and dev, for both


def test_a_plan_uses_the_learning_rates_of_its_methods(tmp_path, watched):
    rates = {"lora": 0.0123, "prefix": 0.5, "head": 0.0456}
    asked = settings(tmp_path, fit={"lrs": rates, "max_epochs": None, "max_steps": 1})
    seen: dict[str, float] = {}

    class Groups(Watched):
        def on_train_start(self) -> None:
            seen.update({g["name"]: g["initial_lr"] for g in self.optimizers().param_groups})

    fit_job.FitModule = Groups  # type: ignore[misc]  # `watched` restores it
    Fitter(asked)(job(Plan.uniform(LoRA(r=2), BitFit())))
    assert seen == {"lora": 0.0123, "bitfit": 0.01, "head": 0.0456}


@pytest.mark.slow
def test_a_diverged_fit_has_no_score_and_does_not_affect_the_next(tmp_path):
    asked = settings(tmp_path, fit={"lr": 1e30})
    outcome = Fitter(asked)(job(SMALL))
    assert outcome.diverged
    assert outcome.seconds > 0
    assert all(np.isfinite(value) for value in outcome.metrics.values())
    fitter = Fitter(settings(tmp_path, backbone=asked.backbone))
    before = fitter(job(SMALL))
    fitter.settings = asked
    assert fitter(job(SMALL)).diverged
    fitter.settings = settings(tmp_path, backbone=asked.backbone)
    assert fitter(job(SMALL)).metrics["loss"] == before.metrics["loss"]


@pytest.mark.slow
def test_a_fit_leaves_the_process_unchanged(tmp_path, capfd):
    fitter = Fitter(settings(tmp_path, threads=2))
    capfd.readouterr()
    torch.use_deterministic_algorithms(False)
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    transformers.logging.set_verbosity_info()
    before = _state()
    fitter(job(LARGE))
    assert _state() == before
    torch.manual_seed(7)
    expected = torch.rand(3).tolist()
    torch.manual_seed(7)
    fitter(job(LARGE))
    assert torch.rand(3).tolist() == expected
    assert "".join(capfd.readouterr()) == ""
    transformers.logging.set_verbosity_warning()


def _state() -> dict[str, Any]:
    return {
        "rng": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "python": random.getstate(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "benchmark": torch.backends.cudnn.benchmark,
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "environment": dict(os.environ),
        "lightning": logging.getLogger("lightning.pytorch").level,
        "transformers": transformers.logging.get_verbosity(),
    }


@pytest.mark.slow
def test_the_model_is_freed_after_the_job(tmp_path, watched):
    gc.disable()
    try:
        Fitter(settings(tmp_path))(job(LARGE))
        (module,) = watched
        assert module.alive() is None
    finally:
        gc.enable()


@pytest.mark.slow
def test_metrics_have_the_mean_gates_of_held_out_rows_by_block_and_method(tmp_path):
    """A gate with zero weights and a fixed bias has the same value for every input."""
    gate = Gate(init_std=0.0, init_bias=1.5)
    plan = Plan.uniform(LoRA(r=2, gate=gate), BitFit(gate=gate))
    frozen = settings(tmp_path, fit={"lr": 1e-12})
    metrics = Fitter(frozen)(job(plan)).metrics
    names = {gate_metric("encoder", block, m) for block in (0, 1) for m in ("lora", "bitfit")}
    assert {name for name in metrics if name.startswith("gate/")} == names
    for name in names:
        assert metrics[name] == pytest.approx(1 / (1 + np.exp(-1.5)), abs=1e-6)


@pytest.mark.slow
def test_encoder_decoders_that_generate_text_are_scored(tmp_path):
    task = TaskSettings(
        partial(Sentences, rows_of_train=20, target="text"), TextToText(max_new_tokens=2)
    )
    asked = Settings(
        t5(tmp_path / "t5"),
        {"length": task},
        FitSettings(max_steps=2, lrs={"head": 0.1}),
        accelerator="cpu",
        holdout=0.25,
    )
    outcome = Fitter(asked)(job(Plan.uniform(LoRA(r=2))))
    assert outcome.score is not None
    assert outcome.score == 100 * outcome.metrics["exact_match"]
    assert outcome.metrics["steps"] == 2


def test_an_unknown_task_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'length'"):
        Fitter(settings(tmp_path))(Job(SMALL.to_config(), "lenght", 0))


@pytest.mark.slow
def test_jobs_share_the_hidden_states_below_their_designs(tmp_path: Path) -> None:
    fit = {"base_dropout": False}
    plain = Fitter(settings(tmp_path, fit))
    folder = tmp_path / "trunk"
    cached = Fitter(settings(tmp_path, fit, trunk_cache=TrunkCacheSettings(str(folder))))
    upper = [Plan([Group([method], blocks=[1])]) for method in (LoRA(r=2), Adapter(bottleneck=3))]
    sizes = []
    for plan, seed in [(upper[0], 0), (upper[1], 1), (SMALL, 0)]:
        without, with_ = plain(job(plan, seed)), cached(job(plan, seed))
        assert with_.score == pytest.approx(without.score, abs=1e-4)
        assert with_.metrics["loss"] == pytest.approx(without.metrics["loss"], abs=1e-6)
        sizes.append(sorted(file.name for file in folder.glob("*/*.safetensors")))
    assert sizes[0] and sizes[0] == sizes[1] == sizes[2]  # the second job has computed nothing
