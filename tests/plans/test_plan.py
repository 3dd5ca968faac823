"""Plans: the sites of their methods, their errors, and their configurations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from zoo import build

from lightning_pelt import (
    IA3,
    Adapter,
    BitFit,
    FullFineTuning,
    Gate,
    Group,
    HeadOnly,
    LoRA,
    Plan,
    Prefix,
    UniPELT,
    attach,
)
from lightning_pelt.anatomy import Anatomy, Site, examine
from lightning_pelt.methods.base import Method, Part, Place
from lightning_pelt.plans import from_config
from lightning_pelt.testing import MethodConformance, tiny_bert


@dataclass(frozen=True)
class Foreign(LoRA):
    """A method of another package."""

    extra: int = 1
    name: str = "foreign"


@pytest.mark.slow
class TestForeign(MethodConformance):
    compiled = ("bert",)
    method = Foreign(r=2)


@pytest.fixture(scope="module")
def bert() -> Anatomy:
    return examine(build("bert"))


@pytest.fixture(scope="module")
def bart() -> Anatomy:
    return examine(build("bart"))


def blocks(plan: Plan, anatomy: Anatomy) -> list[tuple[str, list[tuple[str, int | None]]]]:
    """For each placed method its name, and its blocks by stack and number."""
    return [
        (method.name, sorted({(site.stack, site.block) for site in sites}))
        for _, method, sites in plan.place(anatomy)
    ]


RANGES: list[tuple[Any, list[int]]] = [
    ("all", [0, 1, 2, 3, 4, 5]),
    ("0-3,5", [0, 1, 2, 3, 5]),
    ("2", [2]),
    (" 1 , 3-4", [1, 3, 4]),
    ([0, 5], [0, 5]),
    ([-1], [5]),
    ([-6, -2], [0, 4]),
    ((1, 1, -5), [1]),
]


@pytest.mark.parametrize(("written", "numbers"), RANGES)
def test_block_numbers(written: Any, numbers: list[int]) -> None:
    assert Group([], blocks=written).numbers(6) == numbers


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([6], r"block 6 does not exist.*0 to 5; the nearest is 5"),
        ([-7], r"block -7 does not exist.*the nearest is 0"),
        ("4-6", r"block 6 does not exist"),
        ("first", r"blocks='first' is not a range.*'0-3,6'"),
        ("1;2", r"blocks='1;2' is not a range"),
        ("", r"blocks='' is not a range"),
    ],
)
def test_wrong_block_numbers(written: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Group([], blocks=written).numbers(6)


def test_groups(bert: Anatomy) -> None:
    plan = Plan([Group([LoRA(), Adapter()], blocks=[0]), Group([IA3(), LoRA(r=2)], blocks=[-1])])
    assert blocks(plan, bert) == [
        ("lora", [("encoder", 0)]),
        ("adapter", [("encoder", 0)]),
        ("ia3", [("encoder", 1)]),
        ("lora", [("encoder", 1)]),
    ]


def test_groups_are_attached_to_their_blocks() -> None:
    model = tiny_bert()
    plan = Plan([Group([LoRA(r=2)], blocks=[0]), Group([LoRA(r=4, gate=Gate())], blocks=[1])])
    attachment = attach(model, plan)
    assert list(attachment.gates) == ["01/lora.query", "01/lora.value"]
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if n.endswith(".A")}
    assert shapes == {
        "bert.encoder.layer.0.attention.self.pelt.lora_down.A": (4, 32),
        "bert.encoder.layer.1.attention.self.pelt.lora_down.A": (8, 32),
    }


def test_stacks(bart: Anatomy) -> None:
    plan = Plan([Group([LoRA()], stack="decoder", blocks=[-1]), Group([IA3()], stack="encoder")])
    assert blocks(plan, bart) == [
        ("lora", [("decoder", 1)]),
        ("ia3", [("encoder", 0), ("encoder", 1)]),
    ]
    everywhere = blocks(Plan.uniform(LoRA()), bart)
    assert everywhere[0][1] == [(s, b) for s in ("decoder", "encoder") for b in (0, 1)]


def test_uniform_is_one_group() -> None:
    assert Plan.uniform(LoRA(), IA3()) == Plan([Group([LoRA(), IA3()], blocks="all")])
    assert Plan.uniform(LoRA(), IA3()).methods == (LoRA(), IA3())


WRONG: dict[str, tuple[Plan, str]] = {
    "stack": (Plan([Group([LoRA()], stack="decodr")]), r"stack of bart 'decodr': did you mean 'de"),
    "block": (Plan([Group([LoRA()], blocks=[0, 2])]), r"block 2 does not exist.*nearest is 1"),
    "site": (Plan.uniform(LoRA(sites=("querry",))), r"site on bart 'querry': did you mean 'query'"),
    "no site": (
        Plan([Group([LoRA(sites=("cross_attention.query",))], stack="encoder")]),
        r"matches no site of bart in blocks all of encoder: .* attention\.query, ",
    ),
    "name": (
        Plan.uniform(LoRA(), LoRA(sites=("key",))),
        r"block 0 gets two methods named 'lora'.*LoRA\(name=\.\.\.\)",
    ),
    "overlapping groups": (
        Plan([Group([LoRA()]), Group([LoRA(r=2)], blocks=[1], stack="decoder")]),
        r"block 1 gets two methods named 'lora'",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_plans(bart: Anatomy, kind: str) -> None:
    plan, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        plan.place(bart)


def test_two_methods_of_one_class_with_different_names(bert: Anatomy) -> None:
    plan = Plan.uniform(LoRA(), LoRA(sites=("key",), name="keys"))
    assert [name for name, _ in blocks(plan, bert)] == ["lora", "keys"]
    attachment = attach(tiny_bert(), plan)
    assert set(attachment.parameter_groups()) == {"lora", "keys", "head"}


def test_unipelt_gates_everything() -> None:
    """The paper's adapter, prefix and LoRA; a method that has a gate keeps it."""
    assert [type(method) for method in UniPELT().methods] == [Adapter, Prefix, LoRA]
    assert {method.gate for method in UniPELT().methods} == {Gate()}
    shared, pooled = Gate(shared=True), Gate(pool="all")
    mixed = UniPELT([LoRA(gate=shared), Prefix()], gate=pooled)
    assert [method.gate for method in mixed.methods] == [shared, pooled]


