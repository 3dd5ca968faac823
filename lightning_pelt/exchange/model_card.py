"""The model card of adapters: what was trained, how much of it, how good it is, how to load it."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.utils import yaml_dump
from tabulate import tabulate

from lightning_pelt.attach import Attachment
from lightning_pelt.attach.saving import describe
from lightning_pelt.exchange.card_section import put_section
from lightning_pelt.exchange.pipelines import kind_of

LIBRARY = "lightning_pelt"
PICTURE = "gates.png"


def model_card(
    attachment: Attachment,
    repo: str,
    *,
    metrics: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    picture: bool = False,
    module: str | None = None,
    before: str | None = None,
    replace: bool = False,
) -> ModelCard:
    """The card of adapters: their plan, counts, gates, metrics and base, and how to load them.

    Args:
        attachment: of the model.
        repo: name of the repository.
        metrics: numbers by name.
        dataset: on which they were measured; the hub then shows them beside the card.
        picture: whether ``gates.png`` is beside the card.
        module: name of the class of the module around the model, if the file holds tensors of it.
        before: the card that is there. Its text outside the generated section and its metadata are
            kept.
        replace: the generated section also if somebody has edited it.

    Raises:
        ValueError: a metric is no finite number, or the card that is there was edited in the
            generated section, or its metadata is no mapping.

    Example:
        >>> from lightning_pelt import LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attachment = attach(tiny_bert(), Plan.uniform(LoRA(r=2)))
        >>> card = model_card(attachment, "me/adapters", metrics={"accuracy": 0.9})
        >>> card.data.library_name, card.data.metrics
        ('lightning_pelt', ['accuracy'])
    """
    saved, numbers = describe(attachment), checked_metrics(metrics)
    text = _text(attachment, saved, repo, numbers, dataset=dataset, picture=picture, module=module)
    card = ModelCard(
        f"---\n{{}}\n---\n\n# {repo.rpartition('/')[2]}\n" if before is None else before
    )
    card.text = "\n" + put_section(card.text, text, replace=replace)
    _set_metadata(card.data, attachment, saved, repo, numbers, dataset=dataset)
    return card


def checked_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics as plain numbers; tensors of one value are taken too.

    Raises:
        ValueError: a value is no finite number.

    Example:
        >>> checked_metrics({"accuracy": float("nan")})
        Traceback (most recent call last):
        ValueError: metric 'accuracy' is nan, expected a finite number: leave it out
    """
    numbers = {}
    for name, value in (metrics or {}).items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            numbers[str(name)] = math.nan
        if not math.isfinite(numbers[str(name)]):
            raise ValueError(
                f"metric {name!r} is {value!r}, expected a finite number: leave it out"
            )
    return numbers


def _set_metadata(
    data: Any,
    attachment: Attachment,
    saved: Mapping[str, Any],
    repo: str,
    metrics: Mapping[str, float],
    *,
    dataset: str | None,
) -> None:
    """Set the entries of the metadata that are known here; others stay."""
    kind = kind_of(saved["class"])
    data.library_name = LIBRARY
    data.tags = _union(data.tags, [LIBRARY, *attachment.counts])
    if base := public_base(saved):
        data.base_model, data.base_model_relation = base, "adapter"
    if kind is not None:
        data.pipeline_tag = kind.task
    if metrics:
        names = [name.rpartition("/")[2] for name in metrics]
        data.metrics = _union(data.metrics, names)
    if metrics and dataset:
        data.model_name = repo.rpartition("/")[2]
        data.eval_results = [
            EvalResult(
                task_type=kind.task if kind else "other",
                dataset_type=dataset,
                dataset_name=dataset,
                metric_type=name.rpartition("/")[2],
                metric_name=name,
                metric_value=float(f"{value:.6g}"),
            )
            for name, value in metrics.items()
        ]


def public_base(saved: Mapping[str, Any]) -> str | None:
    """The hub id of a base; None if it was a folder, or was not loaded by name.

    Example:
        >>> public_base({"name": "google-bert/bert-base-uncased"}), public_base({"name": "./mine"})
        ('google-bert/bert-base-uncased', None)
    """
    name = saved.get("name")
    local = not name or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    return None if local or Path(str(name)).is_dir() else name


def _union(old: Any, new: Iterable[str]) -> list[str]:
    kept = [old] if isinstance(old, str) else list(old or [])
    return list(dict.fromkeys([*kept, *new]))


