"""Schedules at work in real fits: what opens, what moves, what resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import Tiny, all_equal, copies, loader, trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from lightning_pelt import Adapter, Gate, Group, HeadOnly, LoRA, Plan
from lightning_pelt.callbacks.gate_schedule import GateSchedule
from lightning_pelt.training.phases import Phase


class Watch(Callback):
    """What the forward of every batch saw: openness by gate, before and after the step."""

    def __init__(self) -> None:
        self.open: list[dict[str, float]] = []
        self.buffers: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        gates = pl_module.attachment.gates
        self.open.append({name: gate.open for name, gate in gates.items()})
        self.buffers.append({n: float(g.value.max()) for n, g in gates.items()})


def weights_before_and_after(module, method, fit):
    module.configure_model()
    before = copies(module.attachment.parameters_of(method))
    fit()
    return before, copies(module.attachment.parameters_of(method))


def test_phases_by_step_reach_the_gates(tmp_path):
    phases = [Phase(until=1, state="closed"), Phase(until=3, state="ramp", start=0.5, end=1.0)]
    watch = Watch()
    schedule = GateSchedule({"lora": phases}, unit="step")
    trainer(tmp_path, schedule, watch).fit(Tiny(), loader(4))
    assert [seen["00/lora.query"] for seen in watch.open] == [0.0, 0.5, 0.75, 1.0]
    assert all(seen["00/adapter"] == 1.0 for seen in watch.open)
    assert watch.buffers[0]["01/lora.value"] == 0.0
    assert 0 < watch.buffers[1]["01/lora.value"] < 0.5 < 1


def test_epochs_are_divided_by_batches(tmp_path):
    watch = Watch()
    schedule = GateSchedule({"lora": [Phase(until=2, state="ramp", start=0.2, end=1.0)]})
    trainer(tmp_path, schedule, watch, max_epochs=3).fit(Tiny(), loader(2))
    openness = [seen["01/lora.query"] for seen in watch.open]
    assert openness == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


@pytest.mark.parametrize("phase", [Phase(held=True), Phase(state="closed")])
def test_held_and_closed_weights_stay_bit_for_bit_under_adamw(tmp_path, phase):
    module = Tiny(optimizer="adamw")  # with weight decay, which a zero gradient would let through
    schedule = GateSchedule({"lora": [phase]})
    fit = trainer(tmp_path, schedule)
    before, after = weights_before_and_after(module, "lora", lambda: fit.fit(module, loader(3)))
    assert all_equal(before, after)
    assert fit.global_step == 3

    free = Tiny(optimizer="adamw")
    fit = trainer(tmp_path, logger=False)
    before, after = weights_before_and_after(free, "lora", lambda: fit.fit(free, loader(3)))
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_held_method_moves_again_when_its_phase_is_over(tmp_path):
    module = Tiny()
    schedule = GateSchedule({"adapter": [Phase(until=2, held=True)]}, unit="step")
    moved = []

    class Compare(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            self.before = copies(pl_module.attachment.parameters_of("adapter"))

        def on_train_batch_end(self, trainer, pl_module, *args):
            now = copies(pl_module.attachment.parameters_of("adapter"))
            moved.append(not all_equal(self.before, now))

    trainer(tmp_path, schedule, Compare()).fit(module, loader(4))
    assert moved == [False, False, True, True]


def test_half_the_rate_is_exactly_half_the_step(tmp_path):
    """With SGD, w - lr * factor * grad, computed by hand from the gradient of the same batch."""

    class Gradients(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            groups = pl_module.attachment.parameter_groups()
            self.weights = {m: copies(p) for m, p in groups.items()}
            self.grads = {m: [q.grad.clone() for q in p] for m, p in groups.items()}

    module, seen = Tiny(optimizer="sgd", lr=0.25), Gradients()
    schedule = GateSchedule({"lora": [Phase(lr_factor=0.5)], "adapter": [Phase(lr_factor=2.0)]})
    fit = trainer(tmp_path, schedule, seen)
    fit.fit(module, loader(1))
    rates = {"lora": 0.125, "adapter": 0.5, "gate": 0.25, "head": 0.25}
    assert any(grad.abs().sum() > 0 for grad in seen.grads["lora"])
    for method, parameters in module.attachment.parameter_groups().items():
        if method not in rates:
            continue
        for before, grad, now in zip(
            seen.weights[method], seen.grads[method], parameters, strict=True
        ):
            assert torch.equal(now.detach(), before.add(grad, alpha=-rates[method]))
    assert {g["lr"] for g in fit.optimizers[0].param_groups} == {0.25}


def test_the_optimizer_keeps_its_own_rate_in_checkpoints_and_for_schedulers(tmp_path):
    class Decayed(Tiny):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [
                {
                    "scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5),
                    "interval": "step",
                }
            ]

    schedule = GateSchedule({"lora": [Phase(lr_factor=0.1)]})
    fit = trainer(tmp_path, schedule)
    fit.fit(Decayed(lr=0.16), loader(3))
    fit.save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
    rates = {group["name"]: group["lr"] for group in saved["optimizer_states"][0]["param_groups"]}
    assert set(rates.values()) == {0.02}


def test_a_step_that_dies_gives_the_rate_back(tmp_path):
    class Dies(Tiny):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise KeyError("broken row")
            return self(batch)

    schedule = GateSchedule({"lora": [Phase(lr_factor=0.1)]})
    fit = trainer(tmp_path, schedule)
    with pytest.raises(KeyError, match="broken row"):
        fit.fit(Dies(lr=0.5), loader(3))
    assert {group["lr"] for group in fit.optimizers[0].param_groups} == {0.5}


def test_the_settings_are_logged(tmp_path):
    schedule = GateSchedule({"lora": [Phase(until=1, state="closed"), Phase(lr_factor=0.5)]})
    fit = trainer(tmp_path, schedule, max_epochs=2)
    fit.fit(Tiny(), loader(1))
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    header = rows[0].split(",")
    logged = [dict(zip(header, row.split(","), strict=True)) for row in rows[1:]]
    assert [float(r["schedule/lora/open"]) for r in logged] == [0.0, 1.0]
    assert [float(r["schedule/lora/lr_factor"]) for r in logged] == [1.0, 0.5]


# -- what is refused ------------------------------------------------------------------------------


def fails(tmp_path, schedule, module, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, schedule, logger=False).fit(module, loader(1))


def test_an_unknown_method_names_the_nearest(tmp_path):
    schedule = GateSchedule({"adaptor": [Phase(held=True)]})
    fails(tmp_path, schedule, Tiny(), "'adaptor': did you mean 'adapter'")


def test_an_ungated_method_cannot_close(tmp_path):
    schedule = GateSchedule({"lora": [Phase(until=1, state="closed")]})
    fails(tmp_path, schedule, Tiny(plan=Plan.uniform(LoRA())), r"gate=Gate\(learned=False\)")


def test_a_method_with_a_gate_in_some_blocks_only_cannot_close(tmp_path):
    plan = Plan([Group([LoRA(gate=Gate())], blocks=[0]), Group([LoRA()], blocks=[1])])
    schedule = GateSchedule({"lora": [Phase(until=1, state="closed")]})
    fails(tmp_path, schedule, Tiny(plan=plan), "has no gates in some blocks")


@pytest.mark.slow
def test_an_ungated_method_can_be_held(tmp_path):
    module = Tiny(plan=Plan.uniform(LoRA()))
    fit = trainer(tmp_path, GateSchedule({"lora": [Phase(held=True)]}))
    before, after = weights_before_and_after(module, "lora", lambda: fit.fit(module, loader(2)))
    assert all_equal(before, after)


def test_a_gate_without_weights_can_be_closed(tmp_path):
    plan = Plan.uniform(LoRA(gate=Gate(learned=False)), Adapter())
    watch = Watch()
    schedule = GateSchedule({"lora": [Phase(until=1, state="closed")]}, unit="step")
    trainer(tmp_path, schedule, watch).fit(Tiny(plan=plan), loader(2))
    assert [seen["00/lora.query"] for seen in watch.open] == [0.0, 1.0]
    assert [seen["00/lora.query"] for seen in watch.buffers] == [0.0, 1.0]


def test_one_group_for_all_says_how_to_name_them(tmp_path):
    module = Tiny(optimizer="one group")
    schedule = GateSchedule({"lora": [Phase(lr_factor=0.5)]})
    fails(tmp_path, schedule, module, r"\['lora'\] a learning-rate .*parameter_groups\(\)")
    held = GateSchedule({"lora": [Phase(held=True)]})  # which needs no groups
    trainer(tmp_path, held, logger=False).fit(module, loader(1))


def test_an_unnamed_group_of_one_method_will_do(tmp_path):
    class Unnamed(Tiny):
        def configure_optimizers(self):
            groups = self.attachment.parameter_groups()
            return torch.optim.SGD([{"params": p} for p in groups.values()], lr=0.1)

    module = Unnamed()
    module.configure_model()
    before = copies(module.attachment.parameter_groups()["lora"])
    schedule = GateSchedule({"lora": [Phase(lr_factor=0.0)]})
    trainer(tmp_path, schedule, logger=False).fit(module, loader(2))
    assert all_equal(before, copies(module.attachment.parameter_groups()["lora"]))


def test_a_module_without_attachment_says_what_to_add(tmp_path):
    class Plain(Tiny):
        def configure_model(self):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    fails(tmp_path, GateSchedule(), Plain(), "add PELTCallback")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "epochs"}, "did you mean 'epoch'"),
        ({"prune_below": 1.5}, "between 0 and 1"),
        ({"prune_after": 0}, "at least one validation"),
        ({"phases": {"lora": [Phase(until=2), Phase(until=1)]}}, "must increase"),
        ({"phases": {"lora": [{"stat": "open"}]}}, "did you mean 'state'"),
    ],
)
def test_what_a_schedule_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        GateSchedule(**options)


# -- pruning --------------------------------------------------------------------------------------


class Low(Callback):
    """Pull one gate down to sigmoid(-6) = 0.0025, for every example."""

    def __init__(self, name: str = "01/adapter") -> None:
        self.name = name

    def on_fit_start(self, trainer, pl_module):
        weight, bias = pl_module.attachment.gates[self.name].parameters()
        with torch.no_grad():
            weight.zero_()
            bias.fill_(-6.0)


def prune(after: int = 2, **phases: list[Phase]) -> GateSchedule:
    return GateSchedule(phases, prune_below=0.05, prune_after=after)


def test_a_gate_that_stays_low_is_closed_permanently_and_reported(tmp_path, caplog):
    module, schedule, watch = Tiny(lr=1e-4), prune(after=2), Watch()
    fit = trainer(tmp_path, schedule, Low(), watch, max_epochs=3, num_sanity_val_steps=1)
    with caplog.at_level("INFO"):
        fit.fit(module, loader(1), loader(2, seed=1))
    assert [seen["01/adapter"] for seen in watch.open] == [1.0, 1.0, 0.0]
    assert schedule.pruned == ["01/adapter"]
    assert "closes 01/adapter permanently" in caplog.text
    assert float(fit.callback_metrics["schedule/pruned"]) == 1.0
    others = [g for name, g in module.attachment.gates.items() if name != "01/adapter"]
    assert others
    assert all(gate.open == 1.0 for gate in others)


def test_a_gate_that_recovers_starts_anew(tmp_path):
    class Recovers(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            _, bias = pl_module.attachment.gates["01/adapter"].parameters()
            with torch.no_grad():
                bias.fill_(6.0 if trainer.current_epoch == 1 else -6.0)

    schedule = prune(after=2)
    fit = trainer(tmp_path, schedule, Low(), Recovers(), max_epochs=3)
    fit.fit(Tiny(lr=1e-4), loader(1), loader(1, seed=1))
    assert schedule.pruned == []
    assert schedule.state_dict()["below"]["01/adapter"] == 1


def test_a_gate_that_the_schedule_shuts_is_not_pruned(tmp_path):
    schedule = prune(after=1, adapter=[Phase(until=2, state="closed")])
    trainer(tmp_path, schedule, max_epochs=2).fit(Tiny(), loader(1), loader(1))
    assert schedule.pruned == []


def test_validating_outside_of_a_fit_prunes_nothing(tmp_path):
    schedule, module = prune(after=1), Tiny()
    trainer(tmp_path, schedule, Low()).validate(module, loader(1))
    assert schedule.pruned == []


def test_pruning_comes_before_the_checkpoint_of_the_same_validation(tmp_path):
    save = ModelCheckpoint(tmp_path / "saved", save_top_k=-1)
    schedule = prune(after=1)
    fit = trainer(tmp_path, save, schedule, Low(), enable_checkpointing=True)
    fit.fit(Tiny(lr=1e-4), loader(1), loader(1))
    saved = torch.load(save.best_model_path, weights_only=True)
    assert saved["callbacks"]["GateSchedule"]["pruned"] == ["01/adapter"]


# -- resume ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_schedule_goes_on_where_it_was(tmp_path):
    """Interrupted after epoch 2 of 4: weights, openness and pruned gates as uninterrupted."""

    def run(folder: Path, epochs: int, resume: Path | None = None):
        phases = [Phase(until=1, state="closed"), Phase(until=4, state="ramp", lr_factor=0.5)]
        module, watch = Tiny(), Watch()
        # held in the checkpoint: their optimizer state does not exist yet
        schedule = prune(after=2, lora=phases, gate=[Phase(until=3, held=True)])
        callbacks = (schedule, watch) if resume else (schedule, watch, Low())
        fit = trainer(folder, *callbacks, max_epochs=epochs)
        fit.fit(module, loader(2), loader(1, seed=1), ckpt_path=resume, weights_only=True)
        return fit, module, schedule, watch

    _, whole, schedule, everything = run(tmp_path / "whole", 4)
    assert schedule.pruned == ["01/adapter"]
    first, *_ = run(tmp_path / "first", 2)
    first.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed, again, rest = run(tmp_path / "rest", 4, resume=tmp_path / "half.ckpt")
    assert again.pruned == ["01/adapter"]
    assert rest.open == everything.open[4:]
    for (name, a), b in zip(whole.net.named_parameters(), resumed.net.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_pruned_gates_are_closed_even_if_the_weights_know_nothing_of_it(tmp_path):
    schedule = prune()
    schedule.load_state_dict({"pruned": ["00/adapter"], "below": {"00/adapter": 2}})
    watch = Watch()
    trainer(tmp_path, schedule, watch).fit(Tiny(), loader(1))
    assert watch.open[0]["00/adapter"] == 0.0
    assert watch.buffers[0]["00/adapter"] == 0.0


# -- YAML, and two processes ----------------------------------------------------------------------

YAML = """
trainer:
  logger: false
  callbacks:
    - class_path: lightning_pelt.callbacks.gate_schedule.GateSchedule
      init_args:
        unit: step
        prune_below: 0.05
        phases:
          lora:
            - {until: 2, state: closed}
            - {until: 6, state: ramp, start: 0.25, lr_factor: 0.5}
          adapter:
            - held: true
