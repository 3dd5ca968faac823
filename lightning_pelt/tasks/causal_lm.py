"""Next-token prediction with a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lightning_pelt.tasks._tokens import (
    IGNORED,
    Perplexity,
    check_generation,
    count,
    decode,
    generate,
    left_padded,
    token_loss,
)
from lightning_pelt.tasks.base import Batch, Task, collection, model_inputs


@dataclass(frozen=True)
class CausalLM(Task):
    """Next-token prediction, evaluated by perplexity. Predictions continue the text.

    Without labels a batch is trained on all its tokens. Labels of -100 mark the tokens of a prompt,
    which get no loss.

    Args:
        max_new_tokens: maximum number of tokens to generate.
        num_beams: number of beams; 1 is greedy search.

    Raises:
        ValueError: a number is below 1.

    Example:
        >>> from lightning_pelt import CausalLM
        >>> task = CausalLM(max_new_tokens=64)
        >>> task.monitor, task.mode
        ('perplexity', 'min')
    """

    max_new_tokens: int = 32
    num_beams: int = 1

    auto: ClassVar[Any] = AutoModelForCausalLM
    decodes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_generation(self.max_new_tokens, self.num_beams)

    @property
    def monitor(self) -> str:
        return "perplexity"

    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        return collection({"perplexity": Perplexity()})

    def step(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(**model_inputs(batch), use_cache=False)
        outputs.loss = token_loss(outputs.logits[:, :-1], _next_tokens(batch))
        return outputs.loss, outputs

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
        metrics.update(outputs.loss, count(_next_tokens(batch)))

    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """``{"text": continuation}`` per row; padding may be on either side."""
        ids, mask = left_padded(batch["input_ids"], _prompt(batch))
        output = generate(
            model,
            tokenizer,
            {"input_ids": ids, "attention_mask": mask},
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
        )
        return [{"text": text} for text in decode(tokenizer, output[:, ids.shape[1] :])]


def _attended(batch: Batch) -> Tensor:
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None else mask


def _next_tokens(batch: Batch) -> Tensor:
    """(B, T-1): the token after each position; padding and prompts are ignored."""
    labels = batch.get("labels")
    if labels is None:
        labels = batch["input_ids"].masked_fill(_attended(batch) == 0, IGNORED)
    return labels[:, 1:]


def _prompt(batch: Batch) -> Tensor:
    """(B, T) mask of the tokens to continue: those before the first label, or all without labels.

    The answers of a labelled batch are thus hidden, and a plain text is continued at its end.
    """
    mask, labels = _attended(batch), batch.get("labels")
    if labels is None:
        return mask
    before = mask * ((labels != IGNORED).cumsum(1) == 0)
    return torch.where(before.any(1, keepdim=True), before, mask)
