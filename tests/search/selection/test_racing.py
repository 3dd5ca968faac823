"""Races, brute force and confirmations on simulated scores."""

from __future__ import annotations

import random
from math import isnan, sqrt

import numpy as np
import pytest
from scipy import stats

from lightning_pelt.search.selection.base import Result, Selection
from lightning_pelt.search.selection.brute_force import BruteForce
from lightning_pelt.search.selection.confirmation import Confirmation
from lightning_pelt.search.selection.paired_tests import holm, level_per_look, paired_t_tests
from lightning_pelt.search.selection.racing import Race
from lightning_pelt.search.selection.rules import Racing

GROUPINGS = {
    "increasing": 70.8,
    "uniform": 72.1,
    "decreasing": 70.0,
    "spindle": 73.3,
    "bottleneck": 71.3,
}
SMALL = Racing(first=4, step=2, cap=20)


def simulated(rng, means, *, sigma=6.0, rho=0.8, blocks=100):
    """Scores, shape (blocks, arms), with spread sigma and correlation rho within a block."""
    shared, own = rng.normal(size=(blocks, 1)), rng.normal(size=(blocks, len(means)))
    return np.array(means) + sigma * (sqrt(rho) * shared + sqrt(1 - rho) * own)


def play(selection: Selection, score, *, shuffle: random.Random | None = None) -> Selection:
    """Tell a selection the scores that it wants until it is finished."""
    while not selection.finished:
        wanted = selection.wanted()
        if shuffle:
            shuffle.shuffle(wanted)
        for arm, block in wanted:
            selection.tell(arm, block, score(arm, block))
    return selection


def race_on(table, arms=None, rules=None, **how) -> Race:
    """A race with the columns of ``table`` as scores; NaN is a diverged job."""
    arms = arms or [f"arm{i}" for i in range(table.shape[1])]
    column = {arm: i for i, arm in enumerate(arms)}

    def score(arm, block):
        value = float(table[block, column[arm]])
        return None if isnan(value) else value

    return play(Race(arms, rules or Racing()), score, **how)


# --- the numbers of the specification -----------------------------------------------------------


@pytest.mark.slow
def test_a_race_finds_the_best_grouping_with_less_than_half_of_brute_forces_designs():
    rng, arms, repeats = np.random.default_rng(1), list(GROUPINGS), 600
    results = [
        race_on(simulated(rng, list(GROUPINGS.values())), arms).result() for _ in range(repeats)
    ]
    right = np.mean([result.winner == "spindle" for result in results])
    designs = np.mean([result.designs for result in results])
    print(f"right {right:.4f}, designs {designs:.1f} of 500")
    assert right >= 0.98
    assert designs <= 0.45 * 500


def sole_winners(arms: int, repeats: int) -> float:
    rng = np.random.default_rng(2)
    verdicts = [race_on(simulated(rng, [70.0] * arms)).result().verdict for _ in range(repeats)]
    print(f"{arms} equal arms: sole winner {verdicts.count('winner') / repeats:.4f}")
    return verdicts.count("winner") / repeats


@pytest.mark.slow
@pytest.mark.parametrize("arms", [3, 5])
def test_equal_arms_rarely_have_a_sole_winner(arms):
    assert sole_winners(arms, 300) <= 0.05


@pytest.mark.slow
def test_two_equal_arms_have_a_sole_winner_with_probability_alpha():
    assert sole_winners(2, 900) == pytest.approx(0.05, abs=0.02)


def test_equal_arms_with_little_noise_end_in_a_tie_long_before_the_cap():
    rng = np.random.default_rng(3)
    results = [race_on(simulated(rng, [70.0, 70.0], sigma=0.5)).result() for _ in range(60)]
    ties = [result for result in results if result.verdict == "tie"]
    assert len(ties) >= 54
    assert np.mean([result.designs for result in ties]) < 100
    assert {result.winner for result in ties} == {"arm0"}


