"""The report says what the outcomes of a search say, the recipes what it found."""

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

from lightning_pelt import Design, cli
from lightning_pelt.data import GLUE
from lightning_pelt.search import chapters, pictures
from lightning_pelt.search.brute_force import BruteForce
from lightning_pelt.search.cell import Cell, Outcome
from lightning_pelt.search.challenge import Challenge
from lightning_pelt.search.contest import Contest
from lightning_pelt.search.course import FRESH, Course, Record, Walk
from lightning_pelt.search.finals import Finals
from lightning_pelt.search.gates import GatesCourse, gate_metric
from lightning_pelt.search.parts import FitSettings, TaskSettings
from lightning_pelt.search.race_picture import race
from lightning_pelt.search.racing import Race, Racing
from lightning_pelt.search.recipe import write_recipes
from lightning_pelt.search.report import write_report
from lightning_pelt.search.settings import Settings
from lightning_pelt.search.space import Stage
from lightning_pelt.search.summary import compared, ranks, spent, title_of

SUBSETS = ("B", "L", "P", "AL", "AP", "APB", "PBL")
DIVERGED = "final: L, seed 1"


def settings(**others: Any) -> Settings:
    tasks = {name: TaskSettings(lambda backbone, **_: Sentences(backbone)) for name in TASKS}
    fit = FitSettings(max_steps=10, lrs={"prefix": 1e-2})
    given = {"tasks": tasks, "fit": fit, "search_budget": simulated.BUDGET, **others}
    return Settings("a/backbone", **given)


def score(cell: Cell) -> float | None:
    wrong = cell.label == DIVERGED and cell.task == "tone"
    return None if wrong else simulated.score(cell)


Played = tuple[Course, Walk, dict[str, Outcome]]


@pytest.fixture(scope="module")
def played() -> Played:
    course = simulated.course(subsets=SUBSETS)
    return course, *simulated.play(course, score)


@pytest.fixture(scope="module")
def written(played: Played, tmp_path_factory: pytest.TempPathFactory) -> Path:
    course, walk, outcomes = played
    folder = tmp_path_factory.mktemp("report")
    return write_report(folder, walk, outcomes, settings=settings(), space=course.space)