def _text(
    attachment: Attachment,
    saved: Mapping[str, Any],
    repo: str,
    metrics: Mapping[str, float],
    *,
    dataset: str | None,
    picture: bool,
    module: str | None,
) -> str:
    """The generated section."""
    parts = [
        _summary(attachment, saved),
        f"## How to load\n\n{_how_to_load(repo, saved, module)}",
        f"## What was trained\n\n{_counts(attachment)}",
    ]
    if gates := _gates(attachment, picture=picture):
        parts.append(f"## Gates\n\n{gates}")
    if metrics:
        rows = [[_cell(name), f"{value:.6g}"] for name, value in metrics.items()]
        on = f"On {_cell(dataset)}:\n\n" if dataset else ""
        parts.append(f"## Metrics\n\n{on}{_table(['metric', 'value'], rows)}")
    plan = yaml_dump(attachment.plan.to_config()).strip()
    parts += [f"## Plan\n\n```yaml\n{plan}\n```", f"## Base\n\n{_base(saved)}"]
    return "\n\n".join(parts)


def _summary(attachment: Attachment, saved: Mapping[str, Any]) -> str:
    base, methods = public_base(saved), ", ".join(attachment.counts) or "no submodules"
    where = f"[{base}](https://huggingface.co/{base})" if base else f"a {saved['model_type']} model"
    return (
        f"Parameter-efficient tuning of {where} with {methods}. The files hold what was trained, "
        "and not the base."
    )


def _how_to_load(repo: str, saved: Mapping[str, Any], module: str | None) -> str:
    lines = ["from lightning_pelt import load_pelt", ""]
    if module is not None or saved["class"] is None or not saved["name"]:
        what = module or "YourModel"
        lines = [
            "from lightning_pelt import from_hub",
            "",
            f"model = {what}(...)  # as it was built for training, with the same base",
            f'from_hub(model, "{repo}")',
        ]
    elif public_base(saved) is None:
        lines += [f'predictor = load_pelt("{repo}", backbone="folder of the base")']
    else:
        lines += [f'predictor = load_pelt("{repo}")']
    if lines[0].endswith("load_pelt") and (kind := kind_of(saved["class"])):
        lines += ['predictor("a text")'] if kind.reads == "text" else [f"predictor({kind.reads})"]
    code = "\n".join(lines)
    return f"```bash\npip install lightning-pelt\n```\n\n```python\n{code}\n```"


def _counts(attachment: Attachment) -> str:
    rows = [
        [name, f"{count.trained:,}", f"{count.deployed:,}", f"{count.gates:,}"]
        for name, count in attachment.counts.items()
    ]
    if attachment.head_size:
        rows.append(["head", *[f"{attachment.head_size:,}"] * 2, "0"])
    total = sum(count.trained + count.gates for count in attachment.counts.values())
    share = (total + attachment.head_size) / max(attachment.backbone_size, 1)
    base = "trained too" if attachment.plan.train_base else "frozen"
    return (
        f"{_table(['parameters', 'trained', 'deployed', 'gates'], rows)}\n\n"
        f"The base has {attachment.backbone_size:,} parameters and is {base}. What is trained "
        f"beside it is {share:.3%} of that."
    )


def _gates(attachment: Attachment, *, picture: bool) -> str:
    """The picture, or else the gates in the last forward pass of the model."""
    if not attachment.gates:
        return ""
    if picture:
        return f"![Mean gate of each site in each block]({PICTURE})"
    means: dict[str, dict[str, str]] = {}
    for view in attachment.gates.values():
        if view.value is not None:
            means.setdefault(view.block, {})[view.site] = f"{float(view.value.mean()):.2f}"
    if not means:
        return f"{len(attachment.gates)} gates decide how much each submodule contributes."
    sites = list(dict.fromkeys(site for row in means.values() for site in row))
    rows = [[block, *[row.get(site, "") for site in sites]] for block, row in means.items()]
    table = _table(["block", *sites], rows)
    return f"Mean of each gate in the last batch that the model has seen:\n\n{table}"


def _base(saved: Mapping[str, Any]) -> str:
    labels = ", ".join(map(_cell, saved["labels"] or []))
    facts: Sequence[tuple[str, Any]] = (
        ("name", public_base(saved) or "a folder, or not loaded by name"),
        ("revision", saved["revision"]),
        ("class", saved["class"]),
        ("labels", labels),
        ("dtype", saved["dtype"]),
        ("SHA-256 of its sampled weights", saved["digest"]),
        ("written with", f"lightning-pelt {version('lightning-pelt')}"),
    )
    return "\n".join(f"- {name}: {value}" for name, value in facts if value)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    aligned = ["left", *["right"] * (len(names) - 1)]
    return tabulate(rows, names, "pipe", colalign=aligned, disable_numparse=True)


def _cell(text: object) -> str:
    """Text that neither ends a cell nor is read as HTML."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "&#124;")
