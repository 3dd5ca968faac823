"""Lightning's own tools beside UniPELT: accumulation, stopping, several optimizers, Fabric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import Tiny, loader, trainer
from lightning.fabric import Fabric
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, EarlyStopping, LearningRateFinder
from small import LABELS, Sentences
from torch import Tensor, nn
from torch.utils.data import DataLoader
from twenty_steps import backbone as small_backbone
from zoo import build

from lightning_pelt import GateSchedule, PELTCallback, PELTModule, Phase, UniPELT, attach
from lightning_pelt.attach import attachment_of


def trained(module: nn.Module) -> dict[str, Tensor]:
    named = module.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_backbone(tmp_path_factory.mktemp("backbone"))


# -- accumulation -----------------------------------------------------------------------------


class Ends(Callback):
    """The gradients at each step of the optimizer, and the openness of the prefix."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor | None]] = []
        self.open: list[float] = []

    def on_before_optimizer_step(self, run: Any, module: Any, optimizer: Any) -> None:
        named = module.named_parameters()
        grads = {n: None if p.grad is None else p.grad.clone() for n, p in named if p.requires_grad}
        self.gradients.append(grads)
        self.open.append(module.attachment.gates["00/prefix"].open)


def padded(batches: int, size: int) -> DataLoader:
    """The rows of ``batches`` batches of four, some padded, in one order and ``size`` at a time."""
    rows: Any = loader(batches).dataset
    for index, row in enumerate(rows):
        row["attention_mask"][8 - index % 4 :] = 0
    return DataLoader(rows, batch_size=size)


def accumulated(folder: Path, data: DataLoader, windows: int) -> tuple[Tiny, Ends]:
    phases = {
        "prefix": [Phase(until=2, state="closed"), Phase(until=6, state="ramp")],
        "adapter": [Phase(until=3, held=True), Phase(lr_factor=0.5)],
    }
    torch.manual_seed(0)
    module, ends = Tiny(optimizer="sgd", lr=0.1), Ends()
    callbacks = [GateSchedule(phases, unit="step"), ends]
    run = trainer(folder, *callbacks, max_epochs=2, accumulate_grad_batches=windows)
    run.fit(module, data)
    return module, ends


