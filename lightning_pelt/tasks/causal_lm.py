"""The next token, with a decoder."""

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
    """Every next token, scored by perplexity; predictions continue the text.

    A batch without labels learns all its tokens. Labels of -100 mark what is only read: a prompt.

    Args:
        max_new_tokens: The longest continuation to generate, in tokens.
        num_beams: 1 is greedy.
    """

    max_new_tokens: int = 32
    num_beams: int = 1

    auto: ClassVar[Any] = AutoModelForCausalLM

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
        """``{"text": continuation}`` per row, after its prompt; padding may be on either side."""
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
    """(B, T-1): the token after each position, ignored where it is padding or only read."""
    labels = batch.get("labels")
    if labels is None:
        labels = batch["input_ids"].masked_fill(_attended(batch) == 0, IGNORED)
    return labels[:, 1:]


def _prompt(batch: Batch) -> Tensor:
    """(B, T) mask of the tokens to continue: those before the first label, or all if that is none.

    So the answers of a labelled batch stay unseen, and a plain text is continued at its end.
    """
    mask, labels = _attended(batch), batch.get("labels")
    if labels is None:
        return mask
    before = mask * ((labels != IGNORED).cumsum(1) == 0)
    return torch.where(before.any(1, keepdim=True), before, mask)
