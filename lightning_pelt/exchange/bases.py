"""Loads the base that a file of adapters names, as the model was when it was trained."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from lightning_pelt.attach.fingerprint import IRRELEVANT
from lightning_pelt.utils.backbone import resolve_backbone
from lightning_pelt.utils.model_class import find_class
from lightning_pelt.utils.text_config import text_config

VOCABULARY = "vocab_size"
# Among them are entries that name code, which a file of adapters has no say in.
NOT_ADOPTED = {*IRRELEVANT, VOCABULARY, "attn_implementation", "experts_implementation"}
REPORT = "LOAD REPORT"  # in transformers' message about a head that is new


def load_base(
    saved: Mapping[str, Any],
    *,
    backbone: str | None = None,
    model_class: Any = None,
    options: Mapping[str, Any],
) -> tuple[PreTrainedModel, int]:
    """Load the base of adapters, with the class, labels and settings of the trained model.

    Args:
        saved: the ``backbone`` of the file, see :func:`lightning_pelt.attach.saving.describe`.
        backbone: hub id or folder, in the place of the one that the file names.
        model_class: with ``from_pretrained``, or the name of one of transformers, in the place of
            the one that the file names.
        options: of ``from_pretrained``.

    Returns:
        The model without adapters, with a new head where the base has none of that shape; and the
        number of tokens that were added to its vocabulary.

    Raises:
        OSError: the base cannot be found or read, or lacks weights of its body.
        ValueError: the file names no base or no class, or the base is another kind of model.
    """
    name = backbone or saved.get("name")
    if not name:
        raise ValueError(
            "the file does not name the base, which was not loaded by name: give "
            'load_pelt(folder, backbone="hub id or folder"), or load_adapters(model, folder)'
        )
    loader = _class_of(saved, model_class)
    place = _find(name)
    pinned = {} if backbone or not saved.get("revision") else {"revision": saved["revision"]}
    dtype = getattr(torch, str(saved.get("dtype")), None)
    chosen = {**pinned, **({"dtype": dtype} if isinstance(dtype, torch.dtype) else {}), **options}
    with _remedy(name):
        config = AutoConfig.from_pretrained(place, **_of_config(chosen))
    _check_kind(name, config, loader)
    rows = getattr(text_config(config), VOCABULARY, None)
    changed = _as_trained(config, saved)
    with _remedy(name), _without_report(), torch.random.fork_rng(devices=[]):
        model, report = loader.from_pretrained(
            place,
            config=config,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **chosen,
        )
    _refuse_gaps(name, model, report, changed)
    return model.eval(), _resize(model, rows, saved)


def _class_of(saved: Mapping[str, Any], given: Any) -> Any:
    name = given if isinstance(given, str) else saved.get("class")
    found = given if given is not None and not isinstance(given, str) else None
    if found is None and isinstance(name, str):
        found = find_class(name)
    if found is None:
        reason = (
            "the file does not name the class of the model, because an older version wrote it, or "
            "it was trained as a part of another model"
            if name is None
            else f"{name!r} is no model class of the installed transformers"
        )
        raise ValueError(
            f"{reason}: give load_pelt(folder, model_class=...), such as "
            '"AutoModelForSequenceClassification", or load_adapters(model, folder)'
        )
    return found


def _find(name: str) -> str:
    try:
        return resolve_backbone(name)
    except OSError as error:
        raise OSError(
            f"{error} If you have the base in another place, give "
            "load_pelt(folder, backbone=that place)"
        ) from error


@contextmanager
def _remedy(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).split("\n")[0][:300]
        raise OSError(
            f"the base {name!r} cannot be loaded: {first} To load it from another place, give "
            "load_pelt(folder, backbone=that place)"
        ) from error


def _of_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that also say where the configuration is."""
    names = ("revision", "token", "trust_remote_code", "cache_dir", "local_files_only", "subfolder")
    return {name: options[name] for name in names if name in options}


def _check_kind(name: str, config: PreTrainedConfig, loader: Any) -> None:
    wanted = getattr(loader, "config_class", None)  # None for Auto classes
    if wanted is not None and not isinstance(config, wanted):
        raise ValueError(
            f"{name!r} is a model of type {config.model_type!r}, and the adapters were trained on "
            f"a {loader.__name__}: load the base that they were trained on"
        )


def _as_trained(config: PreTrainedConfig, saved: Mapping[str, Any]) -> list[str]:
    """Set labels, and what ``from_pretrained`` was given when the model was trained.

    Returns:
        The names of the entries that changed what the model computes.
    """
    labels, settings = saved.get("labels"), saved.get("settings") or {}
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    if "problem_type" in settings:
        config.problem_type = settings["problem_type"]
    if "pad_token_id" in settings:
        text_config(config).pad_token_id = settings["pad_token_id"]
    return _adopt(config, saved.get("config") or {})


def _adopt(config: PreTrainedConfig, saved: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Give ``config`` the entries of a saved one that both have and that differ."""
    now, changed = config.to_dict(), []
    for name, value in saved.items():
        if name not in now or name in NOT_ADOPTED or name.startswith("_"):
            continue
        part, here = getattr(config, name, None), json.loads(json.dumps(now[name], default=str))
        if isinstance(part, PreTrainedConfig) and isinstance(value, Mapping):
            changed += _adopt(part, value, f"{prefix}{name}.")
        elif isinstance(here, dict) and isinstance(value, Mapping):
            if not value.items() <= here.items() and all(isinstance(key, str) for key in now[name]):
                setattr(config, name, {**now[name], **value})
                changed.append(prefix + name)
        elif here != value:
            setattr(config, name, value)
            changed.append(prefix + name)
    return changed


@contextmanager
def _without_report() -> Iterator[None]:
    """Drop transformers' advice to train the head, which the file is about to fill."""
    logger = logging.getLogger("transformers.modeling_utils")

    def other(record: logging.LogRecord) -> bool:
        return REPORT not in str(record.msg)

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _refuse_gaps(
    name: str, model: PreTrainedModel, report: Mapping[str, Any], changed: list[str]
) -> None:
    """Raise if weights of the body came from no file. A pooler counts as part of the head."""
    mismatched = (key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    body = f"{model.base_model_prefix}."
    names = sorted({*report["missing_keys"], *mismatched})
    gaps = [n for n in names if n.startswith(body) and "pooler" not in n]
    if gaps:
        why = f" The trained model had other values of {', '.join(changed)}." if changed else ""
        raise OSError(
            f"the base {name!r} lacks {len(gaps)} weights of its body, or has them in another "
            f"shape, such as {gaps[0]}.{why} Load the base that the adapters were trained on"
        )


def _resize(model: PreTrainedModel, rows: int | None, saved: Mapping[str, Any]) -> int:
    """Add the rows of new tokens that the trained model had; the file holds their values."""
    entry = saved.get("config") or {}
    for part in ("text_config", "text_encoder", "decoder"):
        entry = entry if VOCABULARY in entry else entry.get(part) or entry
    trained = entry.get(VOCABULARY)
    if not isinstance(trained, int) or rows is None or trained <= rows:
        return 0
    with torch.random.fork_rng(devices=[]):
        model.resize_token_embeddings(trained, mean_resizing=False)
    return trained - rows
