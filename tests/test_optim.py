from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup

from lightning_pelt.optim import linear_warmup_decay, named_groups


def optimizer(*rates: float) -> AdamW:
    return AdamW([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in rates])


def curve(scheduler: LambdaLR, steps: int) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0, 3, 10])
def test_the_curve_is_that_of_transformers(warmup: int) -> None:
    ours, theirs = optimizer(1e-3, 5e-4), optimizer(1e-3, 5e-4)
    found = curve(linear_warmup_decay(ours, warmup=warmup, total_steps=10), 13)
    assert found == curve(get_linear_schedule_with_warmup(theirs, warmup, 10), 13)


def test_a_fraction_is_a_share_of_all_steps() -> None:
    rates = curve(linear_warmup_decay(optimizer(1.0), warmup=0.25, total_steps=8), 9)
    assert [row[0] for row in rates] == pytest.approx(
        [0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]
    )


@pytest.mark.parametrize(
    ("warmup", "total", "said"),
    [
        (0, float("inf"), "set max_steps or max_epochs"),
        (0, -1, "total_steps is -1"),
        (-2, 10, "not -2"),
        (1.5, 10, r"not 1\.5"),
    ],
)
def test_impossible_curves_are_refused(warmup: float, total: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        linear_warmup_decay(optimizer(1.0), warmup=warmup, total_steps=total)


def test_the_curve_pickles_and_its_state_is_plain(tmp_path: Path) -> None:
    scheduler = linear_warmup_decay(optimizer(1.0), warmup=2, total_steps=6)
    expected = curve(pickle.loads(pickle.dumps(scheduler)), 6)
    curve(scheduler, 3)
    torch.save(scheduler.state_dict(), tmp_path / "state.pt")
    resumed = linear_warmup_decay(optimizer(1.0), warmup=2, total_steps=6)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.optimizer.step()
    resumed.step()
    assert resumed.get_last_lr() == expected[4]


def test_a_longer_run_resumes_on_the_longer_curve() -> None:
    short = linear_warmup_decay(optimizer(1.0), total_steps=4)
    curve(short, 4)
    longer = linear_warmup_decay(optimizer(1.0), total_steps=8)
    longer.load_state_dict(short.state_dict())
    longer.optimizer.step()
    longer.step()
    assert longer.get_last_lr() == [pytest.approx(3 / 8)]


class Attached:
    """The one thing of an attachment that is asked for."""

    def __init__(self, *names: str) -> None:
        self.groups = {name: [torch.nn.Parameter(torch.ones(2))] for name in names}

    def parameter_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        return self.groups


def test_every_method_has_its_named_group() -> None:
    attachment: Any = Attached("lora", "prefix", "bitfit", "gate", "head")
    groups = named_groups(attachment, lr=1e-3, lrs={"prefix": 2e-4, "gate": 5e-2}, weight_decay=0.1)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("lora", 1e-3, 0.1),
        ("prefix", 2e-4, 0.1),
        ("bitfit", 1e-3, 0.0),
        ("gate", 5e-2, 0.0),
        ("head", 1e-3, 0.1),
    ]
    for group in groups:
        assert group["params"] is attachment.groups[group["name"]]
    built = AdamW(groups, lr=9.0, weight_decay=9.0)  # a group's own values win
    assert [g["lr"] for g in built.param_groups] == [1e-3, 2e-4, 1e-3, 5e-2, 1e-3]
    assert [g["weight_decay"] for g in built.param_groups] == [0.1, 0.1, 0.0, 0.0, 0.1]


def test_decay_does_not_move_a_gate_that_learns_nothing() -> None:
    attachment: Any = Attached("lora", "gate")
    built = AdamW(named_groups(attachment, lr=0.1, weight_decay=0.5))
    for group in built.param_groups:
        group["params"][0].grad = torch.zeros(2)
    built.step()
    assert attachment.groups["lora"][0].tolist() == pytest.approx([0.95, 0.95])
    assert attachment.groups["gate"][0].tolist() == [1, 1]


def test_a_rate_for_an_unknown_group_names_the_nearest() -> None:
    attachment: Any = Attached("lora", "adapter", "gate")
    with pytest.raises(ValueError, match="did you mean 'adapter'"):
        named_groups(attachment, lr=1e-3, lrs={"adaptor": 1e-4})


def test_nothing_to_train_is_refused() -> None:
    attachment: Any = Attached()
    with pytest.raises(ValueError, match="nothing to train"):
        named_groups(attachment, lr=1e-3)
