"""Recipes of the best plan for ``lightning-pelt fit``, one file for each task."""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lightning_pelt.data import RowsDataModule
from lightning_pelt.plans.design_space import Design
from lightning_pelt.plans.design_space.strategies import template
from lightning_pelt.search.queue.job import Outcomes
from lightning_pelt.search.report.summary import best_plan, candidate_scores, plan_place
from lightning_pelt.search.search_state import SearchState
from lightning_pelt.search.settings import Settings
from lightning_pelt.search.task_settings import FitSettings
from lightning_pelt.utils.files import write_aside


def write_recipes(settings: Settings, state: SearchState, outcomes: Outcomes) -> list[Path]:
    """Write ``winner_<task>.yaml`` for every task to the folder of the reports.

    The winner is the plan that the report recommends: the one with the best mean in the final
    comparison, at the final budget. It need not be the found design.

    Args:
        settings: of the search; backbone, data, learning rates and length of its fits go into the
            recipes.
        state: final state of the search.
        outcomes: by the key of the job.

    Returns:
        Paths of the recipes.

    Raises:
        ValueError: the search is not finished.
    """
    if state.comparison is None:
        raise ValueError("there is no design to write yet: the search is not finished")
    settings.folder.mkdir(parents=True, exist_ok=True)
    scores = candidate_scores(state.comparison, outcomes)
    best = best_plan(scores) or scores[0]  # the found design, if all fits diverged
    (candidate,) = [each for each in state.comparison.candidates if each.name == best.name]
    paths = [settings.folder / f"winner_{name}.yaml" for name in settings.tasks]
    for name, path in zip(settings.tasks, paths, strict=True):
        made = recipe(settings, name, candidate.design)
        text = _header(settings, plan_place(best), name, path) + yaml.safe_dump(
            made, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
        )
        write_aside(path, partial(_write, text))
    return paths


def recipe(settings: Settings, name: str, design: Design) -> dict[str, Any]:
    """A recipe for ``fit`` as plain data: a design on one task of the search.

    Args:
        settings: of the search.
        name: of the task.
        design: the plan.
    """
    task, fit, seed = settings.task(name), settings.fit, settings.final_seeds[0]
    run = f"runs/winner_{name}"
    monitor = {"monitor": f"val/{task.monitor}", "mode": "max"}
    groups = {template(letter).name for letter in "".join(design.strategies)} | {"head"}
    groups |= {"gate"} if design.gate is not None else set()
    model = {
        "lr": fit.lr,
        "lrs": {group: rate for group, rate in fit.lrs.items() if group in groups},
        "weight_decay": fit.weight_decay,
        "warmup": fit.warmup,
        "base_dropout": fit.base_dropout,
        "seed": seed,
    }
    design_args = {k: v for k, v in Design.init_args(design).items() if v is not None}
    clip = {} if fit.gradient_clip_val is None else {"gradient_clip_val": fit.gradient_clip_val}
    return {
        "seed_everything": seed,
        "trainer": {
            **_length(fit),
            **clip,
            "accelerator": settings.accelerator,
            "precision": settings.precision,
            "log_every_n_steps": 10,
            "default_root_dir": run,
            "logger": _named("lightning.pytorch.loggers.CSVLogger", save_dir=run, name=None),
            "callbacks": [
                _named("ParameterCount"),
                _named("FiniteGuard"),
                _named("ModelCheckpoint", **monitor),
            ],
        },
        "model": {
            "backbone": settings.backbone,
            "plan": _named("Design", **_plain(design_args)),
            "task": _named(
                _path(task.task),
                **_given(task.task, dataclasses.asdict(task.task)),  # type: ignore[call-overload]
            ),
            **model,
        },
        "data": _data(settings.data(name)),
    }


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _length(fit: FitSettings) -> dict[str, int | None]:
    """The number of epochs, or of steps with an evaluation after the last one."""
    if fit.max_epochs is not None:
        return {"max_epochs": fit.max_epochs}
    steps = fit.max_steps
    return {"max_steps": steps, "val_check_interval": steps, "check_val_every_n_epoch": None}


def _header(settings: Settings, plan: str, name: str, path: Path) -> str:
    return (
        f"# {plan}: the best plan of the search {settings.name!r} ({settings.method}, seed "
        f"{settings.seed})\n# on {settings.backbone}, here for the task {name!r}.\n"
        "# See report.md in this folder.\n"
        f"#   lightning-pelt fit --config {path.name}\n"
    )


def _data(data: RowsDataModule) -> dict[str, Any]:
    """The data module, without held-out rows; its backbone is linked to the model's."""
    arguments = {k: v for k, v in data.hparams.items() if k not in ("backbone", "holdout")}
    return _named(_path(data), **_given(data, arguments))


def _given(made: object, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that differ from their defaults or have none."""
    defaults = {
        name: each.default
        for parent in type(made).__mro__[::-1]
        if "__init__" in vars(parent)
        for name, each in inspect.signature(parent.__init__).parameters.items()  # type: ignore[misc]
    }
    return {k: _plain(v) for k, v in arguments.items() if k not in defaults or defaults[k] != v}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _path(made: object) -> str:
    """The class name for classes of this package, the full path for others."""
    kind = type(made)
    internal = kind.__module__.startswith("lightning_pelt.")
    return kind.__name__ if internal else f"{kind.__module__}.{kind.__qualname__}"


def _named(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, **({"init_args": arguments} if arguments else {})}