def chapter(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> dict[str, list[str]]:
    """The tables of a chapter: cells by the first one, without emphasis."""
    lines = [line for line in text.replace("**", "").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


def numbers(cell: str) -> list[float]:
    return [float(found) for found in re.findall(r"-?\d+\.?\d*", cell)]


def scores_of(played: Played, record: Record, settled: dict[str, str], blocks: range) -> Any:
    """By arm: the mean over tasks in each block, from the space and the outcomes alone."""
    course, _, outcomes = played
    found: dict[str, list[float]] = {arm: [] for arm in record.stage.options}
    for block in blocks:
        for arm, design in course.space.designs(record.stage, settled, block).items():
            plan = design.solution(course.space.anatomy).plan().to_config()
            seed = course.space.block_seed(block)
            keys = [Cell(plan, task, seed).key for task in TASKS]
            if all(key in outcomes for key in keys):
                found[arm].append(np.mean([outcomes[key].score for key in keys]))
    return found


def test_the_table_of_a_stage_has_the_means_and_paired_differences_of_its_cells(
    played: Played, written: Path
) -> None:
    record = played[1].records[1]
    assert record.stage.name == "grouping" and record.chosen == "bottleneck"
    text = chapter(written.read_text(), "S1: how many blocks each group holds")
    found, made = rows(text), scores_of(played, record, {}, range(24))
    leader = made["bottleneck"]
    assert list(found)[2] == "bottleneck"
    for arm in record.stage.options:
        blocks, mean, behind, verdict, diverged = found[arm]
        standing = next(s for s in record.contest.standings() if s.arm == arm)
        mine = made[arm][: standing.blocks]
        assert (int(blocks), int(diverged)) == (len(mine), 0)
        assert float(mean) == pytest.approx(np.mean(mine), abs=0.006)
        if arm != "bottleneck":
            gap = np.subtract(leader[: len(mine)], mine).mean()
            assert numbers(behind)[0] == pytest.approx(gap, abs=0.006)
            assert verdict == f"dropped after {blocks}"
    assert found["bottleneck"][3] == "chosen"


def test_the_winner_is_shown_once_more_on_fresh_blocks(played: Played, written: Path) -> None:
    record = played[1].records[1]
    assert record.fresh is not None
    rival = record.fresh.arms[1]
    first = 2 * FRESH
    made = scores_of(played, record, {}, range(first, first + 8))
    gaps = np.subtract(made["bottleneck"], made[rival])
    low, high = stats.t.interval(0.9, 7, gaps.mean(), stats.sem(gaps))
    text = chapter(written.read_text(), "S1: how many blocks each group holds")
    sentence = next(line for line in text.splitlines() if line.startswith("Once more"))
    assert numbers(sentence.split(": ")[1]) == pytest.approx(
        [np.mean(made["bottleneck"]), np.mean(made[rival]), gaps.mean(), low, high, 90], abs=0.006
    )
    assert "confirms" in sentence


def test_the_final_comparison_has_means_spreads_ranks_and_paired_intervals(
    played: Played, written: Path
) -> None:
    _, walk, outcomes = played
    assert walk.finals is not None
    found = rows(chapter(written.read_text(), "Final comparison"))
    scores = {
        title_of(c.name): np.array(
            [[outcomes[cell.key].score for cell in c.cells[task]] for task in TASKS], dtype=float
        )
        for c in walk.finals.contestants
    }
    assert list(scores) == ["found design", "LoRA", "adapter", "prefix", "BitFit"]
    places = stats.rankdata([-np.nanmean(s, 1) for s in scores.values()], axis=0)
    table = written.read_text().split("| plan |")[1].split("\n\n")[0]
    shown = rows("| plan |" + table)
    for (name, made), place in zip(scores.items(), places, strict=True):
        parameters, *tasks, mean, rank = shown[name]
        for task, each, ranked in zip(tasks, made, place, strict=True):
            expected = [np.nanmean(each), np.nanstd(each, ddof=1), ranked]
            assert numbers(task) == pytest.approx(expected, abs=0.006)
        each = made.mean(0)
        assert numbers(mean) == pytest.approx(
            [np.nanmean(each), np.nanstd(each, ddof=1)], abs=0.006
        )
        assert float(rank) == pytest.approx(np.mean(place), abs=0.006)
        assert ("under budget" in parameters) == (name in ("adapter", "BitFit"))
        if name != "found design":
            gaps = (scores["found design"] - made).mean(0)
            gaps = gaps[np.isfinite(gaps)]
            low, high = stats.t.interval(0.95, len(gaps) - 1, gaps.mean(), stats.sem(gaps))
            difference, reads, seeds = found[name]
            assert numbers(difference) == pytest.approx([gaps.mean(), low, high], abs=0.006)
            assert int(seeds) == len(gaps) == (2 if name == "LoRA" else 3)
            assert reads == ("ahead" if low > 0 else "behind" if high < 0 else "within noise")
    assert "1 of the fits diverged or are not done" in written.read_text()


def test_the_cost_counts_every_fit_once(played: Played, written: Path) -> None:
    _, walk, outcomes = played
    stages = spent(walk, outcomes, len(TASKS))
    assert sum(stage.cells for stage in stages) == len(outcomes)
    assert sum(stage.seconds for stage in stages) == pytest.approx(
        sum(outcome.seconds for outcome in outcomes.values())
    )
    for stage, record in zip(stages, walk.records, strict=False):
        assert stage.cells + stage.reused == len(record.cells)
    by_name = {stage.stage: stage for stage in stages}
    assert by_name["grouping"].paper_cells == 4 * 100 * 2
    assert by_name["groups"].paper_cells == 9 * 100 * 2
    assert by_name["swaps"].paper_cells == 0
    text = chapter(written.read_text(), "Cost")
    assert f"{len(outcomes):,} fits" in text and "1 of them diverged" in text
    assert [int(n.replace(",", "")) for n in rows(text)["grouping"][:2]] == [
        by_name["grouping"].cells,
        0,
    ]


def test_the_report_says_what_is_odd_about_the_space(played: Played, written: Path) -> None:
    text = written.read_text()
    assert "uniform and spindle are one grouping at depth 6: 1, 2, 2, 1." in text
    assert "S0 is weak by construction" in chapter(text, "S0: designs without groups")
    last = chapter(text, "S4: methods of group 4")
    assert re.search(r"- B: comes to [\d,]+ parameters where 12,000 are wanted", last)
    assert rows(chapter(text, "Choices"))["S1: how many blocks each group holds"] == [
        "bottleneck",
        "spindle",
    ]


def test_the_found_design_is_shown_block_by_block(played: Played, written: Path) -> None:
    walk = played[1]
    assert walk.found is not None
    assert walk.found.strategies == ("AL", "AP", "APB", "PBL")
    text = chapter(written.read_text(), "The found design")
    found = rows(text)
    blocks = walk.found.solution(simulated.anatomy()).blocks
    assert [found[f"encoder {i}"][0] for i in range(6)] == ["1", "1", "2", "3", "4", "4"]
    assert [int(found[f"encoder {i}"][2].replace(",", "")) for i in range(6)] == [
        block.total for block in blocks
    ]
    assert f"{sum(block.total for block in blocks):,} of 12,000 parameters" in text


def test_every_picture_of_the_report_is_there_and_nothing_else(written: Path) -> None:
    named = re.findall(r"!\[.*?\]\((.*?)\)", written.read_text())
    assert {path.name for path in written.parent.iterdir()} == {*named, "report.md"}
    assert {"design.png", "comparison.png", "choices.png", "cost.png", "swaps.png"} <= {*named}


def test_a_report_can_be_written_before_the_search_is_over(tmp_path: Path) -> None:
    course = simulated.course(subsets=SUBSETS)
    walk, outcomes = simulated.play(course, until="allocation")
    path = write_report(tmp_path, walk, outcomes, settings=settings(), space=course.space)
    text = path.read_text()
    wanted = f"wants {len(walk.wanted)} fits now for: S2: how the budget is shared"
    assert wanted in text and "The found design" not in text
    assert rows(chapter(text, "Choices"))["S1: how many blocks each group holds"][0] == "bottleneck"
    assert "Not settled yet" in chapter(text, "S2: how the budget is shared")
    nothing = write_report(tmp_path, course.walk({}), {}, settings=settings(), space=course.space)
    assert "0 fits in 0 s" in nothing.read_text()


def test_a_report_that_fails_leaves_the_one_before(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course, walk, _ = played
    begun = Walk(records=walk.records[:0], wanted=walk.wanted)
    path = write_report(tmp_path, begun, {}, settings=settings(), space=course.space)
    before = path.read_text()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space"):
            write_report(tmp_path, begun, {}, settings=settings(name="other"), space=course.space)
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["report.md"]


def test_the_report_of_a_gated_search_has_its_gates_and_both_runs(tmp_path: Path) -> None:
    space = simulated.course(subsets=SUBSETS).space
    gates = {"adapter": 0.9, "prefix": 0.2, "bitfit": 0.1, "lora": 0.7}
    metrics = {gate_metric("encoder", b, name): g for b in range(6) for name, g in gates.items()}

    def finals(found: Design) -> Finals:
        return Finals(found, space.anatomy, simulated.BUDGET, TASKS, (0, 1), ("L",))

    course, outcomes = GatesCourse(space, TASKS, finals), dict[str, Outcome]()
    while not (walk := course.walk(outcomes)).over:
        made = settings(method="gates")
        write_report(tmp_path, walk, outcomes, settings=made, space=space)
        outcomes |= {c.key: Outcome(simulated.score(c), 5.0, metrics) for c in walk.wanted}
    text = write_report(tmp_path, walk, outcomes, settings=made, space=space).read_text()
    assert rows(chapter(text, "Gates"))["group 3"] == ["0.900", "0.200", "0.100", "0.700", "AL"]
    cost = rows(chapter(text, "Cost"))
    assert (cost["gated run"][0], cost["final comparison"][0]) == ("2", "8")
    assert "The paper's protocol" not in text


def test_an_option_that_diverges_is_said_to() -> None:
    race = Race(["a", "b"], Racing(first=8, cap=8))
    while asked := race.wanted():
        for arm, block in asked:
            race.tell(arm, block, None if arm == "b" else 70.0)
    found = rows("\n".join(chapters.standings(race, "a")))
    assert found["b"] == ["8", "-", "-", "diverged too often", "8"]


# -- sentences ------------------------------------------------------------------------------------


def told(contest: Contest, gaps: dict[str, float], spread: float = 0.1) -> Record:
    """A contest that was told means of 70 plus ``gaps``, to its end."""
    while asked := contest.wanted():
        for arm, block in asked:
            noise = spread * simulated.noise(arm, block)
            contest.tell(arm, block, 70 + gaps[arm] + noise)
    result = contest.result()
    return Record(Stage("grouping", contest.arms), contest, chosen=result.winner)


def test_a_tie_names_the_tied_and_the_zone() -> None:
    record = told(Race(["plain", "fancy"], Racing(tie=0.5)), {"plain": 0.0, "fancy": 0.05})
    sentence = chapters.settled(record)
    assert "plain and fancy were shown to be within 0.5 points" in sentence
    assert "**plain** won as the simplest" in sentence


def test_a_race_that_ran_out_of_blocks_is_called_noise() -> None:
    race = Race(["a", "b"], Racing(first=4, step=4, cap=8, tie=0.0))
    sentence = chapters.settled(told(race, {"a": 0.0, "b": 0.05}, spread=3))
    assert "blocks ran out" in sentence and "within noise" in sentence and "a and b" in sentence


def test_brute_force_says_which_leads_are_noise() -> None:
    record = told(BruteForce(["a", "b", "c"], 10), {"a": 2.0, "b": 1.99, "c": 0.0})
    sentence = chapters.settled(record)
    winner, near = ("a", "b") if record.chosen == "a" else ("b", "a")
    assert sentence == (
        f"**{winner}** has the best mean of 10 designs each. Its difference to {near} is within "
        "noise."
    )


@pytest.mark.parametrize(
    ("gain", "said"),
    [(-2.0, "confirms"), (0.0, "within noise; the choice stands"), (2.0, "**b** takes its place")],
)
def test_fresh_blocks_confirm_or_overturn_the_choice(gain: float, said: str) -> None:
    record = told(Challenge("a", ["b"], blocks=8), {"a": 0.0, "b": gain}, spread=0.5)
    record.fresh = record.contest  # type: ignore[assignment]
    assert said in chapters.again(record)


def test_gates_are_a_table_with_what_was_kept() -> None:
    lines = chapters.gates({"group 1": {"A": 0.7, "L": 0.2}}, {"group 1": "A"})
    assert rows("\n".join(lines))["group 1"] == ["0.700", "0.200", "A"]


def test_equal_scores_share_a_rank() -> None:
    assert ranks({"a": 1.0, "b": 3.0, "c": 1.0}) == {"a": 2.5, "b": 1.0, "c": 2.5}


# -- pictures -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide() -> Record:
    """A race of fifteen options of which most are dropped, at different looks."""
    gaps = {f"APBL{i}": -0.25 * i for i in range(15)}
    return told(Race(list(gaps), Racing(cap=24)), gaps, spread=1.0)


def test_a_race_of_fifteen_options_shows_each_until_it_was_dropped(wide: Record) -> None:
    contest = wide.contest
    figure = race("title", contest.looks, winner=wide.chosen, tie=0.3)
    panels = {axes.get_title(loc="left").strip(): axes for axes in figure.axes if axes.axison}
    assert next(iter(panels)) == wide.chosen and set(panels) == set(contest.arms)
    dropped = contest.result().eliminated
    assert len(dropped) >= 5 and len(set(dropped.values())) > 1
    for arm, axes in panels.items():
        end = axes.lines[-1]
        last = dropped.get(arm, contest.looks[-1].blocks)
        assert list(end.get_xdata()) == [last]
        look = next(look for look in contest.looks if look.blocks == last)
        (standing,) = [s for s in look.standings if s.arm == arm]
        assert end.get_ydata()[0] == pytest.approx(-standing.behind)
        assert axes.texts[0].get_text() == (
            "won" if arm == wide.chosen
            else f"dropped after {last}" if arm in dropped else "not dropped"
        )  # fmt: skip


def test_nothing_in_a_race_of_fifteen_options_overlaps(wide: Record) -> None:
    figure = race("title", wide.contest.looks, winner=wide.chosen, tie=0.3)
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


def test_the_choices_show_every_option_and_the_chosen_one() -> None:
    stage = pictures.Chosen("grouping", {"a": 70.0, "b": 71.5}, "b", {"b": 73.0, "a": 72.0})
    axes = pictures.choices([stage]).axes[0]
    points = [tuple(p) for drawn in axes.collections for p in np.ma.getdata(drawn.get_offsets())]
    assert {(70.0, 0.0), (71.5, 0.0), (73.0, 0.27), (72.0, 0.27)} <= set(points)
    assert [text.get_text() for text in axes.texts] == ["b  71.5"]


def test_the_comparison_has_a_point_for_each_seed_and_a_bar_at_the_mean(played: Played) -> None:
    _, walk, outcomes = played
    assert walk.finals is not None
    plans = compared(walk.finals, outcomes)
    panels = pictures.comparison(plans).axes
    assert [axes.get_title(loc="left") for axes in panels] == [*TASKS, "mean over tasks"]
    lora = panels[1].collections[1]
    assert len(lora.get_offsets()) == 2, "the seed that diverged has no point"
    found = plans[0].scores["tone"]
    assert panels[1].lines[0].get_xdata()[0] == pytest.approx(np.mean(found))  # type: ignore[arg-type]


def test_the_bars_of_the_cost_are_as_long_as_the_counts(played: Played) -> None:
    _, walk, outcomes = played
    stages = spent(walk, outcomes, 2)
    widths = [bar.get_width() for bar in pictures.cost(stages).axes[0].patches]
    drawn = [widths[i : i + 3] for i in range(0, 3 * len(stages), 3)]
    assert drawn == [[s.paper_cells, s.cells, s.reused] for s in stages]


@pytest.mark.parametrize(
    ("seconds", "text"), [(75, "75 s"), (600, "10 min"), (9000, "2.5 h"), (259_200, "3.0 days")]
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert pictures.minutes(seconds) == text


@pytest.mark.parametrize("draw", [pictures.choices, pictures.comparison, pictures.cost])
def test_nothing_to_draw_is_said(draw: Any) -> None:
    with pytest.raises(ValueError, match="there is no"):
        draw([])


# -- recipes --------------------------------------------------------------------------------------


class Reading(cli.PELTCLI):
    """``fit`` up to where it would begin."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def test_recipes_parse_and_resolve_to_the_found_plan(played: Played, tmp_path: Path) -> None:
    walk = played[1]
    assert walk.finals is not None
    made = settings(
        tasks={
            "sst2": TaskSettings(lambda b, **k: GLUE(b, "sst2", folder="rows", batch_size=8, **k)),
            "cola": TaskSettings(lambda b, **k: GLUE(b, "cola", folder="rows", **k)),
        },
        fit=FitSettings(max_epochs=3, lr=2e-3, lrs={"prefix": 1e-2, "gate": 1e-1}, warmup=0.1),
        output=str(tmp_path),
    )
    paths = write_recipes(made, walk)
    assert [path.name for path in paths] == ["winner_sst2.yaml", "winner_cola.yaml"]
    assert paths[0].read_text().startswith("# What the search 'search' (racing, seed 0) found")
    read = cli.main(["fit", f"--config={paths[0]}"], Reading)
    assert isinstance(read.model.plan, Design)
    (cell, *_) = walk.finals.contestants[0].cells["tone"]
    assert read.model.plan.resolved(simulated.anatomy()).to_config() == cell.plan
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
    """Three steps are no epoch, so without an evaluation of their own nothing would be kept."""
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
    (path,) = write_recipes(made, played[1])
    monkeypatch.chdir(tmp_path)
    cli.main(["fit", f"--config={path}", "--trainer.enable_progress_bar=false"])
    assert len([*(tmp_path / "runs" / "winner_sst2").rglob("*.ckpt")]) == 1


def test_there_is_no_recipe_before_anything_is_found() -> None:
    with pytest.raises(ValueError, match="still goes on"):
        write_recipes(settings(), Walk())