@pytest.mark.slow
def test_brute_force_is_less_often_right_than_racing_at_more_than_twice_the_designs():
    rng, means, repeats = np.random.default_rng(4), np.array([*GROUPINGS.values()]), 400
    winners = []
    for _ in range(repeats):
        scores = means + 6 * rng.normal(size=(100, 5))
        selection = BruteForce(list(GROUPINGS))
        play(selection, lambda arm, block, s=scores: s[block % 100, block // 100])
        assert selection.result().designs == 500
        winners.append(selection.result().winner)
    share = winners.count("spindle") / repeats
    assert share == pytest.approx(0.92, abs=0.04)  # the specification's table


# --- the tests inside a race ---------------------------------------------------------------------


def test_holm_stops_at_the_first_that_fails():
    # sorted .005 <= .05/4, .01 <= .05/3, .03 > .05/2: .04 is not looked at, though .04 <= .05/1
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05).tolist() == [True, False, False, True]
    assert holm([0.02, 0.02, 0.02], 0.05).tolist() == [False, False, False]
    assert holm([0.024, 0.05], 0.05).tolist() == [True, True]
    assert holm([], 0.05).tolist() == []


def test_paired_t_tests_equal_scipys():
    leader, other = np.array([5.0, 7.0, 6.0, 9.0]), np.array([4.0, 5.0, 3.0, 5.0])  # 1, 2, 3, 4
    found = paired_t_tests((leader - other)[:, None], 0.05)
    error = sqrt(5 / 3) / sqrt(4)
    reference = stats.ttest_rel(leader, other, alternative="greater")
    assert found.mean[0] == 2.5
    assert found.p[0] == pytest.approx(reference.pvalue, rel=1e-12)
    assert found.p[0] == pytest.approx(stats.t.sf(2.5 / error, 3), rel=1e-12)
    assert found.low[0] == pytest.approx(2.5 - 2.353363 * error, rel=1e-6)  # t(.95, 3)
    assert found.high[0] == pytest.approx(2.5 + 2.353363 * error, rel=1e-6)


def test_paired_t_tests_accept_zero_spread_and_too_few_pairs():
    nan = float("nan")
    found = paired_t_tests(np.array([[0.0, 1.0, 2.0, nan], [0.0, 1.0, nan, nan]]), 0.05)
    assert found.p.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert found.low[:2].tolist() == found.high[:2].tolist() == [0.0, 1.0]
    assert found.mean[2] == 2.0 and isnan(found.low[2]) and isnan(found.mean[3])


def test_the_level_of_a_look_is_pococks_when_blocks_are_many():
    assert level_per_look((5,), 0.05) == pytest.approx(0.025, abs=0.001)
    for number, critical in ((2, 2.178), (5, 2.413)):  # Pocock (1977), alpha 0.05
        looks = tuple(1000 * (i + 1) for i in range(number))
        assert stats.norm.isf(level_per_look(looks, 0.05)) == pytest.approx(critical, abs=0.02)


def by_hand(table, rules):
    """The same race written out with scipy: (number of blocks, leader, survivors) per look."""
    arms, looks, blocks = list(range(table.shape[1])), [], rules.first
    level = level_per_look(rules.looks, rules.alpha)
    while True:
        seen = table[:blocks]
        arms = [a for a in arms if np.isnan(seen[:, a]).sum() * 2 <= blocks]
        gap = {
            (a, b): (seen[:, a] - seen[:, b])[~np.isnan(seen[:, a] - seen[:, b])]
            for a in arms
            for b in arms
        }
        leader = max(arms, key=lambda a: sum(gap[a, b].mean() for b in arms))
        tests = {b: stats.ttest_1samp(gap[leader, b], 0) for b in arms if b != leader}
        p = {b: stats.ttest_1samp(gap[leader, b], 0, alternative="greater").pvalue for b in tests}
        for rank, b in enumerate(sorted(p, key=p.get)):
            if p[b] > level / (len(p) - rank):
                break
            arms.remove(b)
        looks.append((blocks, leader, tuple(arms)))
        spans = [tests[b].confidence_interval(1 - 2 * level) for b in arms if b != leader]
        tied = all(-rules.tie <= s.low and s.high <= rules.tie for s in spans)
        if tied or blocks == rules.cap:
            return looks
        blocks = min(blocks + rules.step, rules.cap)


@pytest.mark.slow
def test_a_race_equals_one_written_out_with_scipy_also_with_diverged_jobs():
    rng, lengths, rules = np.random.default_rng(5), set(), Racing(first=6, step=3, cap=20)
    for _ in range(40):
        table = simulated(rng, [70.0, 70.0, 71.5, 73.0], sigma=2, rho=0.5, blocks=20)
        table[rng.random(table.shape) < 0.12] = np.nan
        race = race_on(table, rules=rules)
        looks = [
            (
                look.blocks,
                int(look.leader[-1]),
                tuple(int(s.arm[-1]) for s in look.arms if s.active),
            )
            for look in race.looks
        ]
        assert looks == by_hand(table, rules)
        lengths.add(len(looks))
    assert len(lengths) >= 3


# --- how a race runs and ends --------------------------------------------------------------------


def test_a_race_asks_all_active_arms_for_the_same_blocks_eight_then_four_at_a_time():
    rng = np.random.default_rng(6)
    table = simulated(rng, [70.0, 40.0, 70.0], sigma=1, rho=0.5)  # arm1 falls at the first look
    race = Race(["arm0", "arm1", "arm2"], Racing(tie=0))
    assert race.wanted() == [(f"arm{i}", block) for block in range(8) for i in range(3)]
    for arm, block in race.wanted():
        race.tell(arm, block, table[block, int(arm[-1])])
    assert race.wanted() == [(f"arm{i}", block) for block in range(8, 12) for i in (0, 2)]
    assert race.looks[0].blocks == 8
    assert [each.active for each in race.looks[0].arms] == [True, False, True]


def test_the_last_look_is_at_the_cap_even_if_a_step_does_not_fit():
    assert Racing(first=8, step=4, cap=14).looks == (8, 12, 14)
    assert Racing(first=8, step=4, cap=8).looks == (8,)
    assert Racing().looks == tuple(range(8, 101, 4))


def test_a_replay_in_another_order_gives_the_same_looks():
    table = simulated(np.random.default_rng(7), list(GROUPINGS.values()), sigma=3)
    plain = race_on(table)
    for seed in range(3):
        again = race_on(table, shuffle=random.Random(seed))
        assert again.looks == plain.looks
        assert again.result() == plain.result()


def test_a_partial_replay_wants_exactly_the_missing_pairs():
    table = simulated(np.random.default_rng(8), [70.0, 71.0])
    race = Race(["arm0", "arm1"])
    missing = {("arm1", 3), ("arm0", 6)}
    for arm, block in reversed(race.wanted()):
        if (arm, block) not in missing:
            race.tell(arm, block, table[block, int(arm[-1])])
    assert set(race.wanted()) == missing and not race.finished and not race.looks
    assert [each.blocks for each in race.stats()] == [7, 7]
    gap = np.delete(table[:8, 0] - table[:8, 1], [3, 6]).mean()
    assert max(each.behind for each in race.stats()) == pytest.approx(abs(gap))


def test_a_tie_takes_the_simpler_arm_though_the_other_is_ahead():
    rng = np.random.default_rng(9)
    base = 70 + rng.normal(size=100)
    table = np.stack([base, base + 0.01 + 0.1 * rng.normal(size=100), base - 5], 1)
    table[:, 2] += rng.normal(size=100)
    result = race_on(table, ["simple", "rich", "poor"]).result()
    assert result.verdict == "tie" and result.tied == ("simple", "rich")
    assert (result.winner, result.runner_up) == ("simple", "rich")
    assert result.means["rich"] > result.means["simple"]
    assert result.eliminated == {"poor": 8}
    assert result.designs == 24


def test_arms_with_the_same_scores_tie_at_once():
    table = np.repeat(simulated(np.random.default_rng(10), [70.0]), 3, axis=1)
    result = race_on(table, rules=Racing(tie=0)).result()
    assert (result.verdict, result.winner, result.designs) == ("tie", "arm0", 24)


def test_at_the_cap_the_leader_wins_unless_arms_were_shown_to_be_equal():
    table = simulated(np.random.default_rng(11), [70.0, 70.3, 60.0], sigma=6, rho=0.5, blocks=20)
    race = race_on(table, rules=SMALL)
    result, leader = race.result(), race.looks[-1].leader
    assert result.verdict == "cap" and race.looks[-1].blocks == 20
    assert result.winner == leader == f"arm{table.mean(0).argmax()}"
    assert result.tied == ("arm0", "arm1") and result.runner_up in result.tied
    assert result.means == pytest.approx(
        {f"arm{i}": told.mean() for i, told in enumerate(table.T[:2])}
        | {"arm2": table[: result.eliminated["arm2"], 2].mean()}
    )


def test_the_runner_up_of_a_sole_winner_is_the_arm_eliminated_last():
    race = race_on(simulated(np.random.default_rng(12), [70.0, 76.0, 74.0, 60.0], sigma=3))
    result = race.result()
    assert (result.verdict, result.winner, result.runner_up) == ("winner", "arm1", "arm2")
    assert result.eliminated["arm3"] < result.eliminated["arm2"] == race.looks[-1].blocks
    assert result.designs == 8 * 4 + sum(
        (b - 8) for b in (*result.eliminated.values(), race.looks[-1].blocks)
    )


def test_an_active_arm_is_runner_up_before_an_eliminated_one_with_better_scores():
    noise = np.random.default_rng(20).normal(size=20)
    table = np.stack([80 + 0 * noise, 78 + 0.1 * noise, 77 + 9 * noise], 1)  # arm2 is all noise
    table[:, 2] += 77 - table[:, 2].mean()
    result = race_on(table, rules=SMALL).result()
    assert "arm1" in result.eliminated and result.verdict == "cap"
    assert result.means["arm1"] > result.means["arm2"]
    assert (result.winner, result.runner_up) == ("arm0", "arm2")


def test_a_single_arm_needs_no_blocks():
    for selection in (Race(["alone"]), BruteForce(["alone"]), Confirmation("alone", [])):
        assert selection.finished and selection.wanted() == []
        result = selection.result()
        assert (result.winner, result.verdict, result.runner_up) == ("alone", "only", None)
        assert result.designs == 0 and isnan(result.means["alone"])
        assert [each.arm for each in selection.stats()] == ["alone"]


# --- diverged jobs -------------------------------------------------------------------------------


def test_an_arm_that_diverges_in_more_than_half_of_its_blocks_is_eliminated():
    table = simulated(np.random.default_rng(13), [90.0, 70.0, 70.0])
    table[[0, 2, 4, 6, 7], 0] = np.nan
    race = race_on(table)
    assert race.result().eliminated["arm0"] == 8
    assert race.result().diverged["arm0"] == race.looks[0].arms[0].diverged == 5
    assert "arm0" not in (race.result().winner, race.result().runner_up)
    assert race.result().means["arm0"] == pytest.approx(np.nanmean(table[:8, 0]))


def test_an_arm_that_diverges_in_half_of_its_blocks_stays():
    table = simulated(np.random.default_rng(14), [90.0, 70.0], sigma=1)
    table[[0, 2, 4, 6], 0] = np.nan
    result = race_on(table).result()
    assert (result.winner, result.verdict, result.diverged["arm0"]) == ("arm0", "winner", 4)


def test_diverging_on_hard_blocks_does_not_make_an_arm_the_leader():
    hard = np.array([40.0, 80, 40, 80, 40, 80, 40, 80])
    noise = np.array([0.1, -0.2, 0.0, 0.3, -0.1, 0.2, 0.0, -0.3])
    table = np.stack([hard + noise, hard - 3], 1)
    table[::2, 1] = np.nan  # mean 77 of arm1 against 60 of arm0, which is better on every block
    look = race_on(table, rules=Racing(cap=8)).looks[0]
    assert look.leader == "arm0"
    assert look.arms[1].behind == pytest.approx(3)
    assert look.arms[1].mean == pytest.approx(77)


def test_no_arm_is_selected_if_every_arm_diverged():
    selections = (Race(["a", "b"]), BruteForce(["a", "b"], designs=3), Confirmation("a", ["b"]))
    for selection in selections:
        play(selection, lambda arm, block: None)
        assert selection.finished and all(isnan(s.mean) for s in selection.stats())
        with pytest.raises(RuntimeError, match=r"every arm diverged.*learning rate"):
            selection.result()


# --- brute force ---------------------------------------------------------------------------------


def test_brute_force_gives_every_arm_separate_blocks():
    selection = BruteForce(["a", "b", "c"], designs=10)
    blocks = {arm: {b for a, b in selection.wanted() if a == arm} for arm in "abc"}
    assert blocks == {"a": {*range(10)}, "b": {*range(10, 20)}, "c": {*range(20, 30)}}


def test_brute_force_takes_the_best_mean_and_reports_its_lead():
    table = simulated(np.random.default_rng(15), [70.0, 70.0, 72.0], sigma=2, blocks=30)
    selection = BruteForce(["a", "b", "c"], designs=30)
    result = play(selection, lambda arm, block: table[block % 30, "abc".index(arm)]).result()
    order = np.argsort(-table.mean(0))
    assert result.winner == "abc"[order[0]] and result.runner_up == "abc"[order[1]]
    assert (result.verdict, result.eliminated, result.designs) == ("winner", {}, 90)
    welch = stats.ttest_ind(table[:, order[0]], table[:, 0], equal_var=False)
    interval, each = welch.confidence_interval(0.95), selection.looks[0].arms[0]
    assert (each.low, each.high) == pytest.approx((interval.low, interval.high))


# --- confirmation --------------------------------------------------------------------------------


def confirmed(table, **how) -> Result:
    arms = [f"arm{i}" for i in range(table.shape[1])]
    selection = Confirmation(arms[0], arms[1:], blocks=len(table), **how)
    start = how.get("start", 0)
    return play(selection, lambda arm, block: table[block - start, int(arm[-1])]).result()


def test_a_confirmation_takes_fresh_blocks_from_its_start():
    selection = Confirmation("old", ["new"], blocks=3, start=100)
    wanted = [(arm, block) for block in (100, 101, 102) for arm in ("old", "new")]
    assert selection.wanted() == wanted


@pytest.mark.slow
def test_a_confirmation_on_noise_keeps_the_incumbent_nineteen_times_out_of_twenty():
    rng = np.random.default_rng(16)
    results = [confirmed(simulated(rng, [70.0] * 3, blocks=8)) for _ in range(1500)]
    replaced = np.mean([result.winner != "arm0" for result in results])
    assert 0.02 < replaced < 0.06  # 0.05 by Holm, less as all share the incumbent
    kept = next(result for result in results if result.winner == "arm0")
    assert kept.verdict == "cap" and kept.tied == ("arm0", "arm1", "arm2")


def test_the_best_of_several_better_challengers_wins():
    table = simulated(np.random.default_rng(17), [70.0, 74.0, 77.0, 60.0], sigma=1, blocks=8)
    result = confirmed(table, start=40)
    assert (result.winner, result.runner_up) == ("arm2", "arm1")
    assert (result.verdict, result.tied, result.designs) == ("winner", (), 32)


def test_a_confirmation_is_decided_by_holm_over_scipys_paired_tests():
    rng, seen = np.random.default_rng(18), set()
    for _ in range(60):
        table = simulated(rng, [70.0, 71.0, 71.0], sigma=2, rho=0.5, blocks=8)
        p = [
            stats.ttest_rel(table[:, i], table[:, 0], alternative="greater").pvalue for i in (1, 2)
        ]
        beaten = min(p) <= 0.025
        assert (confirmed(table).winner != "arm0") == beaten
        seen.add(beaten)
    assert seen == {True, False}


def test_the_best_challenger_replaces_an_incumbent_that_diverged():
    table = simulated(np.random.default_rng(19), [70.0, 71.0, 75.0], sigma=1, blocks=8)
    scores = {(f"arm{i}", b): float(table[b, i]) for b in range(8) for i in range(3)}
    scores |= {("arm0", b): None for b in range(5)}
    selection = Confirmation("arm0", ["arm1", "arm2"])
    result = play(selection, lambda arm, block: scores[arm, block]).result()
    assert (result.winner, result.runner_up) == ("arm2", "arm1")
    assert result.eliminated == {"arm0": 8} and result.diverged["arm0"] == 5
    assert result.tied == ("arm1", "arm2")


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"first": 1}, "first=1"),
        ({"step": 0}, "step=0"),
        ({"cap": 7}, "cap=7 is below first=8"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"alpha": 5}, "alpha=5"),
        ({"tie": -0.1}, "tie=-0.1"),
        ({"tie": float("nan")}, "tie=nan"),
    ],
)
def test_invalid_rules_are_named(rules, message):
    with pytest.raises(ValueError, match=message):
        Racing(**rules)


