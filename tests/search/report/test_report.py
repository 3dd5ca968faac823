"""Reports agree with the outcomes of a search, and recipes with the found design."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simulated
import yaml
from scipy import stats
from simulated import TASKS
from small import Sentences

from lightning_pelt import Design
from lightning_pelt.cli import base as cli
from lightning_pelt.data import GLUE
from lightning_pelt.search.final_comparison import FOUND, FinalComparison
from lightning_pelt.search.gate_search import GateSearch, gate_metric
from lightning_pelt.search.greedy_search import FRESH, GreedySearch
from lightning_pelt.search.queue.job import Job, Outcome
from lightning_pelt.search.report import figures, sections
from lightning_pelt.search.report.choices_figure import OptionScore, StageChoice, choices
from lightning_pelt.search.report.race_figure import race_figure
from lightning_pelt.search.report.report import write_report
from lightning_pelt.search.report.summary import (
    CandidateScores,
    candidate_scores,
    comparable_scores,
    plan_title,
    rank_table,
    stage_costs,
)
from lightning_pelt.search.report.winning_recipe import write_recipes
from lightning_pelt.search.search_state import SearchState, StageRecord
from lightning_pelt.search.selection.base import Selection
from lightning_pelt.search.selection.brute_force import BruteForce
from lightning_pelt.search.selection.confirmation import Confirmation
from lightning_pelt.search.selection.racing import Race
from lightning_pelt.search.selection.rules import Racing
from lightning_pelt.search.settings import Settings
from lightning_pelt.search.space import Stage
from lightning_pelt.search.task_settings import FitSettings, TaskSettings

# A whole simulated search is played first.
pytestmark = pytest.mark.slow

SUBSETS = ("B", "L", "P", "AL", "AP", "APB", "PBL")
DIVERGED = "final: L, seed 1"


def settings(**others: Any) -> Settings:
    tasks = {name: TaskSettings(lambda backbone, **_: Sentences(backbone)) for name in TASKS}
    fit = FitSettings(max_steps=10, lrs={"prefix": 1e-2})
    given = {"tasks": tasks, "fit": fit, "search_budget": simulated.BUDGET, **others}
    return Settings("a/backbone", **given)


def score(job: Job) -> float | None:
    wrong = job.label == DIVERGED and job.task == "tone"
    return None if wrong else simulated.score(job)


Played = tuple[GreedySearch, SearchState, dict[str, Outcome]]


@pytest.fixture(scope="module")
def played() -> Played:
    search = simulated.make_search(subsets=SUBSETS)
    return search, *simulated.play(search, score)


@pytest.fixture(scope="module")
def written(played: Played, tmp_path_factory: pytest.TempPathFactory) -> Path:
    search, state, outcomes = played
    folder = tmp_path_factory.mktemp("report")
    return write_report(folder, state, outcomes, settings=settings(), space=search.space)


def section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> dict[str, list[str]]:
    """The tables of a section: cells by the first one of their row, without emphasis."""
    lines = [line for line in text.replace("**", "").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


def numbers(cell: str) -> list[float]:
    return [float(found) for found in re.findall(r"-?\d+\.?\d*", cell)]


def scores_of(played: Played, record: StageRecord, settled: dict[str, str], blocks: range) -> Any:
    """By arm: the mean over tasks in each block, computed from the space and the outcomes."""
    search, _, outcomes = played
    found: dict[str, list[float]] = {arm: [] for arm in record.stage.options}
    for block in blocks:
        for arm, design in search.space.designs(record.stage, settled, block).items():
            plan = design.solution(search.space.anatomy).plan().to_config()
            seed = search.space.block_seed(block)
            keys = [Job(plan, task, seed).key for task in TASKS]
            if all(key in outcomes for key in keys):
                found[arm].append(np.mean([outcomes[key].score for key in keys]))
    return found


def test_the_table_of_a_stage_has_the_means_and_paired_differences_of_its_cells(
    played: Played, written: Path
) -> None:
    record = played[1].records[1]
    assert record.stage.name == "grouping" and record.chosen == "bottleneck"
    text = section(written.read_text(), "S1: how many blocks each group holds")
    found, made = rows(text), scores_of(played, record, {}, range(24))
    leader = made["bottleneck"]
    assert list(found)[1] == "bottleneck"  # after the header
    for arm in record.stage.options:
        blocks, mean, behind, verdict, diverged = found[arm]
        arm_stats = next(s for s in record.selection.stats() if s.arm == arm)
        own = made[arm][: arm_stats.blocks]
        assert (int(blocks), int(diverged)) == (len(own), 0)
        assert float(mean) == pytest.approx(np.mean(own), abs=0.006)
        if arm != "bottleneck":
            gap = np.subtract(leader[: len(own)], own).mean()
            assert numbers(behind)[0] == pytest.approx(gap, abs=0.006)
            assert verdict == f"dropped after {blocks}"
    assert found["bottleneck"][3] == "chosen"


def test_the_winner_is_compared_again_on_fresh_blocks(played: Played, written: Path) -> None:
    record = played[1].records[1]
    assert record.confirmation is not None
    runner_up = record.confirmation.arms[1]
    first = 2 * FRESH
    made = scores_of(played, record, {}, range(first, first + 8))
    gaps = np.subtract(made["bottleneck"], made[runner_up])
    low, high = stats.t.interval(0.9, 7, gaps.mean(), stats.sem(gaps))
    text = section(written.read_text(), "S1: how many blocks each group holds")
    sentence = next(line for line in text.splitlines() if line.startswith("Compared again"))
    assert numbers(sentence.split(": ")[1]) == pytest.approx(
        [np.mean(made["bottleneck"]), np.mean(made[runner_up]), gaps.mean(), low, high, 90],
        abs=0.006,
    )
    assert "confirms" in sentence


def test_the_final_comparison_has_means_spreads_ranks_and_paired_intervals(
    played: Played, written: Path
) -> None:
    _, state, outcomes = played
    assert state.comparison is not None
    found = rows(section(written.read_text(), "Final comparison"))
    scores = {
        plan_title(c.name): np.array(
            [[outcomes[job.key].score for job in c.jobs[task]] for task in TASKS], dtype=float
        )
        for c in state.comparison.candidates
    }
    assert list(scores) == ["found design", "LoRA", "adapter", "prefix", "BitFit"]
    ranks = stats.rankdata([-np.nanmean(s, 1) for s in scores.values()], axis=0)
    shown = rows(
        section(written.read_text(), "Final comparison").split("The found design minus")[0]
    )
    for (name, made), place in zip(scores.items(), ranks, strict=True):
        parameters, *tasks, mean, rank = shown[name]
        for task, each, ranked in zip(tasks, made, place, strict=True):
            expected = [np.nanmean(each), np.nanstd(each, ddof=1), ranked]
            assert numbers(task) == pytest.approx(expected, abs=0.006)
        each = made.mean(0)
        assert numbers(mean) == pytest.approx(
            [np.nanmean(each), np.nanstd(each, ddof=1)], abs=0.006
        )
        assert float(rank) == pytest.approx(np.mean(place), abs=0.006)
        assert ("under budget" in parameters) == (name == "BitFit")  # its size is what it is
        if name != "found design":
            gaps = (scores["found design"] - made).mean(0)
            gaps = gaps[np.isfinite(gaps)]
            low, high = stats.t.interval(0.95, len(gaps) - 1, gaps.mean(), stats.sem(gaps))
            difference, result, seeds = found[name]
            assert numbers(difference) == pytest.approx([gaps.mean(), low, high], abs=0.006)
            assert int(seeds) == len(gaps) == (2 if name == "LoRA" else 3)
            assert result == ("ahead" if low > 0 else "behind" if high < 0 else "within noise")
    assert "1 of the fits diverged or are not finished" in written.read_text()


def test_the_cost_counts_every_fit_once(played: Played, written: Path) -> None:
    _, state, outcomes = played
    stages = stage_costs(state, outcomes, len(TASKS))
    assert sum(stage.fits for stage in stages) == len(outcomes)
    assert sum(stage.seconds for stage in stages) == pytest.approx(
        sum(outcome.seconds for outcome in outcomes.values())
    )
    for stage, record in zip(stages, state.records, strict=False):
        assert stage.fits + stage.reused == len(record.jobs)
    by_name = {stage.stage: stage for stage in stages}
    assert by_name["grouping"].paper_fits == 4 * 100 * 2
    assert by_name["groups"].paper_fits == 9 * 100 * 2
    assert by_name["swaps"].paper_fits == 0
    text = section(written.read_text(), "Cost")
    assert f"{len(outcomes):,} fits" in text and "1 of them diverged" in text
    assert [int(n.replace(",", "")) for n in rows(text)["grouping"][:2]] == [
        by_name["grouping"].fits,
        0,
    ]


def test_the_report_explains_merged_groupings_and_options_left_out(
    played: Played, written: Path
) -> None:
    text = written.read_text()
    assert "uniform and spindle are one grouping at depth 6: 1, 2, 2, 1." in text
    assert "S0 is weak by construction" in section(text, "S0: designs without groups")
    last = section(text, "S4: methods of group 4")
    assert re.search(r"- B: [\d,]+ parameters instead of 12,000", last)
    assert rows(section(text, "Choices"))["S1: how many blocks each group holds"] == [
        "bottleneck",
        "spindle",
    ]


def test_the_found_design_is_shown_block_by_block(played: Played, written: Path) -> None:
    state = played[1]
    assert state.found is not None
    assert state.found.strategies == ("AL", "AP", "APB", "PBL")
    text = section(written.read_text(), "The found design")
    found = rows(text)
    blocks = state.found.solution(simulated.anatomy()).blocks
    assert [found[f"encoder {i}"][0] for i in range(6)] == ["1", "1", "2", "3", "4", "4"]
    assert [int(found[f"encoder {i}"][2].replace(",", "")) for i in range(6)] == [
        block.total for block in blocks
    ]
    assert f"{sum(block.total for block in blocks):,} of 12,000 parameters" in text


def test_the_folder_has_every_figure_of_the_report_and_no_other_file(written: Path) -> None:
    named = re.findall(r"!\[.*?\]\((.*?)\)", written.read_text())
    assert {path.name for path in written.parent.iterdir()} == {*named, "report.md"}
    assert {"design.png", "comparison.png", "choices.png", "cost.png", "swaps.png"} <= {*named}


@pytest.mark.slow
def test_a_report_can_be_written_before_the_search_is_finished(tmp_path: Path) -> None:
    search = simulated.make_search(subsets=SUBSETS)
    state, outcomes = simulated.play(search, until="allocation")
    path = write_report(tmp_path, state, outcomes, settings=settings(), space=search.space)
    text = path.read_text()
    wanted = f"waiting for {len(state.wanted)} fits of: S2: how the budget is shared"
    assert wanted in text and "The found design" not in text
    assert rows(section(text, "Choices"))["S1: how many blocks each group holds"][0] == "bottleneck"
    assert "Not settled yet" in section(text, "S2: how the budget is shared")
    nothing = write_report(tmp_path, search.replay({}), {}, settings=settings(), space=search.space)
    assert "0 fits took 0 s" in nothing.read_text()


def test_a_report_that_fails_keeps_the_previous_one(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, state, _ = played
    begun = SearchState(records=state.records[:0], wanted=state.wanted)
    path = write_report(tmp_path, begun, {}, settings=settings(), space=search.space)
    before = path.read_text()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space"):
            write_report(tmp_path, begun, {}, settings=settings(name="other"), space=search.space)
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["report.md"]


def test_the_report_of_a_gated_search_has_its_gates_and_both_runs(tmp_path: Path) -> None:
    space = simulated.make_search(subsets=SUBSETS).space
    gates = {"adapter": 0.9, "prefix": 0.2, "bitfit": 0.1, "lora": 0.7}
    metrics = {gate_metric("encoder", b, name): g for b in range(6) for name, g in gates.items()}

    def compare(found: Design) -> FinalComparison:
        return FinalComparison(found, space.anatomy, simulated.BUDGET, TASKS, (0, 1), ("L",))

    search, outcomes = GateSearch(space, TASKS, compare), dict[str, Outcome]()
    while not (state := search.replay(outcomes)).finished:
        made = settings(method="gates")
        write_report(tmp_path, state, outcomes, settings=made, space=space)
        outcomes |= {c.key: Outcome(simulated.score(c), 5.0, metrics) for c in state.wanted}
    text = write_report(tmp_path, state, outcomes, settings=made, space=space).read_text()
    assert rows(section(text, "Gates"))["group 3"] == ["0.900", "0.200", "0.100", "0.700", "AL"]
    cost = rows(section(text, "Cost"))
    assert (cost["gated run"][0], cost["final comparison"][0]) == ("2", "8")
    assert "The paper's protocol" not in text


def test_the_table_names_an_option_that_diverges() -> None:
    race = Race(["a", "b"], Racing(first=8, cap=8))
    while asked := race.wanted():
        for arm, block in asked:
            race.tell(arm, block, None if arm == "b" else 70.0)
    found = rows("\n".join(sections.arm_table(race, "a")))
    assert found["b"] == ["8", "-", "-", "diverged too often", "8"]


# -- sentences ------------------------------------------------------------------------------------


def told(selection: Selection, gaps: dict[str, float], spread: float = 0.1) -> StageRecord:
    """A finished selection with means of 70 plus ``gaps``."""
    while asked := selection.wanted():
        for arm, block in asked:
            noise = spread * simulated.noise(arm, block)
            selection.tell(arm, block, 70 + gaps[arm] + noise)
    result = selection.result()
    return StageRecord(Stage("grouping", selection.arms), selection, chosen=result.winner)


def test_a_tie_names_the_tied_and_the_zone() -> None:
    record = told(Race(["plain", "fancy"], Racing(tie=0.5)), {"plain": 0.0, "fancy": 0.05})
    sentence = sections.verdict(record)
    assert "plain and fancy were shown to be within 0.5 points" in sentence
    assert "**plain** won as the simplest" in sentence


def test_a_race_that_ran_out_of_blocks_is_reported_as_noise() -> None:
    race = Race(["a", "b"], Racing(first=4, step=4, cap=8, tie=0.0))
    sentence = sections.verdict(told(race, {"a": 0.0, "b": 0.05}, spread=3))
    assert "replicates ran out" in sentence and "within noise" in sentence and "a and b" in sentence


def test_brute_force_reports_which_leads_are_noise() -> None:
    record = told(BruteForce(["a", "b", "c"], 10), {"a": 2.0, "b": 1.99, "c": 0.0})
    sentence = sections.verdict(record)
    winner, near = ("a", "b") if record.chosen == "a" else ("b", "a")
    assert sentence == (
        f"**{winner}** has the best mean of 10 designs each. Its difference to {near} is within "
        "noise."
    )


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [(-2.0, "confirms"), (0.0, "within noise: the choice is kept"), (2.0, "**b** replaces it")],
)
def test_fresh_blocks_confirm_or_overturn_the_choice(gain: float, sentence: str) -> None:
    record = told(Confirmation("a", ["b"], blocks=8), {"a": 0.0, "b": gain}, spread=0.5)
    record.confirmation = record.selection  # type: ignore[assignment]
    assert sentence in sections.confirmation(record)


def test_the_table_of_gates_has_the_kept_methods() -> None:
    lines = sections.gates({"group 1": {"A": 0.7, "L": 0.2}}, {"group 1": "A"})
    assert rows("\n".join(lines))["group 1"] == ["0.700", "0.200", "A"]


def test_equal_scores_share_a_rank_and_missing_ones_have_none() -> None:
    scores = {"a": 1.0, "b": 3.0, "c": 1.0, "d": None}
    plans = [CandidateScores(n, n, 1, 1, {"t": [s]}) for n, s in scores.items()]
    assert {k: v for k, v in rank_table(plans)["t"].items() if k != "d"} == {
        "a": 2.5,
        "b": 1.0,
        "c": 2.5,
    }
    assert np.isnan(rank_table(plans)["t"]["d"])
    assert rank_table([]) == {"": {}}


# -- figures -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide() -> StageRecord:
    """A race of fifteen options; most are dropped, at different looks."""
    gaps = {f"APBL{i}": -0.25 * i for i in range(15)}
    return told(Race(list(gaps), Racing(cap=24)), gaps, spread=1.0)


def test_a_race_of_fifteen_options_shows_each_until_it_was_dropped(wide: StageRecord) -> None:
    selection = wide.selection
    figure = race_figure("title", selection.looks, winner=wide.chosen, tie=0.3)
    panels = {axes.get_title(loc="left").strip(): axes for axes in figure.axes if axes.axison}
    assert next(iter(panels)) == wide.chosen and set(panels) == set(selection.arms)
    dropped = selection.result().eliminated
    assert len(dropped) >= 5 and len(set(dropped.values())) > 1
    for arm, axes in panels.items():
        end = axes.lines[-1]
        last = dropped.get(arm, selection.looks[-1].blocks)
        assert list(end.get_xdata()) == [last]
        look = next(look for look in selection.looks if look.blocks == last)
        (each,) = [s for s in look.arms if s.arm == arm]
        assert end.get_ydata()[0] == pytest.approx(-each.behind)
        assert axes.texts[0].get_text() == (
            "won" if arm == wide.chosen
            else f"dropped after {last}" if arm in dropped else "no clear difference"
        )  # fmt: skip


def test_nothing_in_a_race_of_fifteen_options_overlaps(wide: StageRecord) -> None:
    figure = race_figure("title", wide.selection.looks, winner=wide.chosen, tie=0.3)
    figure.canvas.draw()
    panels = [axes for axes in figure.axes if axes.axison]
    assert len(panels) == 15
    titles = [axes._left_title.get_window_extent() for axes in panels]  # type: ignore[attr-defined]
    states = [text.get_window_extent() for axes in panels for text in axes.texts]
    insides = [axes.get_window_extent() for axes in panels]
    for i, j in combinations(range(15), 2):
        assert not titles[i].overlaps(titles[j]) and not states[i].overlaps(states[j])
    for i, j in product(range(15), range(15)):
        assert not states[i].overlaps(insides[j])
        assert i == j or not titles[i].overlaps(insides[j])


def test_the_choices_name_every_option_with_its_interval() -> None:
    better = OptionScore("b", 71.5, 71.5, 71.5, again=73.0)
    worse = OptionScore("a", 70.0, 69.2, 70.8, again=72.0)
    lost = OptionScore("c", float("nan"), float("nan"), float("nan"))
    axes = choices([StageChoice("grouping", [worse, lost, better], "b")]).axes[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["grouping", "b  71.5", "a  70.0", "1 diverged"]
    assert [label.get_fontweight() for label in axes.get_yticklabels()][:3] == [
        "bold", "bold", "normal"
    ]  # fmt: skip
    points = {tuple(p) for drawn in axes.collections for p in np.ma.getdata(drawn.get_offsets())}
    assert {(71.5, 1.0), (70.0, 2.0), (73.0, 1.0), (72.0, 2.0)} <= points
    bars = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata())]
    assert bars == [[69.2, 70.8]], "the leader has no distance from itself"


def test_the_choices_of_a_wide_stage_show_the_best_and_the_chosen_option(wide: StageRecord) -> None:
    scores = comparable_scores(wide.selection)
    options = [OptionScore(name, *numbers) for name, numbers in scores.items()]
    figure = choices([StageChoice("groups", options, "APBL12")])
    labels = figure.axes[0].get_yticklabels()
    names = [label.get_text().split("  ")[0] for label in labels]
    best = sorted(scores, key=lambda name: -scores[name][0])
    assert names[1:8] == [*best[:6], "APBL12"]
    assert names[8].startswith("and 8 more")
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    behind = {s.arm: s for s in wide.selection.stats()}
    lead = behind[wide.selection.looks[-1].leader].mean
    for name, (score, low, high) in scores.items():
        assert score == pytest.approx(lead - behind[name].behind)
        assert (low, high) == pytest.approx((lead - behind[name].high, lead - behind[name].low))


def test_the_comparison_has_a_point_for_each_seed_and_a_bar_at_the_mean(played: Played) -> None:
    _, state, outcomes = played
    assert state.comparison is not None
    plans = candidate_scores(state.comparison, outcomes)
    panels = figures.comparison(plans).axes
    assert [axes.get_title(loc="left") for axes in panels] == [*TASKS, "mean over tasks"]
    lora = panels[1].collections[1]
    assert len(lora.get_offsets()) == 2, "the seed that diverged has no point"
    found = plans[0].scores["tone"]
    assert panels[1].lines[0].get_xdata()[0] == pytest.approx(np.mean(found))  # type: ignore[arg-type]


def test_the_bars_of_the_cost_are_as_long_as_the_counts(played: Played) -> None:
    _, state, outcomes = played
    stages = stage_costs(state, outcomes, 2)
    widths = [bar.get_width() for bar in figures.cost(stages).axes[0].patches]
    drawn = [widths[i : i + 3] for i in range(0, 3 * len(stages), 3)]
    assert drawn == [[s.paper_fits, s.fits, s.reused] for s in stages]


@pytest.mark.parametrize("draw", [choices, figures.comparison, figures.cost])
def test_figures_without_data_are_refused(draw: Any) -> None:
    with pytest.raises(ValueError, match="there is no"):
        draw([])


# -- recipes --------------------------------------------------------------------------------------


class Reading(cli.PELTCLI):
    """``fit`` that parses and builds everything, but does not train."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def test_recipes_parse_and_resolve_to_the_best_plan(played: Played, tmp_path: Path) -> None:
    _, state, outcomes = played
    assert state.comparison is not None
    made = settings(
        tasks={
            "sst2": TaskSettings(lambda b, **k: GLUE(b, "sst2", folder="rows", batch_size=8, **k)),
            "cola": TaskSettings(lambda b, **k: GLUE(b, "cola", folder="rows", **k)),
        },
        fit=FitSettings(max_epochs=3, lr=2e-3, lrs={"prefix": 1e-2, "gate": 1e-1}, warmup=0.1),
        output=str(tmp_path),
    )
    paths = write_recipes(made, state, outcomes)
    assert [path.name for path in paths] == ["winner_sst2.yaml", "winner_cola.yaml"]
    assert paths[0].read_text().startswith("# the found design: the best plan of the search")
    read = cli.main(["fit", f"--config={paths[0]}"], Reading)
    assert isinstance(read.model.plan, Design)
    (job, *_) = state.comparison.candidates[0].jobs["tone"]
    assert read.model.plan.resolved(simulated.anatomy()).to_config() == job.plan
    assert (read.model.lr, read.model.lrs, read.model.warmup) == (2e-3, {"prefix": 1e-2}, 0.1)
    assert (read.datamodule.task, read.datamodule.folder) == ("sst2", "rows")
    assert (read.datamodule.batch_size, read.datamodule.holdout) == (8, None)
    assert read.trainer.max_epochs == 3
    assert read.trainer.checkpoint_callback.monitor == "val/accuracy"
    assert read.trainer.default_root_dir.endswith("runs/winner_sst2")
    assert yaml.safe_load(paths[1].read_text())["data"]["init_args"]["task"] == "cola"