@pytest.mark.slow
def test_accumulated_batches_are_one_large_batch(tmp_path):
    """With the phases of a schedule, counted in steps of the optimizer."""
    large, steps = accumulated(tmp_path, padded(8, 8), 1)
    small, again = accumulated(tmp_path, padded(8, 4), 2)
    assert again.open == steps.open == [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    for one, other in zip(again.gradients, steps.gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    torch.testing.assert_close(trained(small), trained(large), rtol=0, atol=1e-6)


def test_a_last_window_that_is_partial(tmp_path):
    """Lightning divides the loss of each batch by the whole window, here two for one batch."""
    _, whole = accumulated(tmp_path, padded(1, 4), 1)
    _, partial = accumulated(tmp_path, padded(1, 4), 2)
    assert len(whole.gradients) == len(partial.gradients) == 2, "one step per epoch"
    assert any("gate" in name and grad is not None for name, grad in whole.gradients[0].items())
    half = {n: None if g is None else g / 2 for n, g in whole.gradients[0].items()}
    torch.testing.assert_close(partial.gradients[0], half, rtol=1e-5, atol=1e-8)


def test_windows_of_two_over_three_batches(tmp_path):
    """The second window of each epoch is the third batch, and the schedule counts it as a step."""
    module, ends = accumulated(tmp_path, padded(3, 4), 2)
    assert ends.open == [0.0, 0.0, 0.0, 0.25]

    torch.manual_seed(0)
    net = build("bert")
    torch.manual_seed(2)
    attachment = attach(net, UniPELT())
    rates = {"adapter": 0.05}
    for step, batches in enumerate([(0, 1), (2,)] * 2):
        for name, gate in attachment.gates.items():
            gate.set_open(ends.open[step] if "prefix" in name else 1.0)
        net.zero_grad()
        data = list(padded(3, 4))
        for index in batches:
            (net(**data[index]).loss / 2).backward()
        held = {*map(id, attachment.parameters_of("adapter"))} if step < 3 else set()
        with torch.no_grad():
            for name, parameters in attachment.parameter_groups().items():
                for parameter in parameters:
                    if parameter.grad is not None and id(parameter) not in held:
                        rate = rates.get(name, 0.1) if step >= 3 else 0.1
                        parameter -= rate * parameter.grad
    torch.testing.assert_close(trained(module.net), trained(net), rtol=0, atol=1e-6)


# -- early stopping and finders ---------------------------------------------------------------


@pytest.mark.slow
def test_early_stopping(tmp_path, backbone):
    module = PELTModule(backbone, UniPELT(), labels=LABELS, lr=0.0)
    stops = EarlyStopping("val/loss", patience=2)
    run = trainer(
        tmp_path, stops, GateSchedule({"lora": [Phase(until=9, held=True)]}), max_epochs=9
    )
    run.fit(module, Sentences(backbone))
    assert stops.stopped_epoch == 2, "nothing is learned at a rate of 0"
    assert run.current_epoch == 3


@pytest.mark.slow
def test_a_found_rate_scales_the_rates_of_single_groups(tmp_path, backbone):
    class Rates(Callback):
        def on_train_start(self, run: Any, module: Any) -> None:
            self.rates = {g["name"]: g["initial_lr"] for g in run.optimizers[0].param_groups}

    module = PELTModule(
        backbone, UniPELT(), labels=LABELS, lr=1e-3, lrs={"gate": 5e-3, "head": 2e-3}
    )
    steps: dict[str, Any] = {"num_training_steps": 16, "early_stop_threshold": None}
    finder, rates = LearningRateFinder(min_lr=1e-4, max_lr=0.5, **steps), Rates()
    trainer(tmp_path, finder, rates).fit(module, Sentences(backbone, rows_of_train=80))
    assert finder.optimal_lr is not None
    found = finder.optimal_lr.suggestion()
    assert found is not None and found != 1e-3
    expected = {"gate": 5 * found, "head": 2 * found}
    own = dict.fromkeys(("adapter", "prefix", "lora"), found)
    assert rates.rates == pytest.approx({**own, **expected})
    assert module.lrs == module.hparams["lrs"] == pytest.approx(expected)


@pytest.mark.slow
def test_a_found_batch_size(tmp_path, backbone):
    data = Sentences(backbone, rows_of_train=32, batch_size=2)
    search = BatchSizeFinder(steps_per_trial=1, init_val=2, max_trials=3)
    module = PELTModule(backbone, UniPELT(), labels=LABELS, lrs={"gate": 0.01})
    closed = GateSchedule({"prefix": [Phase(state="closed")]})
    run = trainer(tmp_path, search, closed)
    run.fit(module, data)
    assert data.batch_size == search.optimal_batch_size == 8
    assert run.global_step == 4
    assert module.lrs == {"gate": 0.01}, "no rate was searched"
    assert module.attachment is not None
    assert {g.open for n, g in module.attachment.gates.items() if "prefix" in n} == {0.0}


# -- several optimizers -----------------------------------------------------------------------


class Alternating(LightningModule):
    """A stranger's module: one optimizer for the gates, another for the rest, each in turn."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.net = build("bert")

    def training_step(self, batch: dict[str, Tensor], index: int) -> None:
        optimizer = self.optimizers()[index % 2]  # type: ignore[index]
        optimizer.zero_grad()
        self.manual_backward(self.net(**batch).loss)
        optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return both(self.net)


def both(net: nn.Module) -> list[torch.optim.Optimizer]:
    groups = attachment_of(net).parameter_groups()
    named = [{"name": n, "params": ps} for n, ps in groups.items()]
    gates = [group for group in named if group["name"] == "gate"]
    rest = [group for group in named if group["name"] != "gate"]
    return [torch.optim.SGD(gates, lr=0.5), torch.optim.SGD(rest, lr=0.1)]


def test_two_optimizers_in_turn(tmp_path):
    """The steps of a loop that uses nothing of Lightning; the adapter is held in the first two."""
    torch.manual_seed(0)
    module = Alternating()
    schedule = GateSchedule({"adapter": [Phase(until=2, held=True)]}, unit="step")
    callback = PELTCallback(UniPELT(), base_dropout=False, seed=5)
    run = trainer(tmp_path, callback, schedule)
    run.fit(module, loader(6))
    assert run.global_step == 6

    torch.manual_seed(0)
    net = build("bert")
    attachment = attach(net, UniPELT(), seed=5)
    attachment.train(base_dropout=False)
    optimizers = both(net)
    for index, batch in enumerate(loader(6)):
        net.zero_grad()
        net(**batch).loss.backward()
        for parameter in attachment.parameters_of("adapter") if index < 2 else ():
            parameter.grad = None
        optimizers[index % 2].step()
    torch.testing.assert_close(trained(module.net), trained(net), rtol=0, atol=1e-6)


# -- Fabric -----------------------------------------------------------------------------------


def test_fabric(tmp_path):
    """Set up, train, save and load; the steps are those of a plain loop."""

    def tuned(fabric: Fabric | None) -> Any:
        torch.manual_seed(0)
        net: Any = build("bert")
        attach(net, UniPELT(), seed=1).train(base_dropout=False)
        optimizer: Any = torch.optim.AdamW(
            [p for p in net.parameters() if p.requires_grad], lr=0.01
        )
        if fabric is not None:
            net, optimizer = fabric.setup(net, optimizer)
        for batch in loader(3):
            optimizer.zero_grad()
            loss = net(**batch).loss
            loss.backward() if fabric is None else fabric.backward(loss)
            optimizer.step()
        return net, optimizer

    fabric = Fabric(accelerator="cpu", devices=1)
    net, optimizer = tuned(fabric)
    plain, _ = tuned(None)
    torch.testing.assert_close(trained(net.module), trained(plain), rtol=0, atol=0)

    fabric.save(tmp_path / "fabric.ckpt", {"model": net, "optimizer": optimizer})
    saved = torch.load(tmp_path / "fabric.ckpt", weights_only=True)["model"]
    assert saved.keys() == plain.state_dict().keys(), "the plain names, and nothing of the base"

    torch.manual_seed(0)
    again = build("bert")
    attach(again, UniPELT(), seed=9)
    wrapped = fabric.setup_module(again)
    fabric.load(tmp_path / "fabric.ckpt", {"model": wrapped}, strict=False)
    torch.testing.assert_close(trained(again), trained(plain), rtol=0, atol=0)
    batch = next(iter(loader(1)))
    with torch.no_grad():
        assert torch.equal(again.eval()(**batch).logits, plain.eval()(**batch).logits)