def test_a_race_refuses_pairs_that_it_did_not_ask_for():
    race = Race(["spindle", "uniform"])
    with pytest.raises(ValueError, match=r"unknown arm 'spinle'.*did you mean 'spindle'"):
        race.tell("spinle", 0, 70.0)
    with pytest.raises(ValueError, match=r"'uniform' was not asked for block 8.*wanted"):
        race.tell("uniform", 8, 70.0)
    with pytest.raises(ValueError, match=r"score nan of arm 'uniform' on block 0.*None"):
        race.tell("uniform", 0, float("nan"))
    race.tell("uniform", 0, 70.0)
    with pytest.raises(ValueError, match="'uniform' was told twice on block 0"):
        race.tell("uniform", 0, 70.0)
    with pytest.raises(RuntimeError, match="still wants 15 scores"):
        race.result()


def test_a_finished_race_refuses_more_blocks():
    race = race_on(np.array([[70.0, 60.0]] * 8))
    assert race.result().verdict == "winner"
    with pytest.raises(ValueError, match="not asked for block 8: the selection is finished"):
        race.tell("arm1", 8, 60.0)


def test_selections_refuse_invalid_arms_and_sizes():
    with pytest.raises(ValueError, match="no arms"):
        Race([])
    with pytest.raises(ValueError, match=r"\['a'\] are given twice"):
        Race(["a", "b", "a"])
    with pytest.raises(ValueError, match="designs=0"):
        BruteForce(["a", "b"], designs=0)
    with pytest.raises(ValueError, match="blocks=1"):
        Confirmation("a", ["b"], blocks=1)
    with pytest.raises(ValueError, match="start=-1"):
        Confirmation("a", ["b"], start=-1)
    with pytest.raises(ValueError, match=r"\['a'\] are given twice"):
        Confirmation("a", ["a"])


def test_brute_force_handles_constant_scores_without_warnings(recwarn):
    selection = BruteForce(["a", "b", "c"], designs=3)
    scores = {0: 50.0, 1: 50.0, 2: 50.0, 3: 50.0, 4: 50.0, 5: 50.0, 6: 40.0, 7: 41.0, 8: 42.0}
    play(selection, lambda arm, block: scores[block])
    first, second, third = selection.stats()
    assert (second.behind, second.low, second.high) == (0.0, 0.0, 0.0)
    assert (first.low, first.high) == (0.0, 0.0)
    reference = stats.ttest_1samp([50 - s for s in (40, 41, 42)], 0).confidence_interval(0.95)
    assert (third.low, third.high) == pytest.approx((reference.low, reference.high))
    assert not recwarn.list
