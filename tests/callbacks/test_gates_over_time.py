"""GateMonitor keeps the gates of a run, draws them over time, and resumes with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from callbacks.tiny import Tiny, loader, trainer
from lightning.pytorch import Callback
from matplotlib.image import imread

from lightning_pelt import GateMonitor, GateSchedule, LoRA, Phase, Plan
from lightning_pelt.callbacks import _heat_map, gate_monitor

PICTURE = "gates_over_time.png"


class Values(Callback):
    """Every training batch's gates, read the slow way."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        gates = pl_module.attachment.gates.values()
        self.rows.append([gate.value.mean().item() for gate in gates])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[str]]]:
    """The steps and the pruned gates of each picture, in place of drawing."""
    found: list[tuple[list[int], list[str]]] = []

    def show(trainer: Any, history: Any, pruned: list[str], path: str) -> str:
        found.append((list(history.steps), list(pruned)))
        return path

    monkeypatch.setattr(gate_monitor, "show_over_time", show)
    return found


def test_the_history_has_every_reading(tmp_path, drawn):
    values, monitor = Values(), GateMonitor(every_n_steps=2, heatmap=False)
    trainer(tmp_path, values, monitor).fit(Tiny(), loader(5))
    assert monitor.history.steps == [0, 2, 4]
    np.testing.assert_allclose(monitor.history.values, values.rows[::2], atol=5e-4)
    assert drawn == [([0, 2, 4], [])], "without a validation, it is drawn at the end"


def test_pictures_after_validations(tmp_path, drawn, capsys):
    monitor = GateMonitor(every_n_steps=1, heatmap=False)
    fit = trainer(tmp_path, monitor, max_epochs=2, logger=False)
    fit.fit(Tiny(), loader(2), loader(1))
    assert [steps for steps, _ in drawn] == [[0, 1], [0, 1, 2, 3]]
    fit.validate(Tiny(), loader(1), verbose=False)
    assert len(drawn) == 2, "a validation alone has no time"
    assert f"Gates over time: {tmp_path}/{PICTURE}" in capsys.readouterr().out


def test_pictures_of_a_long_run_grow_apart(tmp_path, drawn):
    """One takes half a second, and a validation may be short."""
    monitor = GateMonitor(every_n_steps=1, heatmap=False)
    trainer(tmp_path, monitor, max_epochs=20, logger=False).fit(Tiny(), loader(1), loader(1))
    assert [steps[-1] for steps, _ in drawn] == [1, 2, 4, 8, 16, 19], "and one at the end"


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_readings_of_its_checkpoint(tmp_path, drawn):
    def fit(epochs: int, ckpt_path: str | None = None) -> tuple[Any, GateMonitor]:
        monitor = GateMonitor(every_n_steps=1, heatmap=False)
        run = trainer(tmp_path, monitor, max_epochs=epochs, logger=False)
        run.fit(Tiny(), loader(3), ckpt_path=ckpt_path)
        return run, monitor

    whole = fit(2)[1]
    first, _ = fit(1)
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(2, str(tmp_path / "half.ckpt"))[1]
    assert resumed.history.steps == whole.history.steps == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(resumed.history.values, whole.history.values, atol=1e-3)


def test_a_second_run_begins_another_history(tmp_path, drawn):
    monitor = GateMonitor(every_n_steps=1, heatmap=False)
    for batches in (4, 2):
        trainer(tmp_path, monitor, logger=False).fit(Tiny(), loader(batches))
    assert monitor.history.steps == [0, 1]


def test_a_checkpoint_without_a_history(tmp_path):
    monitor = GateMonitor()
    monitor.load_state_dict({"last_step": 7})
    assert len(monitor.history) == 0


@pytest.mark.slow
def test_closed_and_pruned_gates(tmp_path, drawn):
    monitor = GateMonitor(every_n_steps=1, heatmap=False)
    schedule = GateSchedule(
        {"prefix": [Phase(until=1, state="closed")]}, prune_below=0.99, prune_after=1
    )
    fit = trainer(tmp_path, schedule, monitor, max_epochs=2, logger=False)
    fit.fit(Tiny(), loader(2), loader(1))
    values = dict(zip(monitor.history.names, monitor.history.values.T, strict=True))
    assert (values["00/prefix"] > 0).tolist() == [False, False, True, True]
    assert (values["00/adapter"] > 0).tolist() == [True, True, False, False]
    assert "00/adapter" in drawn[-1][1]


def test_it_can_be_switched_off(tmp_path, drawn):
    monitor = GateMonitor(every_n_steps=1, heatmap=False, over_time=False)
    trainer(tmp_path, monitor, logger=False).fit(Tiny(), loader(2), loader(1))
    assert not drawn
    assert len(monitor.history) == 0


@pytest.mark.parametrize("options", [{"fast_dev_run": 2}, {"max_steps": 1}])
def test_no_picture_without_two_readings_or_with_fast_dev_run(tmp_path, drawn, options):
    monitor = GateMonitor(every_n_steps=1, heatmap=False)
    trainer(tmp_path, monitor, logger=False, **options).fit(Tiny(), loader(2), loader(1))
    assert not drawn


def test_runs_without_gates_write_nothing(tmp_path, drawn):
    fit = trainer(tmp_path, GateMonitor(every_n_steps=1), logger=False)
    with pytest.warns(UserWarning, match="no gates to monitor"):
        fit.fit(Tiny(plan=Plan.uniform(LoRA())), loader(2), loader(1))
    assert not drawn
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_picture_that_cannot_be_drawn_does_not_end_the_fit(tmp_path, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(_heat_map, "gates_over_time", fails)
    monitor = GateMonitor(every_n_steps=1, heatmap=False)
    with pytest.warns(UserWarning, match="drawing the gates failed.*RuntimeError: no fonts"):
        trainer(tmp_path, monitor, logger=False).fit(Tiny(), loader(2), loader(1))
    assert not (tmp_path / PICTURE).exists()


@pytest.mark.slow
def test_two_processes_write_one_picture(tmp_path):
    monitor = GateMonitor(every_n_steps=1, heatmap=False)
    fit = trainer(tmp_path, monitor, strategy="ddp_fork", devices=2)
    fit.fit(Tiny(), loader(4), loader(2, seed=1))
    (file,) = tmp_path.glob(f"**/{PICTURE}")
    assert imread(file).ndim == 3
