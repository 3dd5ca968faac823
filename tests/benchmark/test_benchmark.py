"""The step-time benchmark on a tiny model, and its arithmetic. No test depends on real times."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from lightning_pelt.benchmark import trunk, variants
from lightning_pelt.benchmark.__main__ import main
from lightning_pelt.benchmark.measure import plan_cost, ratio
from lightning_pelt.benchmark.plans import FLOOR, FULL, PLANS, preparation
from lightning_pelt.benchmark.timing import Setting, StepTime, TimedTraining, busy_seconds

TINY = Setting(blocks=1, width=48, batch=2, length=8, threads=1)


SHRUNK = (
    "--blocks 1 --width 48 --batch 2 --length 8 --threads 1 --rounds 1 --steps 1 --monitor-every 1"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "plans",
    [("unipelt-apl", "xpeft-100", "adapter"), pytest.param(PLANS, marks=pytest.mark.nightly)],
)
def test_a_shrunk_run_prints_every_plan_and_writes_what_it_prints(
    plans: Iterable[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = main([*SHRUNK.split(), "--json", str(tmp_path / "b.json"), "--plans", *plans])
    printed = capsys.readouterr().out
    first_words = [line.split()[0].rstrip("*") for line in printed.splitlines() if line.split()]
    assert {FLOOR, FULL, *plans} <= set(first_words)
    assert "\nxpeft-100 / adapter: time " in printed
    assert "GateMonitor every 1 steps" in printed
    written = json.loads((tmp_path / "b.json").read_text())
    assert written == figures
    assert written["plans"][FLOOR]["floor"]["median"] == 1.0
    assert written["plans"][FULL]["full"]["median"] == 1.0
    # Gradients and two moments of all weights, compared with those of a head of two classes.
    assert written["plans"][FULL]["memory"] > written["plans"][FLOOR]["memory"]


def test_an_unknown_plan_raises_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--plans", "lorra"])
    assert "did you mean 'lora'" in capsys.readouterr().err


def test_the_floor_trains_the_head_alone_and_runs_the_whole_backward() -> None:
    floor = TimedTraining(preparation(FLOOR), TINY)
    seen = []
    layer = floor.model.bert.encoder.layer[0]
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    floor.time_steps(1)
    assert seen == ["backward"]
    trained = {name for name, p in floor.model.named_parameters() if p.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("name", PLANS)
def test_a_step_changes_what_the_plan_trains_and_nothing_else(name: str) -> None:
    training = TimedTraining(preparation(name), TINY)
    before = {n: p.detach().clone() for n, p in training.model.named_parameters()}
    trained = {n for n, p in training.model.named_parameters() if p.requires_grad}
    for _ in range(2):  # LoRA's A moves once its B has left zero
        training.time_steps(1)
    after = dict(training.model.named_parameters())
    assert {n for n, p in after.items() if not torch.equal(p, before[n])} == trained


def test_ratio_is_taken_round_by_round() -> None:
    result = ratio([2.0, 3.0, 8.0], [1.0, 3.0, 2.0])  # 2, 1, 4
    assert (result.low, result.median, result.high, result.least) == (1.5, 2.0, 3.0, 2.0)


def _times(*walls: float, load: dict[int, float] | None = None) -> list[StepTime]:
    return [StepTime(wall, wall, (load or {}).get(i, 0.0)) for i, wall in enumerate(walls)]


def test_disturbed_rounds_are_left_out_of_both_sides_and_counted() -> None:
    times = {
        FLOOR: _times(1.0, 1.0, 9.0, 1.0, 1.0, load={2: 0.5}),
        FULL: _times(2.0, 2.0, 2.0, 2.0, 2.0),
        "lora": _times(1.5, 1.5, 1.5, 7.0, 1.5, load={3: 0.2}),
    }
    result = plan_cost(times, "lora")
    assert (result.floor.median, result.floor.high) == (1.5, 1.5)  # rounds 0, 1 and 4
    assert (result.full.median, result.full.high) == (0.75, 0.75)  # rounds 0, 1, 2 and 4
    assert (result.disturbed, result.all_rounds) == (1, False)


def test_all_rounds_count_where_too_few_were_quiet() -> None:
    loud = dict.fromkeys(range(5), 1.0)
    times = {
        FLOOR: _times(1.0, 1.0, 1.0, 1.0, 1.0, load=loud),
        FULL: _times(2.0, 2.0, 2.0, 2.0, 2.0),
    }
    result = plan_cost(times, FULL)
    assert result.all_rounds
    assert result.floor.median == 2.0


def test_busy_time_excludes_idle_and_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = tmp_path / "stat"
    #             user nice system idle iowait irq softirq steal guest guest_nice
    stat.write_text("cpu 100 20 30 5000 600 4 5 6 77 88\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    monkeypatch.setattr("os.sysconf", lambda name: 10)
    assert busy_seconds(stat) == 16.5
    assert busy_seconds(tmp_path / "absent") is None


@pytest.mark.parametrize("rank", ["1", "2"])
def test_all_implementations_of_compacter_are_timed(
    rank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = "--adapters 2 --width 32 --bottleneck 8 --tokens 6 --rounds 1 --steps 1 --threads 1"
    ratios = variants.main([*shape.split(), "--rank", rank])
    assert len(ratios) == 6
    assert ratios["dense"].median == 1.0
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in ratios)


@pytest.mark.parametrize("name", ["authors", "one by one", "three stages", "batched", "in factors"])
def test_an_implementation_with_other_values_is_not_timed(name: str) -> None:
    torch.manual_seed(0)
    chain = variants.Chain(2, 16, 8, n=2, rank=1)
    x = torch.randn(3, 16, requires_grad=True)
    variants.check(chain, x)
    right = chain.variants[name]
    chain.variants[name] = lambda x: right(x) + 1e-2
    with pytest.raises(AssertionError, match=name):
        variants.check(chain, x)


@pytest.mark.slow
def test_steps_above_a_trunk(capsys):
    small = {"blocks": 2, "block": 1, "width": 64, "batch": 2, "length": 8, "rounds": 1}
    found = trunk.compare("unipelt", **small, threads=1)
    assert list(found) == ["floor", "unipelt", "unipelt, cached"]
    assert "(blocks - block) / blocks is 0.500" in capsys.readouterr().out
