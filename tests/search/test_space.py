"""Search space: its stages, their options, and the random designs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import simulated
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from lightning_pelt.anatomy import Anatomy, examine
from lightning_pelt.plans.design_space import Design, layout
from lightning_pelt.search.space import Space, Stage

BUDGET = simulated.BUDGET
CHOSEN = {
    "grouping": "bottleneck",
    "allocation": "increasing",
    "groups": "1+2+4",
    "group 1": "AL",
    "group 2": "P",
    "group 4": "APB",
}


@cache
def bert(depth: int = 6, inner: int = 64) -> Anatomy:
    config = BertConfig(
        vocab_size=30,
        hidden_size=32,
        num_hidden_layers=depth,
        num_attention_heads=2,
        intermediate_size=inner,
    )
    return examine(BertModel(config))


@cache
def t5() -> Anatomy:
    config = T5Config(vocab_size=30, d_model=32, d_kv=16, d_ff=64, num_layers=6, num_heads=2)
    return examine(T5ForConditionalGeneration(config))


def space(**arguments: object) -> Space:
    return Space(**{"anatomy": bert(), "budget": BUDGET, **arguments})  # type: ignore[arg-type]


def asked(space: Space, name: str, settled: Mapping[str, str]) -> Stage:
    stage = space.stage(name, settled)
    assert stage is not None
    return stage


def before(name: str, chosen: Mapping[str, str] = CHOSEN) -> dict[str, str]:
    """The settled components when a stage starts."""
    names = [*chosen]
    return {each: chosen[each] for each in names[: names.index(name)]}


def test_at_depth_6_uniform_and_spindle_are_one_grouping() -> None:
    found = space().groupings
    assert found["uniform"].names == ("uniform", "spindle")
    assert [*found] == ["uniform", "bottleneck", "increasing", "decreasing"]


@pytest.mark.slow
def test_at_depth_12_all_groupings_have_the_sizes_of_the_specification() -> None:
    found = space(anatomy=bert(12)).groupings
    assert {name: choice.sizes for name, choice in found.items()} == {
        "uniform": ((3, 3, 3, 3),),
        "spindle": ((2, 4, 4, 2),),
        "bottleneck": ((4, 2, 2, 4),),
        "increasing": ((1, 2, 4, 5),),
        "decreasing": ((5, 4, 2, 1),),
    }


def test_comparing_two_patterns_that_are_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nothing to compare among uniform, spindle.*1, 2, 2, 1"):
        space(patterns=["spindle", "uniform"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patterns": ["spindel", "uniform"]}, "unknown pattern 'spindel': did you mean 'spindle'"),
        ({"patterns": []}, "nothing to compare among no patterns"),
        ({"subsets": ["AL", "AX"]}, "unknown strategy 'X'.*A, P, B, L"),
        ({"subsets": ["LA", "AL"]}, "two or more"),
        ({"groups": 7}, "6 blocks cannot be shared among 7 groups"),
    ],
)
def test_an_invalid_space_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space(**arguments)


def test_a_single_pattern_leaves_nothing_to_choose() -> None:
    assert asked(space(patterns=["spindle"]), "grouping", {}).options == ("spindle",)


def test_the_stages_are_those_of_the_paper_in_order() -> None:
    stages = ["start", "grouping", "allocation", "groups"]
    assert space().stages == [*stages, "group 1", "group 2", "group 3", "group 4"]
    assert space(groups=2).stages == [*stages, "group 1", "group 2"]


@pytest.mark.slow
def test_nine_selections_of_four_groups_fewest_first() -> None:
    options = asked(space(), "groups", before("groups")).options
    assert set(options) == {"1", "2", "3", "4", "1+2", "3+4", "1+2+3", "2+3+4", "1+2+3+4"}
    assert len(options) == 9
    counts = [len(option.split("+")) for option in options]
    assert counts == sorted(counts)


@pytest.mark.slow
def test_selections_of_other_numbers_of_groups_have_no_duplicates() -> None:
    two = asked(space(groups=2), "groups", before("groups")).options
    three = asked(space(groups=3), "groups", before("groups")).options
    assert set(two) == {"1", "2", "1+2"}
    assert set(three) == {"1", "2", "3", "1+2", "2+3", "1+2+3"}


@pytest.mark.slow
def test_options_come_simplest_first() -> None:
    deep = space(anatomy=bert(12))
    patterns = ("uniform", "spindle", "bottleneck", "increasing", "decreasing")
    assert asked(deep, "grouping", {}).options == patterns
    assert asked(space(), "allocation", {}).options == ("uniform", "increasing", "decreasing")
    sets = asked(space(), "group 1", before("group 1")).options
    assert sets[:3] == ("A", "P", "L") and sets[-1] == "APBL"
    assert [*map(len, sets)] == sorted(map(len, sets))


def test_all_fifteen_sets_of_methods_are_there_by_default() -> None:
    every = {"".join(c) for n in range(1, 5) for c in combinations("APBL", n)}
    assert len(space().sets) == 15 and set(space().sets) == every
    assert space(subsets=["LBP", "L", "L"]).sets == ("L", "PBL")  # in one order, once, by size


@pytest.mark.slow
def test_bitfit_alone_is_left_out_where_it_cannot_fill_its_share() -> None:
    stage = asked(space(), "group 1", {**before("groups"), "groups": "1"})
    assert len(stage.options) == 14 and "B" not in stage.options
    # Two blocks with biases of q, k, v, o (32 each) and of the inner layers (64 and 32).
    assert stage.left_out == {"B": f"{2 * 224} parameters instead of 12,000"}


@pytest.mark.slow
def test_bitfit_alone_stays_where_it_fills_its_share() -> None:
    # One block has 4 * 32 + 96 + 32 = 256 biases. Ranks cost 128 and tokens 64, so L, P and
    # both have 256 as well; an adapter costs 64 + 130 a unit, 258 with a token; anything
    # beside B is more.
    narrow = space(anatomy=bert(6, inner=96), budget=256)
    settled = {"grouping": "uniform", "allocation": "uniform", "groups": "1"}
    stage = asked(narrow, "group 1", settled)
    assert stage.options == ("P", "B", "L", "AP", "PL")
    assert "194 parameters instead of 256" in stage.left_out["A"]
    assert len(stage.left_out) == 10


@pytest.mark.slow
def test_untuned_groups_have_no_stage() -> None:
    settled = before("group 1")
    assert space().stage("group 3", settled) is None
    assert space().stage("group 4", settled) is not None


COMPONENTS = ("pattern", "allocation", "stacks", "over", "budget", "gate")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grouping", "allocation", "group 1", "group 2", "group 4"])
def test_designs_of_a_block_differ_only_in_what_their_stage_decides(name: str) -> None:
    drawn = space()
    stage = asked(drawn, name, before(name))
    decides = {"grouping": "pattern"}.get(name, name)
    for block in range(8):
        designs = drawn.designs(stage, before(name), block)
        assert tuple(designs) == stage.options
        for component in COMPONENTS:
            values = [getattr(design, component) for design in designs.values()]
            assert values == [*stage.options] if component == decides else len(set(values)) == 1
        for i in range(4):
            letters = [design.strategies[i] for design in designs.values()]
            decided = decides == f"group {i + 1}"
            assert letters == [*stage.options] if decided else len(set(letters)) == 1


@pytest.mark.slow
def test_selections_of_a_block_agree_in_the_groups_that_they_share() -> None:
    drawn, settled = space(), before("groups")
    stage = asked(drawn, "groups", settled)
    for block in range(8):
        designs = drawn.designs(stage, settled, block)
        assert {(d.pattern, d.allocation) for d in designs.values()} == {
            ("bottleneck", "increasing")
        }
        whole = designs["1+2+3+4"].strategies
        assert all(whole)
        for option, design in designs.items():
            tuned = {int(number) - 1 for number in option.split("+")}
            assert design.strategies == tuple(whole[i] if i in tuned else "" for i in range(4))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["allocation", "groups", "group 1", "group 2", "group 4"])
def test_later_stages_keep_everything_settled(name: str) -> None:
    drawn, settled = space(), before(name)
    stage = asked(drawn, name, settled)
    for block in range(6):
        for design in drawn.designs(stage, settled, block).values():
            assert design.pattern == "bottleneck"
            assert name == "allocation" or design.allocation == "increasing"
            if "groups" in settled:
                assert [bool(letters) for letters in design.strategies] == [True, True, False, True]
            for i in range(4):
                if f"group {i + 1}" in settled:
                    assert design.strategies[i] == settled[f"group {i + 1}"]


@pytest.mark.slow
def test_components_that_are_not_settled_vary_between_blocks() -> None:
    drawn = space()
    stage = asked(drawn, "grouping", {})
    designs = [drawn.designs(stage, {}, block)["uniform"] for block in range(60)]
    assert {design.allocation for design in designs} == {"uniform", "increasing", "decreasing"}
    assert len({tuple(map(bool, design.strategies)) for design in designs}) == 9
    assert len({letters for design in designs for letters in design.strategies}) >= 14


def test_the_start_tunes_about_half_of_the_blocks_with_varied_amounts() -> None:
    drawn = space()
    stage = asked(drawn, "start", {})
    designs = [drawn.designs(stage, {}, block)["anything"] for block in range(80)]
    shares = [np.mean([bool(letters) for letters in design.strategies]) for design in designs]
    assert abs(float(np.mean(shares)) - 0.5) < 0.07  # 480 coins: a standard error of 0.023
    assert len({tuple(map(bool, design.strategies)) for design in designs}) > 30
    stage_costs = np.array([design.budget for design in designs]) / BUDGET
    assert 0.1 <= stage_costs.min() < 0.2 and 0.9 < stage_costs.max() <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["start", *[k for k in CHOSEN if k != "group 4"], "group 4"])
def test_every_random_design_meets_its_budget(name: str) -> None:
    drawn, settled = space(), {} if name == "start" else before(name)
    stage = asked(drawn, name, settled)
    for block in range(6):
        for design in drawn.designs(stage, settled, block).values():
            total = design.solution(drawn.anatomy).total
            assert abs(total / design.budget - 1) <= 0.05
            assert name == "start" or design.budget == BUDGET


@pytest.mark.slow
def test_the_same_seed_draws_the_same_and_others_differ() -> None:
    def draw(seed: int) -> list[dict[str, Design]]:
        fresh = space(seed=seed)
        stages = [asked(fresh, name, {}) for name in ("start", "grouping")]
        return [fresh.designs(stage, {}, block) for stage in stages for block in range(6)]

    one, again, other = draw(3), draw(3), draw(4)
    assert repr(one) == repr(again)
    assert all(repr(a) != repr(b) for a, b in zip(one, other, strict=True))


def test_every_block_has_a_different_seed() -> None:
    seeds = [space(seed=seed).block_seed(block) for seed in (0, 1) for block in range(500)]
    assert len(set(seeds)) == 1000
    assert seeds[:500] == [space().block_seed(block) for block in range(500)]
    assert min(seeds) >= 0 and max(seeds) < 2**32  # what numpy and Lightning take


def test_a_block_draws_the_same_in_every_stage() -> None:
    drawn = space()
    first = drawn.designs(asked(drawn, "grouping", {}), {}, 5)["bottleneck"]
    settled = {"grouping": "bottleneck"}
    again = drawn.designs(asked(drawn, "allocation", settled), settled, 5)[first.allocation]
    assert repr(first) == repr(again)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1344, 1600])
def test_tight_budgets_always_leave_a_design(budget: int) -> None:
    # Many options meet these budgets in few draws, and some never together.
    tight, random, left_out = space(budget=budget), np.random.default_rng(0), 0
    settled: dict[str, str] = {}
    for name in tight.stages[1:]:
        stage = tight.stage(name, settled)
        if stage is None:
            continue
        left_out += len(stage.left_out)
        for block in range(12):
            assert tuple(tight.designs(stage, settled, block)) == stage.options
        everything = name == "groups" and "1+2+3+4" in stage.options
        settled[name] = "1+2+3+4" if everything else str(random.choice(stage.options))
    assert tight.misfit(tight.design(settled)) is None
    assert left_out  # otherwise the budget would not be tight


@pytest.mark.slow
def test_options_that_rarely_fit_are_left_out_with_their_count() -> None:
    tight = space(budget=1344)
    reasons = [
        reason
        for name in ("grouping", "group 1")
        for reason in asked(
            tight, name, {} if name == "grouping" else before(name)
        ).left_out.values()
    ]
    assert any("of 100 random designs" in reason for reason in reasons)


@pytest.mark.slow
def test_a_budget_that_no_design_meets_names_the_stage() -> None:
    with pytest.raises(ValueError, match=r"no grouping can meet budget=10 \(.* parameters"):
        space(budget=10).stage("grouping", {})
    poor = space(budget=10)
    with pytest.raises(ValueError, match="without groups can meet budget=10"):
        poor.designs(asked(poor, "start", {}), {}, 0)


@pytest.mark.slow
def test_per_stack_groups_each_stack_separately() -> None:
    separate = space(anatomy=t5(), budget=30_000, stacks="per_stack")
    assert separate.groupings["uniform"].names == ("uniform", "spindle")  # each of depth 6
    assert separate.groupings["bottleneck"].sizes == ((2, 1, 1, 2), (2, 1, 1, 2))
    together = space(anatomy=t5(), budget=30_000)
    assert together.groupings["spindle"].sizes == ((2, 4, 4, 2),)


@pytest.mark.slow
def test_designs_of_an_encoder_decoder_reach_both_stacks_through_every_group() -> None:
    separate = space(anatomy=t5(), budget=30_000, stacks="per_stack")
    stage = asked(separate, "groups", before("groups"))
    for option, design in separate.designs(stage, before("groups"), 1).items():
        solution = design.solution(separate.anatomy)
        assert abs(solution.total / 30_000 - 1) <= 0.05
        bottleneck = [(0, 1), (2,), (3,), (4, 5)]
        wanted = {
            (stack, number)
            for group in option.split("+")
            for stack in ("encoder", "decoder")
            for number in bottleneck[int(group) - 1]
        }
        assert {tuple(each.block) for each in solution.blocks} == wanted


def test_the_start_of_an_encoder_decoder_draws_over_all_its_blocks() -> None:
    separate = space(anatomy=t5(), budget=30_000, stacks="per_stack")
    stage = asked(separate, "start", {})
    tuned = set[str]()
    for block in range(6):
        design = separate.designs(stage, {}, block)["anything"]
        depths = {"encoder": 6, "decoder": 6}
        assert all(map(len, layout(design.pattern, depths, 12, stacks=design.stacks)))
        assert len(design.strategies) == 12
        tuned |= {each.block.stack for each in design.solution(separate.anatomy).blocks}
    assert tuned == {"encoder", "decoder"}
