"""Parameter groups, the weight decay that methods declare, and transformers' linear schedule."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup

from lightning_pelt import IA3, Adapter, BitFit, Gate, LoRA, Plan, UniPELT, attach
from lightning_pelt.testing import tiny_bert
from lightning_pelt.training.param_groups import named_groups, schedule_steps

# -- the learning rate ----------------------------------------------------------------------------


def optimizer(*rates: float) -> AdamW:
    return AdamW([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in rates])


def schedule(*rates: float, warmup: float = 0, total: float) -> LambdaLR:
    return get_linear_schedule_with_warmup(optimizer(*rates), *schedule_steps(warmup, total))


def curve(scheduler: LambdaLR, steps: int) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def formula(step: int, warmup: float, total: float) -> float:
    """Share of the peak rate: up to 1 over the warmup, down to 0 at ``total``, never below."""
    warm = round(warmup * total if warmup < 1 else warmup)
    if step < warm:
        return step / warm
    return max(0.0, (int(total) - step) / max(1, int(total) - warm))


@pytest.mark.parametrize("total", [1, 10, 10.0, 37])
@pytest.mark.parametrize("warmup", [0, 0.06, 0.25, 0.5, 1, 3, 10, 50])
def test_the_curve_rises_linearly_and_falls_linearly(warmup: float, total: float) -> None:
    found = curve(schedule(1e-3, 5e-4, warmup=warmup, total=total), int(total) + 3)
    shares = [formula(step, warmup, total) for step in range(int(total) + 3)]
    assert found == [[1e-3 * share, 5e-4 * share] for share in shares]


def test_a_fraction_is_a_share_of_all_steps() -> None:
    rates = curve(schedule(1.0, warmup=0.25, total=8), 9)
    assert [row[0] for row in rates] == pytest.approx(
        [0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]
    )


@pytest.mark.parametrize(
    ("warmup", "total", "message"),
    [
        (0, float("inf"), "total_steps is inf.* set max_steps or max_epochs"),
        (0, -1, "total_steps is -1"),
        (-2, 10, "not -2"),
        (1.5, 10, r"not 1\.5"),
    ],
)
def test_impossible_curves_are_refused(warmup: float, total: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule_steps(warmup, total)


def test_the_curve_pickles_and_its_state_is_plain(tmp_path: Path) -> None:
    scheduler = schedule(1.0, warmup=2, total=6)
    expected = curve(pickle.loads(pickle.dumps(scheduler)), 6)
    curve(scheduler, 3)
    torch.save(scheduler.state_dict(), tmp_path / "state.pt")
    resumed = schedule(1.0, warmup=2, total=6)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.optimizer.step()
    resumed.step()
    assert resumed.get_last_lr() == expected[4]


def test_a_longer_run_resumes_on_the_longer_curve() -> None:
    """The state holds no curve: a resumed run that is longer does not end where the old one did."""
    short = schedule(1.0, total=4)
    curve(short, 4)
    longer = schedule(1.0, total=8)
    longer.load_state_dict(short.state_dict())
    longer.optimizer.step()
    longer.step()
    assert longer.get_last_lr() == [pytest.approx(3 / 8)]


# -- the groups -----------------------------------------------------------------------------------


def groups_of(plan: Plan, **options: Any) -> list[dict[str, Any]]:
    return named_groups(attach(tiny_bert(), plan), **{"lr": 1e-3, "weight_decay": 0.1, **options})


def decay(plan: Plan, **options: Any) -> dict[str, float]:
    return {group["name"]: group["weight_decay"] for group in groups_of(plan, **options)}


def test_every_method_has_its_named_group() -> None:
    attachment = attach(tiny_bert(), UniPELT([LoRA(), BitFit()]))
    groups = named_groups(attachment, lr=1e-3, lrs={"bitfit": 2e-4, "gate": 5e-2}, weight_decay=0.1)
    expected = {
        "lora": (1e-3, 0.1),
        "bitfit": (2e-4, 0.0),
        "gate": (5e-2, 0.0),
        "head": (1e-3, 0.1),
    }
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in groups} == expected
    for group, parameters in zip(groups, attachment.parameter_groups().values(), strict=True):
        assert all(p is q for p, q in zip(group["params"], parameters, strict=True))
    built = AdamW(groups, lr=9.0, weight_decay=9.0)  # a group's own values win
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in built.param_groups} == expected


def test_weight_decay_follows_the_method_and_not_its_name() -> None:
    plan = Plan.uniform(BitFit(name="biases"), Adapter(name="bitfit"), IA3(name="scales"))
    assert decay(plan) == {"biases": 0.0, "bitfit": 0.1, "scales": 0.0, "head": 0.1}


def test_norms_and_gates_get_no_decay() -> None:
    assert decay(UniPELT([LoRA()], norms=True)) == {
        "lora": 0.1,
        "gate": 0.0,
        "norm": 0.0,
        "head": 0.1,
    }


def test_an_explicit_list_of_groups_without_decay_wins() -> None:
    plan = Plan.uniform(BitFit(gate=Gate()), Adapter())
    assert decay(plan, no_decay=["adapter", "unknown"]) == {
        "bitfit": 0.1,
        "adapter": 0.0,
        "gate": 0.1,
        "head": 0.1,
    }
    assert set(decay(plan, no_decay=[]).values()) == {0.1}


def test_decay_does_not_move_a_gate_whose_gradient_is_zero() -> None:
    attachment = attach(tiny_bert(), UniPELT([Adapter()]))
    built = AdamW(named_groups(attachment, lr=0.1, weight_decay=0.5))
    before = {g["name"]: [p.detach().clone() for p in g["params"]] for g in built.param_groups}
    for group in built.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    built.step()
    for group in built.param_groups:
        factor = 1.0 if group["name"] == "gate" else 0.95  # 1 - lr * weight_decay
        for parameter, old in zip(group["params"], before[group["name"]], strict=True):
            torch.testing.assert_close(parameter.detach(), factor * old)


def test_a_rate_for_an_unknown_group_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'adapter'"):
        groups_of(Plan.uniform(LoRA(), Adapter()), lrs={"adaptor": 1e-4})


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        named_groups(attach(tiny_bert(), Plan(), head=[]), lr=1e-3)