def test_a_recipe_of_steps_fits_and_keeps_its_last_weights(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps are less than an epoch: the recipe must evaluate after the last one."""
    data = tmp_path / "rows"
    data.mkdir()
    lines = [json.dumps({"text": f"film {i}", "label": i % 2}) for i in range(200)]
    for split in ("train", "dev"):
        (data / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    task = TaskSettings(lambda b, **k: GLUE(b, "sst2", folder=str(data), max_length=16, **k))
    made = settings(
        tasks={"sst2": task}, fit=FitSettings(max_steps=3), accelerator="cpu", output=str(tmp_path)
    )
    made = dataclasses.replace(made, backbone=simulated.backbone(tmp_path / "bert"))
    (path,) = write_recipes(made, *played[1:])
    monkeypatch.chdir(tmp_path)
    cli.main(["fit", f"--config={path}", "--trainer.enable_progress_bar=false"])
    assert len([*(tmp_path / "runs" / "winner_sst2").rglob("*.ckpt")]) == 1


def test_recipes_need_a_found_design() -> None:
    with pytest.raises(ValueError, match="not finished"):
        write_recipes(settings(), SearchState(), {})


@pytest.mark.parametrize(("name", "place"), [("L", "LoRA in every block"), ("B", "BitFit in")])
def test_recipes_are_of_a_reference_design_that_scored_better(
    played: Played, tmp_path: Path, name: str, place: str
) -> None:
    """BitFit cannot fill the budget: its recipe has the budget that it reaches."""
    _, state, outcomes = played
    assert state.comparison is not None
    (candidate,) = [each for each in state.comparison.candidates if each.name == name]
    better = {job.key: Outcome(100.0, 1.0) for jobs in candidate.jobs.values() for job in jobs}
    made = settings(tasks={"tone": TaskSettings(lambda b, **k: GLUE(b, "sst2", **k))})
    made = dataclasses.replace(made, output=str(tmp_path))
    (path,) = write_recipes(made, state, outcomes | better)
    assert place in path.read_text()
    read = cli.main(["fit", f"--config={path}"], Reading)
    (job, *_) = candidate.jobs["tone"]
    assert read.model.plan.resolved(simulated.anatomy()).to_config() == job.plan


def test_a_figure_that_cannot_be_drawn_does_not_end_the_search(
    played: Played,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("lightning_pelt.search.report.report.save", fails)
    search, state, outcomes = played
    page = write_report(tmp_path, state, outcomes, settings=settings(), space=search.space)
    assert "The figure of cost could not be drawn: no space left" in page.read_text()
    assert "the figure cost cannot be drawn: no space left" in caplog.text


def test_the_report_begins_with_the_plan_to_use() -> None:
    """Of two seeds: LoRA is 1 ahead of S4 in both, and the found design is not behind for sure."""
    scores = {
        "found design": [70.0, 79.0],
        "LoRA": [80.0, 80.0],
        "S4": [79.0, 79.1],
        "BitFit": [None, 60.0],
    }
    names = {"found design": FOUND}
    plans = [CandidateScores(names.get(n, n), n, 1, 1200, {"t": s}) for n, s in scores.items()]
    (line, _) = sections.recommendation(plans)
    assert line == (
        "**Use LoRA in every block**: 80.00 ± 0.00 points. Within noise of it are: the found "
        "design and BitFit in every block. 4 plans were compared, of at most 1,200 parameters."
    )
