"""S4 and other designs as plans: on models, in configurations and files, and their errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration
from transformers.initialization import no_init_weights
from zoo import ZOO, Entry, build, inputs, output

from lightning_pelt import Gate, Plan, attach, detach, load_adapters, save_adapters
from lightning_pelt.anatomy import Anatomy, examine
from lightning_pelt.plans import from_config
from lightning_pelt.plans.design_space import S4, Design, S4_3b

DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")


def deep(name: str, blocks: int = 6) -> PreTrainedModel:
    """A model of the zoo with more than its two blocks."""
    entry: Entry = ZOO[name]
    key = next(key for key in DEPTHS if key in entry.options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return replace(entry, options={**entry.options, key: blocks}).build()


def letters(plan: Plan) -> list[tuple[str | None, list[int], str]]:
    names = {"adapter": "A", "prefix": "P", "bitfit": "B", "lora": "L"}
    return [
        (group.stack, list(group.blocks), "".join(names[m.name] for m in group.methods))  # type: ignore[arg-type]
        for group in plan.groups
    ]


@pytest.fixture(scope="module")
def bert() -> Anatomy:
    """Of six blocks, width 32."""
    return examine(deep("bert"))


def test_s4_is_the_papers_assignment_over_a_spindle(bert: Anatomy) -> None:
    assert letters(S4(budget=20_000).resolved(bert)) == [
        ("encoder", [0], "AL"),
        ("encoder", [1, 2], "AP"),
        ("encoder", [3, 4], "APB"),
        ("encoder", [5], "PBL"),
    ]


def test_s4_3b_is_the_other_assignment(bert: Anatomy) -> None:
    assert letters(S4_3b(budget=20_000).resolved(bert)) == [
        ("encoder", [0], "PL"),
        ("encoder", [1, 2], "AL"),
        ("encoder", [3, 4], "PBL"),
        ("encoder", [5], "APB"),
    ]


def test_stacks_are_grouped_as_one_or_separately() -> None:
    anatomy = examine(deep("t5", 4))
    concat = letters(S4(budget=40_000).resolved(anatomy))
    assert concat == [  # 8 blocks as 1, 3, 3, 1
        ("encoder", [0], "AL"),
        ("encoder", [1, 2, 3], "AP"),
        ("decoder", [0, 1, 2], "APB"),
        ("decoder", [3], "PBL"),
    ]
    per_stack = letters(S4(budget=40_000, stacks="per_stack").resolved(anatomy))
    kinds = ["AL", "AP", "APB", "PBL"]
    assert [(s, b, k) for s, b, k in per_stack if s == "decoder"] == [
        ("decoder", [i], kind) for i, kind in enumerate(kinds)
    ]
    assert {(s, k) for s, _, k in per_stack} == {
        (s, k) for s in ("encoder", "decoder") for k in kinds
    }


@pytest.mark.slow
def test_s4_on_t5_base_has_the_specifications_count() -> None:
    """0.489% of 222,903,552 parameters, which count the tied embedding once."""
    sizes = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    with no_init_weights(), torch.no_grad():  # random weights take six seconds
        model = T5ForConditionalGeneration(T5Config(**sizes))
        model.tie_weights()
        for parameter in model.parameters():
            parameter.fill_(0.01)
    attachment = attach(model, S4())
    assert attachment.backbone_size == 222_903_552
    assert attachment.head_size == 0
    assert sum(count.trained for count in attachment.counts.values()) == 1_090_824
    assert sum(count.deployed for count in attachment.counts.values()) == 1_090_824


SHARED = ["bert", "llama", "t5", "bart", "gpt2", "vit"]


@pytest.mark.parametrize("name", SHARED)
def test_a_share_is_that_of_the_backbone_without_its_head(name: str) -> None:
    model = build(name)
    attachment = attach(model, Design(["APL"], budget=0.3, pattern="uniform"))
    total = sum(count.trained for count in attachment.counts.values())
    assert abs(total / (0.3 * attachment.backbone_size) - 1) <= 0.05
    assert attachment.head_size == sum(p.numel() for n, p in model.named_parameters() if _head(n))
    detach(model)


def _head(name: str) -> bool:
    return name.startswith("classifier.")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit", "wav2vec2"])
@pytest.mark.parametrize("gate", [None, Gate()], ids=["plain", "gated"])
@pytest.mark.parametrize("plan", [S4, S4_3b])
def test_s4_trains_on_a_backbone(name: str, gate: Gate | None, plan: type[S4]) -> None:
    """Within 5% of the budget, and exactly the attached parameters get a gradient."""
    model = deep(name)
    attachment = attach(model, plan(budget=60_000, gate=gate))
    total = sum(count.trained for count in attachment.counts.values())
    assert 57_000 <= total <= 63_000
    assert all((count.gates > 0) == (gate is not None) for count in attachment.counts.values())
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(attachment.base & set(trained)) == 0
    with torch.no_grad():  # zeros block the gradients of their gates and of earlier weights
        for parameter in trained.values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    output(model, inputs(name)).square().sum().backward()
    silent = [n for n, p in trained.items() if p.grad is None or not p.grad.any()]
    # The attention's softmax does not see a bias of the keys.
    assert not [n for n in silent if "bitfit" not in n or "key" not in n], silent
    detach(model)


@pytest.mark.parametrize(
    "plan",
    [
        S4(),
        S4(budget=20_000, stacks="per_stack"),
        S4_3b(budget=0.01, gate=Gate(pool="token", init_bias=1.0)),
        Design(["", "AP", "L"], 0.1, "increasing", "decreasing", "groups", "per_stack", Gate()),
    ],
)
def test_plans_survive_json_unresolved(plan: Plan) -> None:
    config = json.loads(json.dumps(plan.to_config()))
    again = from_config(config)
    assert type(again) is type(plan)
    assert again == plan
    assert repr(again) == repr(plan)
    assert hash(again) == hash(plan)
    assert "groups" not in config["init_args"]


def test_differing_designs_are_unequal() -> None:
    assert S4() != S4(budget=0.01)
    assert S4() != S4_3b()
    assert S4() != S4(gate=Gate())
    assert S4(20_000) == S4(20_000.0)
    assert hash(S4(20_000)) == hash(S4(20_000.0))
    assert Design(["LA"]) == Design(["AL"])


def test_repr_rebuilds_the_plan() -> None:
    for plan in (S4(gate=Gate()), Design(["AL", "", "B"], budget=5_000)):
        assert eval(repr(plan)) == plan


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.slow
def test_saved_adapters_come_back(tmp_path: Path, fold: bool) -> None:
    model = deep("bert")
    attach(model, S4(budget=20_000, gate=Gate()), seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    expected = output(model, inputs("bert")).detach()
    save_adapters(model, tmp_path, fold=fold)
    other = deep("bert")
    attachment = load_adapters(other, tmp_path)
    assert attachment.plan == S4(budget=20_000, gate=Gate())
    torch.testing.assert_close(output(other, inputs("bert")).detach(), expected)


def test_attaching_twice_does_nothing_and_detaching_undoes() -> None:
    model = deep("bert")
    before = output(model, inputs("bert")).detach()
    first = attach(model, S4(budget=20_000))
    assert attach(model, S4(budget=20_000)) is first
    with pytest.raises(ValueError, match="has another plan already: S4"):
        attach(model, S4(budget=30_000))
    detach(model)
    torch.testing.assert_close(output(model, inputs("bert")).detach(), before, rtol=0, atol=0)


@pytest.mark.slow
def test_s4_is_the_resolved_plan() -> None:
    """The names, initial weights and outputs are the same."""
    states = []
    for resolve in (False, True):
        model = deep("bert")
        plan: Plan = S4(budget=20_000)
        attach(model, plan.resolved(examine(model)) if resolve else plan, seed=5)  # type: ignore[attr-defined]
        states.append((model.state_dict(), output(model, inputs("bert"))))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_the_unresolved_plan_names_the_methods_and_gates_of_the_resolved_one() -> None:
    assert {method.name for method in S4().methods} == {"adapter", "prefix", "bitfit", "lora"}
    assert all(method.gate is None for method in S4().methods)
    assert all(method.gate == Gate() for method in S4(gate=Gate()).methods)
    model = deep("bert")
    attachment = attach(model, S4(budget=20_000, gate=Gate()))
    assert {view.method for view in attachment.gates.values()} == {m.name for m in S4().methods}


def test_a_family_without_prefixes_names_a_design_that_fits() -> None:
    model = deep("deberta")
    message = r"S4 has a prefix in group 2, 3, 4, and deberta cannot take one.*Leave it out: use "
    with pytest.raises(ValueError, match=message) as error:
        attach(model, S4(budget=20_000))
    instead = eval(str(error.value).partition("Leave it out: use ")[2])
    assert instead == Design(["AL", "A", "AB", "BL"], budget=20_000)
    attachment = attach(model, instead)
    assert 19_000 <= sum(count.trained for count in attachment.counts.values()) <= 21_000
    with pytest.raises(ValueError, match="use A, B or L instead"):
        Design(["P"]).resolved(attachment.anatomy)


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 blocks cannot be shared among 4 groups"):
        attach(build("bert"), S4(budget=20_000))


def test_a_budget_out_of_reach_does_not_change_the_model() -> None:
    model = deep("bert")
    before = set(model.state_dict())
    with pytest.raises(ValueError, match="the nearest reachable total is"):
        attach(model, S4(budget=0.001))
    assert set(model.state_dict()) == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_share_needs_the_size_of_the_backbone(bert: Anatomy) -> None:
    unknown: Any = replace(bert, parameters=0)
    with pytest.raises(ValueError, match=r"budget=0\.5 is a share .* give a number of parameters"):
        S4(budget=0.5).resolved(unknown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategies": ["AX"]}, "unknown strategy 'X'"),
        ({"strategies": ["AA"]}, "the group 'AA' has a method twice"),
        ({"strategies": "AL"}, r"is one string: give a list .* \['AL', \.\.\.\]"),
        ({"strategies": []}, "no group has a method"),
        ({"strategies": ["", ""]}, "no group has a method"),
        ({"strategies": ["A"], "budget": 0}, "budget=0 is not a number of parameters"),
        ({"strategies": ["A"], "budget": "0.2%"}, "budget='0.2%' is not a number of parameters"),
        ({"strategies": ["A"], "budget": True}, "budget=True is not a number of parameters"),
        ({"strategies": ["A"], "budget": -0.1}, r"budget=-0\.1 is not a number"),
        ({"strategies": ["A"], "budget": 1.5}, r"budget=1\.5 is not a number"),
        ({"strategies": ["A"], "budget": float("nan")}, "budget=nan is not a number"),
        ({"strategies": ["A"], "budget": float("inf")}, "budget=inf is not a number"),
        ({"strategies": ["A"], "pattern": "spindel"}, "did you mean 'spindle'"),
        ({"strategies": ["A"], "allocation": "unifrom"}, "did you mean 'uniform'"),
        ({"strategies": ["A"], "over": "block"}, "did you mean 'blocks'"),
        ({"strategies": ["A"], "stacks": "per-stack"}, "did you mean 'per_stack'"),
    ],
)
def test_wrong_arguments_are_refused_without_a_model(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Design(**arguments)
