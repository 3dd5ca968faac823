"""The JSON schema of recipes: all recipes fit it, and mistakes in them do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from lightning_pelt.cli import schema

ROOT = Path(__file__).parents[2]
RECIPES = {file.stem: file for file in sorted((ROOT / "recipes").glob("*.yaml"))}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def validator() -> Callable[[str], Draft202012Validator]:
    made: dict[str, Draft202012Validator] = {}

    def of(command: str) -> Draft202012Validator:
        if command not in made:
            found = schema.schema_of(command)
            Draft202012Validator.check_schema(found)
            made[command] = Draft202012Validator(found)
        return made[command]

    return of


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits(validator: Callable, name: str) -> None:
    command = "search" if name.startswith("search") else "fit"
    assert [error.message for error in validator(command).iter_errors(read(name))] == []


def test_other_forms_fit(validator: Callable) -> None:
    recipe = read("quickstart")
    recipe["model"]["plan"] = "UniPELT"
    assert validator("fit").is_valid(recipe)
    lora = {"class_path": "lightning_pelt.LoRA", "init_args": {"r": 4, "gate": {"pool": "token"}}}
    foreign = {"class_path": "my_package.VeRA", "init_args": {"r": 256}}
    group = {"blocks": "3-5", "methods": [lora, foreign]}
    recipe["model"]["plan"] = {"class_path": "Plan", "init_args": {"groups": [group]}}
    assert validator("fit").is_valid(recipe)


def plan_of(method: dict[str, Any]) -> dict[str, Any]:
    groups = [{"methods": [method]}]
    return {"model": {"plan": {"class_path": "Plan", "init_args": {"groups": groups}}}}


def callback(**spec: Any) -> dict[str, Any]:
    return {"trainer": {"callbacks": [spec]}}


WRONG = {
    "an unknown option": {"model": {"bakbone": "a"}},
    "an unknown group": {"modle": {"backbone": "a"}},
    "a type": {"trainer": {"max_epochs": "many"}},
    "an unknown plan": {"model": {"plan": "UniPLET"}},
    "an unknown callback": callback(class_path="GateMonitr"),
    "an argument of a callback": callback(class_path="GateMonitor", init_args={"every": 1}),
    "an argument of a method": plan_of({"class_path": "LoRA", "init_args": {"rank": 8}}),
    "a way of pooling": plan_of({"class_path": "LoRA", "init_args": {"gate": {"pool": "max"}}}),
}


@pytest.mark.parametrize(
    "recipe",
    [
        {"model": {"backbone": "a"}},
        {"model": {"plan": "UniPELT"}},
        {"trainer": {"max_epochs": 3}},
        callback(class_path="GateMonitor", init_args={"every_n_steps": 1}),
        plan_of({"class_path": "LoRA", "init_args": {"r": 8, "gate": {"pool": "token"}}}),
    ],
    ids=str,
)
def test_a_part_of_a_recipe_fits(validator: Callable, recipe: dict[str, Any]) -> None:
    """The command line gives the rest. Each mistake below differs from one of these in one name."""
    assert validator("fit").is_valid(recipe)


@pytest.mark.parametrize("recipe", WRONG.values(), ids=WRONG)
def test_a_mistake_does_not_fit(validator: Callable, recipe: dict[str, Any]) -> None:
    assert not validator("fit").is_valid(recipe)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    schema.main(["search"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == schema.schema_of("search")
    assert printed["title"] == "A recipe for lightning-pelt search"