def test_unipelt_defaults_are_the_papers() -> None:
    adapter, prefix, lora = UniPELT().methods
    assert isinstance(adapter, Adapter)
    assert (adapter.reduction_factor, adapter.activation, adapter.sites) == (16, "relu", ("ffn",))
    assert isinstance(prefix, Prefix)
    assert (prefix.length, prefix.mlp) == (10, 512)
    assert isinstance(lora, LoRA)
    assert (lora.r, lora.sites, lora.dropout) == (8, ("query", "value"), 0.0)


def test_baselines() -> None:
    assert FullFineTuning().train_base
    assert not HeadOnly().train_base
    assert HeadOnly() != FullFineTuning()
    assert HeadOnly().methods == FullFineTuning().methods == ()


PLANS = {
    "unipelt": UniPELT(),
    "ap": UniPELT([Adapter(), Prefix()], gate=Gate(pool="all", init_bias=1.0)),
    "uniform": Plan.uniform(LoRA(rslora=True), BitFit(sites=["norm"]), IA3(gate=Gate())),
    "groups": Plan(
        [
            Group([LoRA(sites=["key"])], blocks="0-1", stack="encoder"),
            Group([Prefix(mlp=None), Adapter(placement="parallel")], blocks=[-1]),
        ]
    ),
    "foreign": Plan.uniform(Foreign(extra=3)),
    "head only": HeadOnly(),
    "full": FullFineTuning(),
}


@pytest.mark.parametrize("name", PLANS)
def test_configuration_round_trip(name: str) -> None:
    plan = PLANS[name]
    text = json.dumps(plan.to_config())
    again = from_config(json.loads(text))
    assert type(again) is type(plan)
    assert again == plan
    assert hash(again) == hash(plan)
    assert json.dumps(again.to_config()) == text
    assert [type(method) for method in again.methods] == [type(m) for m in plan.methods]


def test_configuration_names_public_classes() -> None:
    config = Plan([Group([LoRA(r=2)], blocks=[1])]).to_config()
    assert config["class_path"] == "lightning_pelt.Plan"
    (group,) = config["init_args"]["groups"]
    (method,) = group["methods"]
    assert method["class_path"] == "lightning_pelt.LoRA"
    assert method["init_args"]["r"] == 2
    assert (group["blocks"], group["stack"]) == ([1], None)


def test_plans_differ() -> None:
    plans = list(PLANS.values())
    assert all((a == b) == (a is b) for a in plans for b in plans)
    assert UniPELT() != Plan.uniform(*UniPELT().methods, LoRA(name="more"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("lightning_pelt.UniPelt", r"'lightning_pelt\.UniPelt': did you mean 'lightning_pelt\.Uni"),
        ("os.system", r"unknown class of a configuration 'os\.system'"),
        ("subprocess.Popen", r"unknown class of a configuration"),
        ("lightning_pelt.attach.attach", r"unknown class of a configuration"),
        ("nowhere.at.all.Plan", r"unknown class of a configuration"),
        ("antigravity.Plan", r"unknown class of a configuration"),
        ("Plan", r"unknown class of a configuration"),
    ],
)
def test_unknown_classes_are_refused(path: str, message: str) -> None:
    """A configuration never causes an import."""
    with pytest.raises(ValueError, match=message):
        from_config({"class_path": path, "init_args": {}})


def test_unknown_arguments_are_refused() -> None:
    config: dict[str, Any] = Plan.uniform(LoRA()).to_config()
    config["init_args"]["groups"][0]["methods"][0]["init_args"]["rank"] = 3
    with pytest.raises(ValueError, match=r"LoRA cannot be built from.*rank"):
        from_config(config)


def test_a_method_is_not_a_plan() -> None:
    method = Plan.uniform(LoRA()).to_config()["init_args"]["groups"][0]["methods"][0]
    with pytest.raises(ValueError, match=r"'lightning_pelt\.LoRA' is not a plan: give"):
        from_config(method)


class Local:
    """Contains a method, which configurations name by its qualified name."""

    @dataclass(frozen=True)
    class Nothing(Method):
        gate: Gate | None = None
        name: str = "nothing"

        def where(self, anatomy: Anatomy) -> list[Site]:
            return []

        def build(self, place: Place) -> list[Part]:
            raise AssertionError("a method without sites is never built")


def test_a_method_without_sites_is_refused(bert: Anatomy) -> None:
    with pytest.raises(ValueError, match=r"Nothing\(.*\) matches no site of bert"):
        Plan.uniform(Local.Nothing()).place(bert)
