"""The model card of adapters: what was trained, how much of it, how good it is, how to load it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from lightning_pelt.attach import Attachment
from lightning_pelt.attach.saving import describe
from lightning_pelt.exchange.card_section import put_section
from lightning_pelt.exchange.card_text import card_text, public_base
from lightning_pelt.exchange.pipelines import kind_of

LIBRARY = "lightning_pelt"


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
    text = card_text(
        attachment, saved, repo, numbers, dataset=dataset, picture=picture, module=module
    )
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


def _union(old: Any, new: Iterable[str]) -> list[str]:
    kept = [old] if isinstance(old, str) else list(old or [])
    return list(dict.fromkeys([*kept, *new]))
