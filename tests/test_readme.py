"""The README's Python runs as it stands there, with fewer batches."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import lightning.pytorch
import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_example_runs(block: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    short = {"limit_train_batches": 2, "limit_val_batches": 1, "accelerator": "cpu"}
    trainer = functools.partial(lightning.pytorch.Trainer, **short)
    monkeypatch.setattr(lightning.pytorch, "Trainer", trainer)
    exec(compile(block, str(README), "exec"), {"__name__": "readme"})


def test_readme_has_examples_and_names_recipes_that_exist() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(BLOCKS) >= 2
    recipes = set(re.findall(r"recipes/(\w+)\.yaml", text)) - {"NAME"}
    assert recipes
    for recipe in recipes:
        assert (README.parent / "recipes" / f"{recipe}.yaml").is_file(), recipe
