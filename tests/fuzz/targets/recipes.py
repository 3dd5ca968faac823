"""Recipes in YAML, and the files that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fuzz.target import Target

from lightning_pelt.cli.recipe_file import read_recipe

RECIPE = """\
seed_everything: 1
model:
  backbone: bert
  plan: plan.yaml
  rates: &rates {lora: 1.0e-3, prefix: 2.0e-3}
  again: *rates
data:
  class_path: TextDataModule
  init_args: {train: rows.csv, batch_size: 4}
"""
PLAN = "class_path: UniPELT\ninit_args: {lora: {class_path: LoRA, init_args: {r: 8}}}\n"


class Recipe(Target):
    name = "read_recipe"
    errors = (ValueError, OSError)
    seconds = 5.0

    def write(self, folder: Path) -> None:
        (folder / "recipe.yaml").write_text(RECIPE)
        (folder / "plan.yaml").write_text(PLAN)

    def load(self, folder: Path) -> Any:
        return read_recipe(folder / "recipe.yaml")

    def problem(self, folder: Path, result: Any) -> str | None:
        return None if isinstance(result, dict) else f"accepted {type(result).__name__}"
