"""The same objects in several fits, longer runs, workers, and what a checkpoint says of a place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from small import LABELS, Sentences, bert
from training.continued import (
    Run,
    assert_continues,
    assert_same_end,
    every_step,
    fit,
    module,
    schedule,
    tuned,
)

from lightning_pelt import GateSchedule, PELTCallback, PELTModule, UniPELT


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert(tmp_path_factory.mktemp("backbone"))


@pytest.mark.slow
def test_the_same_objects_resume_in_one_process(tmp_path, backbone):
    """Module, data and schedule have run to the end, and start again from a checkpoint."""
    model, data, gates = module(backbone), Sentences(backbone, rows_of_train=11), schedule()
    whole = fit(tmp_path, model, data, every_step(tmp_path), gates=gates)
    state = {name: value.clone() for name, value in whole.state.items()}
    for step in (5, 3):
        resume = tmp_path / f"step={step}.ckpt"
        resumed = fit(tmp_path / "rest", model, data, gates=gates, resume=resume)
        assert_continues(resumed, Run(state, whole.pruned, whole.trace, whole.trainer))


@pytest.mark.slow
def test_a_schedule_starts_anew_with_another_model(tmp_path, backbone):
    """The gates that it has closed in one model are open in the next one."""
    gates = schedule()
    first = fit(tmp_path, module(backbone), Sentences(backbone, rows_of_train=11), gates=gates)
    assert first.pruned["pruned"]
    second = fit(tmp_path, module(backbone), Sentences(backbone, rows_of_train=11), gates=gates)
    assert_same_end(second, first)


@pytest.mark.slow
def test_a_schedule_keeps_the_gates_closed_that_it_has_closed_in_the_model(tmp_path, backbone):
    model, gates = module(backbone), schedule()
    fit(tmp_path, model, Sentences(backbone, rows_of_train=11), gates=gates)
    closed = list(gates.pruned)
    fit(tmp_path, model, Sentences(backbone, rows_of_train=11), gates=gates, limit_val_batches=0)
    assert gates.pruned == closed
    assert {model.attachment.gates[name].open for name in closed} == {0.0}


@pytest.mark.slow
def test_each_run_has_the_seed_of_its_beginning(tmp_path, backbone):
    """A callback in a loop over seeds does not keep the first one."""
    callback = PELTCallback(UniPELT())
    seeds = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = Stranger(backbone)
        trainer = Trainer(
            max_steps=1,
            accelerator="cpu",
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, Sentences(backbone))
        seeds.append(callback.step_seed.seed)
    assert seeds == [1, 2]


class Stranger(LightningModule):
    def __init__(self, backbone: str) -> None:
        super().__init__()
        inner = PELTModule(backbone, labels=LABELS)
        self.net = inner.task.load(backbone, labels=LABELS, dtype="float32")

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return self.net(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad])


class Constant(PELTModule):
    """Rates that do not depend on the length of the run."""

    def configure_optimizers(self) -> Any:
        return super().configure_optimizers()["optimizer"]


@pytest.mark.slow
@pytest.mark.parametrize("saving", [{}, {"every_n_train_steps": 3}], ids=["epoch", "last-batch"])
def test_more_epochs_than_before(tmp_path, backbone, saving):
    def run(folder: Path, *callbacks: Any, **options: Any) -> Run:
        model = Constant(backbone, UniPELT(), labels=LABELS, lr=3e-2)
        return fit(folder, model, Sentences(backbone, rows_of_train=11), *callbacks, **options)

    whole = run(tmp_path / "whole", max_epochs=3)
    run(tmp_path, ModelCheckpoint(tmp_path, save_top_k=-1, **saving), max_epochs=1)
    (end,) = tmp_path.glob("*.ckpt")
    assert_continues(run(tmp_path / "rest", resume=end, max_epochs=3), whole)


@pytest.mark.slow
def test_workers_change_nothing(tmp_path, backbone):
    whole = tuned(tmp_path, backbone, every_step(tmp_path), max_epochs=2)
    for step in (2, 3):
        data = Sentences(backbone, rows_of_train=11, num_workers=2)
        options = {"gates": schedule(), "resume": tmp_path / f"step={step}.ckpt", "max_epochs": 2}
        assert_continues(fit(tmp_path / "rest", module(backbone), data, **options), whole)


@pytest.mark.slow
@pytest.mark.parametrize("sanity", [0, 2])
def test_a_finished_run_does_nothing_more(tmp_path, backbone, sanity):
    writer = ModelCheckpoint(tmp_path)
    whole = tuned(tmp_path, backbone, writer, max_steps=6, num_sanity_val_steps=sanity)
    (end,) = tmp_path.glob("*.ckpt")
    again = tuned(tmp_path, backbone, resume=end, max_steps=6, num_sanity_val_steps=sanity)
    assert_same_end(again, whole)
    assert not again.trace.events


@pytest.mark.slow
def test_the_last_validation_of_a_run_limited_by_steps(tmp_path, backbone):
    """Saved after the last step and before its validation, which may close gates."""
    whole = tuned(tmp_path, backbone, every_step(tmp_path), max_steps=6)
    rest = tuned(tmp_path / "rest", backbone, resume=tmp_path / "step=6.ckpt", max_steps=6)
    assert_continues(rest, whole)
    assert rest.kinds == ["validation", "epoch"]
    assert rest.trainer.max_steps == 6


@pytest.mark.slow
def test_a_checkpoint_says_where_it_was_written(tmp_path, backbone):
    """Its counters have one meaning, whichever trainer reads them."""
    tuned(tmp_path, backbone, every_step(tmp_path), max_epochs=1)
    loops = [
        torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["loops"]["fit_loop"]
        for step in (1, 3)
    ]
    for batches, loop in zip((1, 3), loops, strict=True):
        done = loop["epoch_loop.batch_progress"]["current"]
        assert set(done.values()) == {batches}
        assert loop["epoch_progress"]["current"]["started"] == 1
        assert loop["epoch_progress"]["current"]["processed"] == 0
    assert [loop["epoch_loop.batch_progress"]["is_last_batch"] for loop in loops] == [False, True]


@pytest.mark.slow
def test_pruning_state_is_in_the_checkpoint(tmp_path, backbone):
    gates = GateSchedule(prune_below=0.48, prune_after=2)
    data = Sentences(backbone, rows_of_train=11)
    options = {"max_epochs": 2}
    whole = fit(tmp_path, module(backbone), data, every_step(tmp_path), gates=gates, **options)
    assert whole.pruned["pruned"]
    half = GateSchedule(prune_below=0.48, prune_after=2)
    resume = tmp_path / "step=4.ckpt"
    rest = fit(tmp_path / "rest", module(backbone), data, gates=half, resume=resume, **options)
    assert_continues(rest, whole)
