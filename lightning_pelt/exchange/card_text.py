"""What the generated section of a model card says."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub.utils import yaml_dump
from tabulate import tabulate

from lightning_pelt.attach import Attachment
from lightning_pelt.exchange.gate_picture import gate_means
from lightning_pelt.exchange.pipelines import kind_of

PICTURE = "gates.png"


def card_text(
    attachment: Attachment,
    saved: Mapping[str, Any],
    repo: str,
    metrics: Mapping[str, float],
    *,
    dataset: str | None,
    picture: bool,
    module: str | None,
) -> str:
    """The generated section.

    Args:
        saved: what a file says of the base.
        attachment, repo, metrics, dataset, picture, module: see
            :func:`~lightning_pelt.exchange.model_card.model_card`.
    """
    profiles = any(m.for_one_profile() != m for m in attachment.plan.methods)
    parts = [
        _summary(attachment, saved),
        f"## How to load\n\n{_how_to_load(repo, saved, module, profiles=profiles)}",
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


def _how_to_load(repo: str, saved: Mapping[str, Any], module: str | None, *, profiles: bool) -> str:
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
    if lines[0].endswith("import load_pelt") and (kind := kind_of(saved["class"])):
        call = 'predictor("a text")' if kind.reads == "text" else f"predictor({kind.reads})"
        if profiles:
            lines[0] += ", profiles_of"
            lines += ["with profiles_of(predictor.model, [0]):  # the number of the profile"]
            call = f"    {call}"
        lines.append(call)
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
    for name, mean in gate_means(attachment).items():
        view = attachment.gates[name]
        means.setdefault(view.block, {})[view.site] = f"{mean:.2f}"
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


def public_base(saved: Mapping[str, Any]) -> str | None:
    """The hub id of a base; None if it was a folder, or was not loaded by name.

    Example:
        >>> public_base({"name": "google-bert/bert-base-uncased"}), public_base({"name": "./mine"})
        ('google-bert/bert-base-uncased', None)
    """
    name = saved.get("name")
    local = not name or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    return None if local or Path(str(name)).is_dir() else name