"""


def command_line(folder: Path, text: str) -> LightningCLI:
    (folder / "run.yaml").write_text(text)
    return LightningCLI(
        Tiny,
        args=["--config", str(folder / "run.yaml")],
        run=False,
        save_config_callback=None,
        auto_configure_optimizers=False,
    )


def test_a_recipe_holds_a_schedule(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lightning-pelt"])
    callbacks = command_line(tmp_path, YAML).trainer.callbacks
    (made,) = [callback for callback in callbacks if isinstance(callback, GateSchedule)]
    assert made.phases == {
        "lora": [
            Phase(until=2, state="closed"),
            Phase(until=6, state="ramp", start=0.25, lr_factor=0.5),
        ],
        "adapter": [Phase(held=True)],
    }
    assert (made.unit, made._pruning.below, made._pruning.after) == ("step", 0.05, 3)


def test_a_recipe_with_a_misspelt_state_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lightning-pelt"])
    with pytest.raises(SystemExit):
        command_line(tmp_path, YAML.replace("state: closed", "state: closd"))
    assert "closd" in capsys.readouterr().err


class RanksAgree(Callback):
    """Asserts inside the processes, where the trained weights are."""

    def on_train_end(self, trainer, pl_module):
        own = torch.cat([p.detach().flatten() for p in pl_module.parameters() if p.requires_grad])
        everywhere = pl_module.all_gather(own)
        assert torch.equal(everywhere[0], everywhere[1])
        schedule = next(c for c in trainer.callbacks if isinstance(c, GateSchedule))
        assert schedule.pruned == ["01/adapter"]
        assert pl_module.attachment.gates["01/adapter"].open == 0.0
        assert trainer.global_step == 4


@pytest.mark.slow
def test_two_processes_close_hold_and_prune_alike(tmp_path):
    schedule = prune(after=2, lora=[Phase(until=1, state="closed"), Phase(lr_factor=0.5)])
    fit = trainer(
        tmp_path,
        schedule,
        Low(),
        RanksAgree(),
        strategy="ddp_fork",
        devices=2,
        max_epochs=2,
    )
    fit.fit(Tiny(), loader(4), loader(2, seed=1))


@pytest.mark.parametrize("plan", [Plan.uniform(LoRA(r=2)), HeadOnly()], ids=["ungated", "head"])
def test_pruning_without_gates_is_refused_at_the_start(tmp_path, plan):
    watch = Steps()
    run = trainer(tmp_path, GateSchedule(prune_below=0.1), watch)
    with pytest.raises(ValueError, match=r"prune_below=0\.1 has nothing to prune.*gate=Gate\(\)"):
        run.fit(Tiny(plan), loader(1), loader(1))
    assert watch.count == 0


def test_a_plan_without_gates_may_have_a_schedule_without_pruning(tmp_path):
    schedule = GateSchedule({"lora": [Phase(held=True)]})
    trainer(tmp_path, schedule).fit(Tiny(Plan.uniform(LoRA(r=2))), loader(1), loader(1))
    assert schedule.pruned == []


@pytest.mark.parametrize("options", [{}, {"limit_val_batches": 0}], ids=["no loader", "no batch"])
def test_pruning_without_validations_is_a_warning(tmp_path, options):
    loaders = [loader(1)] * (1 + bool(options))
    with pytest.warns(UserWarning, match="prunes after validations, and this fit has none"):
        trainer(tmp_path, GateSchedule(prune_below=0.1), **options).fit(Tiny(), *loaders)


class Steps(Callback):
    """Counts batches."""

    count = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.count += 1
