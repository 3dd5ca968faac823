"""Recipes of a search: valid settings, and the errors for invalid ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from search.parsing import parse

from lightning_pelt.data import GLUE, TextClassification
from lightning_pelt.search.settings import Settings

SST2 = {"class_path": "GLUE", "init_args": {"task": "sst2", "limit_train": 50}}
RECIPE: dict[str, Any] = {
    "backbone": "somewhere",
    "tasks": {
        "sst2": {"data": SST2},
        "news": {
            "data": {
                "class_path": "TextClassification",
                "init_args": {"dataset": "fancyzhx/ag_news", "train": "train", "dev": "test"},
            },
            "task": {"class_path": "Classification", "init_args": {"metrics": ["macro_f1"]}},
        },
    },
    "fit": {"max_epochs": 1, "lrs": {"lora": 0.01}},
}
STILL = {**RECIPE["fit"], "base_dropout": False}


def read(folder: Path, *args: str, **changes: Any) -> Settings:
    recipe = {**RECIPE, **changes}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return parse([f"--config={folder / 'recipe.yaml'}", *args]).settings


def test_a_recipe_and_options_become_settings(tmp_path):
    settings = read(
        tmp_path,
        "--fit.lr=0.5",
        "--fit.lrs.prefix=0.3",
        "--racing.cap=40",
        "--method=gates",
        "--wandb.project=mine",
    )
    assert settings.fit.lr == 0.5
    assert settings.fit.lrs == {"lora": 0.01, "prefix": 0.3}
    assert settings.racing.cap == 40
    assert settings.method == "gates"
    assert settings.wandb.project == "mine"
    assert settings.task("sst2").monitor == "accuracy"
    assert settings.task("news").monitor == "macro_f1"
    data = settings.data("sst2", holdout=0.2)
    assert isinstance(data, GLUE)
    assert (data.backbone, data.task, data.limit_train) == ("somewhere", "sst2", 50)
    assert data.holdout == 0.2
    assert settings.data("sst2").holdout is None
    assert (settings.search_budget, settings.comparison_budget) == (0.005, 0.005)
    assert settings.folder == Path("runs/search/search")


@pytest.mark.slow
def test_worker_is_a_switch(tmp_path):
    read(tmp_path)
    recipe = f"--config={tmp_path / 'recipe.yaml'}"
    assert [parse([recipe]).worker, parse([recipe, "--worker"]).worker] == [False, True]


@pytest.mark.slow
def test_the_folder_of_reports_is_beside_the_journal_by_default(tmp_path):
    assert read(tmp_path, storage="somewhere/else/l.journal").folder == Path(
        "somewhere/else/search"
    )
    assert read(tmp_path, storage="postgresql://host/db").folder == Path("runs/search/search")
    assert read(tmp_path, output="there").folder == Path("there")


def test_folders_replace_the_hub(tmp_path):
    (tmp_path / "news").mkdir()
    for split in ("train", "test"):
        (tmp_path / "news" / f"{split}.jsonl").write_text("{}")
    settings = read(tmp_path, f"--folders={tmp_path}")
    data = settings.data("sst2")
    assert isinstance(data, GLUE)
    assert data.folder == str(tmp_path / "sst2")
    assert (data.task, data.limit_train) == ("sst2", 50)
    news = settings.data("news")
    assert isinstance(news, TextClassification)
    assert news.sources.dataset is None
    assert news.sources.locations == {
        "train": str(tmp_path / "news" / "train.jsonl"),
        "dev": str(tmp_path / "news" / "test.jsonl"),
    }


@pytest.mark.slow
def test_a_trunk_cache(tmp_path):
    given = {"folder": str(tmp_path / "trunk"), "max_bytes": 1000}
    found = read(tmp_path, fit=STILL, trunk_cache=given).trunk_cache
    assert found is not None and found.callback().max_bytes == 1000
    with pytest.raises(SystemExit):
        read(tmp_path, trunk_cache=given)  # with dropout


@pytest.mark.slow
def test_the_fingerprint_is_plain_data_of_what_decides_the_scores(tmp_path):
    base = read(tmp_path).fingerprint()
    assert json.loads(json.dumps(base)) == base
    assert base["tasks"]["sst2"]["data"]["init_args"]["limit_train"] == 50
    same: list[dict[str, Any]] = [
        {"storage": "x/y.journal", "name": "other", "output": "z", "threads": 2},
        {"method": "gates", "racing": {"cap": 20}, "wandb": {"offline": True}},
        {"final_budget": 0.01},  # affects the jobs of the final comparison, not their scores
        {"final_seeds": [5], "accelerator": "cpu", "devices": [0]},
        {"trunk_cache": {"folder": "x"}, "fit": STILL},
    ]
    still = read(tmp_path, fit=STILL).fingerprint()
    for changes in same:
        expected = still if "fit" in changes else base
        assert read(tmp_path, **changes).fingerprint() == expected, changes
    other: list[dict[str, Any]] = [
        {"backbone": "elsewhere"},
        {"fit": {**RECIPE["fit"], "lr": 0.3}},
        {"fit": {"max_epochs": 1, "lrs": {"lora": 0.02}}},
        {"tasks": {"sst2": {"data": SST2}}},
        {"tasks": {**RECIPE["tasks"], "sst2": {"data": {**SST2, "init_args": {"task": "sst2"}}}}},
        {"search_budget": 0.01},
        {"holdout": 0.2},
        {"seed": 1},
        {"patterns": ["uniform", "spindle"]},
        {"subsets": ["A", "L"]},
    ]
    seen = [json.dumps(read(tmp_path, **changes).fingerprint()) for changes in other]
    assert len({json.dumps(base), *seen}) == len(other) + 1


def test_the_fingerprint_does_not_depend_on_the_folder_of_the_data(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "news").mkdir(exist_ok=True)
        (tmp_path / "news" / f"{split}.jsonl").write_text("{}")
    here = read(tmp_path, f"--folders={tmp_path}").fingerprint()
    assert here == read(tmp_path).fingerprint()


def task(**settings: Any) -> dict[str, Any]:
    return {"tasks": {"sst2": {"data": SST2, **settings}}}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tasks": {}}, "tasks is empty"),
    (task(metric="f2"), "unknown metric of Classification 'f2'"),
    (task(metric="f1"), "unknown metric of Classification 'f1'"),
    (task(task={"class_path": "Regression", "init_args": {"metrics": ["mse"]}}), "when lower"),
    (task(task={"class_path": "CausalLM"}), "when lower"),
    (task(task={"class_path": "Clasification"}), "did you mean 'Classification'"),
    ({"tasks": {"sst2": {"data": {"class_path": "GLEU"}}}}, "did you mean 'GLUE'"),
    (
        {"tasks": {"sst2": {"data": {"class_path": "GLUE", "init_args": {"limit_trian": 5}}}}},
        "did you mean 'limit_train'",
    ),
    ({"fit": {"max_epochs": 1, "lrs": {"lorra": 0.1}}}, "did you mean 'lora'"),
    (
        {"fit": {"max_epochs": 1, "lr": -1.0}},
        "fit.lr is -1.0, expected a finite learning rate above 0",
    ),
    ({"fit": {"max_epochs": 1, "warmpu": 0.1}}, "did you mean 'fit.warmup'"),
    ({"fit": {}}, "give one of them"),
    ({"fit": {"max_epochs": 1, "max_steps": 1}}, "give one of them"),
    ({"holdout": 0.0}, "holdout is 0.0"),
    ({"holdout": 1.0}, "holdout is 1.0"),
    ({"search_budget": 0}, "not a number of parameters"),
    ({"final_budget": -0.1}, "not a number of parameters"),
    ({"groups": 0}, "groups is 0"),
    ({"compare": ["L", "X"]}, "unknown plan to compare with"),
    ({"final_seeds": [-1]}, "seeds from 0 on"),
    ({"workers": -1}, "workers is -1"),
    ({"devices": 2}, "a worker for each device"),
    ({"racing": {"first": 1}}, "at least 2 blocks"),
    ({"bakbone": "x"}, "did you mean 'backbone'"),
    ({"method": "raceing"}, "racing"),
    ({"folders": "/nowhere"}, "no train rows"),
]


@pytest.mark.parametrize(("changes", "answer"), WRONG, ids=[answer for _, answer in WRONG])
def test_invalid_settings_are_refused_before_training(tmp_path, capsys, changes, answer):
    with pytest.raises(SystemExit) as exit:
        read(tmp_path, **changes)
    assert exit.value.code == 2
    assert answer in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_included_recipe_is_valid(repository, shared_data):
    recipe = repository / "recipes" / "search_minilm.yaml"
    settings = parse([f"--config={recipe}", f"--folders={shared_data}"]).settings
    assert len(settings.tasks) == 2
    assert {"adapter", "prefix", "bitfit", "lora", "head"} <= {*settings.fit.lrs}
    for name in settings.tasks:
        data = settings.data(name, settings.holdout)
        assert len(data.rows("dev")) < len(data.rows("train"))
