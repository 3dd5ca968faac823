"""Averages of gates, made by hand, under schedules and in validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import Tiny, loader, trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint

from lightning_pelt import GateSchedule, Phase

DECAY = 0.5


class ByHand(Callback):
    """The exponential average of what is trained, after each step; and the losses in validation."""

    def __init__(self) -> None:
        self.average: dict[str, torch.Tensor] = {}
        self.validated: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        now = trained(pl_module)
        for name, weight in now.items():
            old = self.average.get(name)
            self.average[name] = weight if old is None else DECAY * old + (1 - DECAY) * weight

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.validated.append(trained(pl_module))


def trained(module: Any) -> dict[str, torch.Tensor]:
    named = module.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def openness(module: Any) -> dict[str, tuple[float, float]]:
    """Of every gate, on the device and on the host."""
    gates = module.attachment.gates
    return {n: (float(g.layer.open[g.index]), g.open) for n, g in gates.items()}


def fit(folder: Path, *more: Callback, epochs: int = 2, **options: Any) -> tuple[Tiny, ByHand, Any]:
    torch.manual_seed(0)
    module, hand = Tiny(lr=0.1), ByHand()
    average = EMAWeightAveraging(decay=DECAY, update_every_n_steps=1)
    run = trainer(folder, average, hand, *more, max_epochs=epochs, **options)
    run.fit(module, loader(3), loader(2, seed=1))
    return module, hand, average


def test_the_average_of_gates(tmp_path):
    module, hand, _ = fit(tmp_path)
    gates = [name for name in hand.average if "gate" in name]
    assert gates
    for name, weight in trained(module).items():
        torch.testing.assert_close(weight, hand.average[name], msg=name)


@pytest.mark.slow
def test_validation_computes_with_the_average(tmp_path):
    class Values(Callback):
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # noqa: RUF012

        def on_validation_batch_end(self, run: Any, module: Any, out: Any, batch: Any, *_: Any):
            fresh = deepcopy_of(module)
            with torch.no_grad():
                self.seen.append((module(batch), fresh(batch)))

    def deepcopy_of(module: Any) -> Tiny:
        fresh = Tiny()
        fresh.configure_model()
        fresh.load_state_dict(module.state_dict())
        return fresh.eval()

    Values.seen = []
    fit(tmp_path, Values(), epochs=3)
    assert len(Values.seen) == 6
    for found, expected in Values.seen:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


SCHEDULE = {"prefix": [Phase(until=1, state="closed"), Phase()]}


@pytest.mark.parametrize("epochs", [1, 2])
def test_openness_is_not_averaged(tmp_path, epochs):
    module, _, _ = fit(tmp_path, GateSchedule(SCHEDULE), epochs=epochs)
    for name, both in openness(module).items():
        closed = "prefix" in name and epochs == 1
        assert both == ((0.0, 0.0) if closed else (1.0, 1.0)), name


@pytest.mark.parametrize("first", [True, False])
def test_a_pruned_gate_stays_closed_in_the_average(tmp_path, first):
    """Wherever the average stands in the list, which exchanges buffers in validation."""
    torch.manual_seed(0)
    module, schedule = Tiny(lr=0.1), GateSchedule(prune_below=0.999, prune_after=1)
    average = EMAWeightAveraging(decay=DECAY, update_every_n_steps=1)
    kept = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1)
    callbacks = [average, schedule] if first else [schedule, average]
    run = trainer(tmp_path, *callbacks, kept, max_epochs=3, enable_checkpointing=True)
    run.fit(module, loader(3), loader(2, seed=1))
    assert set(schedule.pruned) == set(module.attachment.gates)
    saved = torch.load(tmp_path / "kept" / "epoch=2.ckpt", weights_only=True)
    for kind in ("state_dict", "current_model_state"):
        tensors = [t for name, t in saved[kind].items() if name.endswith(".open")]
        assert tensors and all(not tensor.any() for tensor in tensors), kind
    assert set(openness(module).values()) == {(0.0, 0.0)}


@pytest.mark.slow
def test_a_resumed_average(tmp_path):
    """Its openness is that of the run; the weights are those of a run that was not interrupted."""

    def run(folder: Path, epochs: int, resume: Path | None = None) -> Tiny:
        torch.manual_seed(0)
        module = Tiny(lr=0.1)
        module.net.eval()
        kept = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        average = EMAWeightAveraging(decay=DECAY, update_every_n_steps=1)
        callbacks = [average, GateSchedule(SCHEDULE), kept]
        fit = trainer(folder, *callbacks, max_epochs=epochs, enable_checkpointing=True)
        fit.fit(module, loader(3), ckpt_path=resume, weights_only=True)
        return module

    whole = run(tmp_path / "whole", 2)
    run(tmp_path / "half", 1)
    resumed = run(tmp_path / "half", 2, tmp_path / "half" / "epoch=0.ckpt")
    assert set(openness(resumed).values()) == {(1.0, 1.0)}
    torch.testing.assert_close(trained(resumed), trained(whole), rtol=0, atol=1e-6)
