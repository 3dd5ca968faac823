"""What of a checkpoint's hyperparameters holds beside those that a recipe and its options give."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lightning_pelt.plans import Plan, from_config
from lightning_pelt.search.config_diff import differences
from lightning_pelt.utils.backbone import resolve_backbone

SHOWN = 3  # differences that a message names
WIDTH = 200  # characters of one


def agree(
    saved: Mapping[str, Any], given: Mapping[str, Any], here: Mapping[str, Any], *, path: str
) -> dict[str, Any]:
    """The hyperparameters to take from a checkpoint: those that are not given.

    Args:
        saved: hyperparameters of the checkpoint.
        given: options of the model in the recipe and on the command line, without defaults.
        here: hyperparameters of a module with these options.
        path: of the checkpoint.

    Raises:
        ValueError: a given value cannot hold, since the trained weights depend on another: plan,
            backbone, or the class of the task.
    """
    unknown = sorted(name for name in saved.keys() - here.keys() if not name.startswith("_"))
    if unknown:
        raise ValueError(
            f"{path} has the hyperparameters {', '.join(unknown)}, which this version does not "
            "know: use the version that wrote it"
        )
    refused = [_refusal(name, saved[name], here[name]) for name in saved.keys() & given.keys()]
    if reasons := sorted(filter(None, refused)):
        raise ValueError(
            f"{'; '.join(reasons)}: leave the option out to use that of {path}, or start without "
            "--ckpt_path"
        )
    taken = {name: value for name, value in saved.items() if name in here and name not in given}
    if given.get("task") and saved.get("task"):
        taken["task"] = _merged(saved["task"], given["task"])
    return taken


def _refusal(name: str, saved: Any, here: Any) -> str | None:
    """Why a given value cannot hold; None if it can."""
    if name == "backbone" and not _same_backbone(saved, here):
        return f"model.backbone is {here}, and the checkpoint was trained on {saved}"
    if name == "task" and _class(saved) != _class(here):
        return f"model.task is {_class(here)}, and the checkpoint was trained for {_class(saved)}"
    if name == "plan" and (trained := from_config(saved)) != (plan := from_config(here)):
        return _other_plan(trained, plan)
    return None


def _other_plan(trained: Plan, plan: Plan) -> str:
    kinds = [type(each).__name__ for each in (plan, trained)]
    if kinds[0] != kinds[1]:
        return f"model.plan is {kinds[0]}, and the checkpoint was trained with {kinds[1]}"
    found = [each[:WIDTH] for each in differences(trained.to_config(), plan.to_config())]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    listed = "; ".join(found[:SHOWN]).replace("init_args.", "")
    return f"model.plan is not the checkpoint's (there -> here): {listed}{more}"


def _same_backbone(saved: str, here: str) -> bool:
    """Whether two names are of one backbone. One that cannot be found any more may have moved."""
    if saved == here:
        return True
    try:
        found = resolve_backbone(saved)
    except OSError:
        return True  # other weights are noticed by their fingerprint
    try:
        return Path(found).resolve() == Path(resolve_backbone(here)).resolve()
    except OSError:
        return False


def _class(task: Mapping[str, Any]) -> str:
    return str(task["class_path"]).rpartition(".")[2]


def _merged(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A task of the checkpoint with the given arguments."""
    arguments: Collection[Any] = given.get("init_args") or {}
    return {**saved, "init_args": {**saved.get("init_args", {}), **dict(arguments)}}
