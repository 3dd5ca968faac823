"""Configured objects from plain data that somebody else wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from lightning_pelt import XPEFT, Adapter, Gate, LoRA, Plan, Prefix, RandomBank, UniPELT
from lightning_pelt.methods._argument_types import fits
from lightning_pelt.methods.config import Configured, Nested, rebuild
from lightning_pelt.plans import from_config


@pytest.mark.parametrize(
    "value",
    [
        LoRA(r=2, gate=Gate()),
        Adapter(),
        Prefix(mlp=None),
        XPEFT(bank=RandomBank(size=4), k=2),
        UniPELT(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_written_is_built_again(value: Configured) -> None:
    config = value.to_config()
    again = rebuild(config)
    assert type(again) is type(value)
    assert again.to_config() == config


def lora(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "lightning_pelt.LoRA", "init_args": arguments}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lora(r="8"), "LoRA has r='8', expected int"),
        (lora(r=True), "LoRA has r=True, expected int"),
        (lora(r=2.5), r"LoRA has r=2\.5, expected int"),
        (lora(r=None), "LoRA has r=None, expected int"),
        (lora(alpha="much"), "alpha='much', expected float"),
        (lora(alpha=float("nan")), "alpha=nan, expected float"),
        (lora(rslora=0), "rslora=0, expected bool"),
        (lora(sites="query"), r"sites='query', expected .*Sequence\[str\]"),
        (lora(sites=["query", 5]), r"sites=\['query', 5\]"),
        (lora(gate="yes"), "gate='yes'"),
        (lora(gate={"pool": "mean"}), "pool='mean', expected .*masked"),
        (lora(name=3), "name=3, expected str"),
        (lora(rank=3), "LoRA cannot be built from .*unexpected keyword argument 'rank'"),
        ({"class_path": 7}, "unknown class of a configuration 7"),
        ({"class_path": None}, "unknown class of a configuration None"),
        ({"class_path": "lightning_pelt.LoRA", "init_args": [1]}, r"LoRA has init_args=\[1\]"),
        ({"class_path": "lightning_pelt.LoRA", "init_args": None}, "LoRA has init_args=None"),
        ({"class_path": "lightning_pelt.LoRA", "init_args": {1: 2}}, "LoRA has init_args="),
        (
            {"class_path": "lightning_pelt.TrainedBank", "init_args": {"folders": [1]}},
            r"TrainedBank has folders=\[1\]",
        ),
    ],
)
def test_a_wrong_type_names_the_argument_and_its_type(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rebuild(config)


def plan(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "lightning_pelt.Plan", "init_args": arguments}


@pytest.mark.parametrize(
    "config",
    [
        *(None, 7, "lightning_pelt.Plan", [], [plan()], {}, lora()),
        *(plan(groups=5), plan(groups="all"), plan(groups=[7]), plan(groups=[lora()])),
        *(plan(groups=[{"methods": 5}]), plan(groups=[{"methods": ["lora"]}])),
        *(plan(groups=[{"methods": [lora()], "blocks": b}]) for b in (None, 5, ["x"], {}, [0.5])),
        plan(groups=[{"methods": [lora()], "stack": 5}]),
        plan(norms="yes"),
    ],
    ids=str,
)
def test_what_does_not_describe_a_plan_is_a_value_error(config: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_config(config)


def test_a_range_of_blocks_is_compared_with_the_stack_before_it_is_expanded() -> None:
    (group,) = from_config(plan(groups=[{"methods": [], "blocks": "0-99999999999999"}])).groups
    with pytest.raises(ValueError, match="block 99999999999999 does not exist"):
        group.numbers(12)


@dataclass(frozen=True)
class Fragile(Configured):
    """Its constructor fails in a way of its own."""

    options: int

    def __post_init__(self) -> None:
        raise KeyError("no such option")


def test_what_a_constructor_raises_is_a_value_error() -> None:
    config = {"class_path": f"{__name__}.Fragile", "init_args": {"options": 1}}
    with pytest.raises(ValueError, match="cannot be built from"):
        rebuild(config)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True),
        (1, float, True),
        (1.0, int, False),
        (True, float, False),
        (True, bool, True),
        (None, None, True),
        (None, int | None, True),
        ("x", int | None, False),
        ("a", Literal["a", 1], True),
        (True, Literal["a", 1], False),
        (["a"], Sequence[str], True),
        (("a",), Sequence[str], True),
        ("a", Sequence[str], False),
        ("a", str | Sequence[int], True),
        ({}, Sequence[str], False),
        ([1, 2], tuple[int, ...], True),
        ([1, "a"], tuple[int, str], True),
        ([1], tuple[int, str], False),
        ({"a": 1}, dict[str, int], True),
        ({"a": "b"}, Mapping[str, int], False),
        ([1], dict[str, int], False),
        ([object()], list, True),
        (object(), Any, True),
        (object(), "LoRA", True),  # an annotation that cannot be read
        (LoRA(), Nested, False),
        (Plan(), Configured, True),
    ],
)
def test_what_fits_an_annotation(value: Any, hint: Any, expected: bool) -> None:
    assert fits(value, hint) is expected
