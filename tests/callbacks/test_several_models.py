"""Callbacks in a module with two attached models act on both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from callbacks.test_pelt import UserModule, user_module
from callbacks.tiny import copies, loader, trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from zoo import build

from lightning_pelt import (
    XPEFT,
    Adapter,
    FiniteGuard,
    Gate,
    GateMonitor,
    GateSchedule,
    LoRA,
    MaskTemperature,
    ParameterCount,
    PELTCallback,
    Phase,
    Plan,
    RandomBank,
)
from lightning_pelt.attach import find_attachments
from lightning_pelt.callbacks.finite_guard import NonFiniteError


class Towers(UserModule):
    def build(self) -> None:
        super().build()
        self.other = build("bert", seed=1, task=False)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        inputs = batch["input_ids"], batch["attention_mask"]
        return self.head(self.net(*inputs)[0][:, 0] + self.other(*inputs)[0][:, 0])

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.logits(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"params": params}
            for attachment in find_attachments(self).values()
            for params in attachment.parameter_groups().values()
        ]
        return torch.optim.SGD([*groups, {"params": self.head.parameters()}], lr=0.1)


def fit(folder: Any, *callbacks: Any, plans: Any = None, batches: int = 2, **options: Any) -> Any:
    one = Plan.uniform(LoRA(r=2, gate=Gate()))
    two = Plan.uniform(LoRA(r=2, gate=Gate()), Adapter(bottleneck=4, gate=Gate()))
    net, other = plans or (one, two)
    module = user_module(Towers)
    attaching = [PELTCallback(net, path="net"), PELTCallback(other, path="other")]
    run = trainer(folder, *attaching, *callbacks, **options)
    run.fit(module, loader(batches), loader(1))
    return module


class Starts(Callback):
    """The weights at the start: LoRA's of both models, and the adapter's of one."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.first = {p: copies(weights) for p, weights in lora(pl_module).items()}
        self.adapter = copies(find_attachments(pl_module)["other"].parameters_of("adapter"))


def lora(module: Any) -> dict[str, list[torch.nn.Parameter]]:
    return {path: a.parameters_of("lora") for path, a in find_attachments(module).items()}


def test_a_schedule_holds_a_method_in_both(tmp_path):
    starts = Starts()
    module = fit(tmp_path, GateSchedule({"lora": [Phase(held=True)]}), starts)
    for path, weights in lora(module).items():
        assert all(torch.equal(a, b) for a, b in zip(weights, starts.first[path], strict=True))
    adapter = find_attachments(module)["other"].parameters_of("adapter")
    assert any(not torch.equal(a, b) for a, b in zip(adapter, starts.adapter, strict=True))


@pytest.mark.slow
def test_a_schedule_scales_a_method_in_both(tmp_path):
    """With half the rate, plain gradient descent goes half as far in the first step."""
    moved = []
    for factor in (1.0, 0.5):
        starts = Starts()
        halved = GateSchedule({"lora": [Phase(lr_factor=factor)]})
        module = fit(tmp_path, halved, starts, batches=1)
        weights = {path: find_attachments(module)[path]._weights("lora") for path in lora(module)}
        moved.append(
            {
                path: [p - q for p, q in zip(weights[path], starts.first[path], strict=False)]
                for path in weights
            }
        )
    for path in ("net", "other"):
        for far, near in zip(moved[0][path], moved[1][path], strict=True):
            torch.testing.assert_close(near, far / 2)
        assert any(bool(far.any()) for far in moved[0][path])


def test_pruning_tells_the_gates_of_both_apart(tmp_path):
    schedule = GateSchedule(prune_below=0.999, prune_after=1)
    module = fit(tmp_path, schedule)
    names = {f"{path}.{name}" for path, a in find_attachments(module).items() for name in a.gates}
    assert set(schedule.pruned) == names
    assert len(names) == 4 + 6
    gates = [gate for a in find_attachments(module).values() for gate in a.gates.values()]
    assert all(gate.open == 0.0 for gate in gates)


@pytest.mark.slow
def test_the_monitor_shows_the_gates_of_both(tmp_path):
    monitor = GateMonitor(every_n_steps=1)
    fit(tmp_path, monitor)
    assert {name.partition(".")[0] for name in monitor.latest} == {"net", "other"}
    assert len(monitor.latest) == 10


def test_parameters_are_counted_by_model(tmp_path, capsys):
    logger = CSVLogger(tmp_path, name="", version="run")
    module = fit(tmp_path, ParameterCount(), logger=logger)
    net, other = find_attachments(module).values()
    logged = logger.experiment.hparams
    assert logged["parameters/net/lora/trained"] == net.counts["lora"].trained
    assert logged["parameters/other/adapter/trained"] == other.counts["adapter"].trained
    assert logged["parameters/net/backbone"] == net.backbone_size
    assert "parameters/lora/trained" not in logged
    assert capsys.readouterr().out.count("method ") == 2


@pytest.mark.slow
def test_masks_of_both_are_annealed(tmp_path):
    plan = Plan.uniform(XPEFT(RandomBank(size=4), k=2, temperature=0.5))
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            modules = [m for a in find_attachments(pl_module).values() for m in a.all_submodules]
            seen.append({m.temperature for m in modules if m.temperature is not None})

    fit(tmp_path, MaskTemperature(start=8.0), Watch(), plans=(plan, plan))
    assert seen[0] == {8.0}
    assert all(len(temperatures) == 1 for temperatures in seen)


@pytest.mark.slow
def test_the_guard_finds_what_failed_in_the_second(tmp_path):
    class Breaks(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            weight = find_attachments(pl_module)["other"].parameters_of("adapter")[0]
            weight.data.fill_(float("nan"))

    with pytest.raises(NonFiniteError, match="the weights of 'adapter' are not finite"):
        fit(tmp_path, Breaks(), FiniteGuard())
