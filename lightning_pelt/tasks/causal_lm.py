"""Next-token prediction with a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.aggregation import MeanMetric
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lightning_pelt.tasks._tokens import (
    IGNORED,
    Perplexity,
    check_generation,
    count,
    decode,
    generate,
    left_padded,
    require_tokenizer,
    stop_ids,
    token_loss,
)
from lightning_pelt.tasks.base import Batch, Task, checked_metrics, collection, model_inputs

METRICS = ("perplexity", "exact_match")


@dataclass(frozen=True)
class CausalLM(Task):
    """Next-token prediction, evaluated by perplexity. Predictions continue the text.

    Without labels a batch is trained on all its tokens. Labels of -100 mark the tokens of a prompt,
    which get no loss. The target of a row is its last sequence of trained tokens, such as the last
    answer of a conversation; ``exact_match`` is the share of rows for which the text that the model
    generates from all before is the target, without special tokens and surrounding white space.

    Args:
        metrics: names among perplexity, which is always computed, and exact_match, which generates.
            The first one selects the best checkpoint.
        max_new_tokens: maximum number of tokens to generate.
        num_beams: number of beams; 1 is greedy search.
        generate_in_validation: whether exact_match is computed in validation; otherwise perplexity
            selects the best checkpoint. Tests and predictions always generate.
        stop: tokens at which generation ends, beside the end of text of the tokenizer and of the
            model's generation configuration, such as ``("<|im_end|>",)``.

    Raises:
        ValueError: an unknown metric, or a number is below 1.

    Example:
        >>> from lightning_pelt import CausalLM
        >>> task = CausalLM(max_new_tokens=64)
        >>> task.monitor, task.mode
        ('perplexity', 'min')
        >>> CausalLM(metrics=("exact_match",), generate_in_validation=True).monitor
        'exact_match'
    """

    metrics: tuple[str, ...] = ("perplexity",)
    max_new_tokens: int = 32
    num_beams: int = 1
    generate_in_validation: bool = False
    stop: tuple[str, ...] = ()

    auto: ClassVar[Any] = AutoModelForCausalLM
    decodes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", checked_metrics(self.metrics, METRICS))
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        check_generation(self.max_new_tokens, self.num_beams)

    @property
    def monitor(self) -> str:
        return self.metrics[0] if self.generate_in_validation else "perplexity"

    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        matched = "exact_match" in self.metrics and (stage != "val" or self.generate_in_validation)
        chosen: dict[str, Metric] = {"exact_match": MeanMetric()} if matched else {}
        return collection({**chosen, "perplexity": Perplexity()}, compute_groups=False)

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
        named = dict(metrics.items(keep_base=True, copy_state=False))
        named["perplexity"].update(outputs.loss, count(_next_tokens(batch)))
        if "exact_match" in named:
            rows = self.samples(model, batch, tokenizer=tokenizer)
            matches = [float(row["generated"] == row["target"]) for row in rows]
            named["exact_match"].update(torch.tensor(matches, device=outputs.loss.device))

    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """``{"text": continuation}`` per row; padding may be on either side."""
        return [{"text": text} for text in self._continued(model, batch, tokenizer)]

    def samples(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, str]]:
        """The ``prompt``, the ``target`` and the ``generated`` text of each row of a batch.

        Raises:
            ValueError: the batch has no labels, or its rows are packed.
        """
        if "labels" not in batch:
            raise ValueError("generated texts are compared with labels, and the batch has none")
        prompts, targets = _parts(batch)
        ids = batch["input_ids"]
        tokenizer = require_tokenizer(tokenizer)
        shown = [tokenizer.decode(row[mask]) for row, mask in zip(ids, prompts.bool(), strict=True)]
        answers = decode(tokenizer, batch["labels"].masked_fill(~targets, IGNORED))
        texts = self._continued(model, batch, tokenizer)
        return [
            {"prompt": str(prompt), "target": target, "generated": text}
            for prompt, target, text in zip(shown, answers, texts, strict=True)
        ]

    def _continued(
        self, model: PreTrainedModel, batch: Batch, tokenizer: PreTrainedTokenizerBase | None
    ) -> list[str]:
        """The text that is generated from the prompt of each row."""
        ids, mask = left_padded(batch["input_ids"], _parts(batch)[0])
        output = generate(
            model,
            tokenizer,
            {"input_ids": ids, "attention_mask": mask},
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            eos_token_id=stop_ids(model, tokenizer, self.stop),
        )
        return decode(tokenizer, output[:, ids.shape[1] :])


def _attended(batch: Batch) -> Tensor:
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None else mask


def _next_tokens(batch: Batch) -> Tensor:
    """(B, T-1): the token after each position; padding and prompts are ignored."""
    labels = batch.get("labels")
    if labels is None:
        labels = batch["input_ids"].masked_fill(_attended(batch) == 0, IGNORED)
    return labels[:, 1:]


def _parts(batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, T) masks of the tokens to continue, and of those that should follow.

    Those that should follow are the last sequence of labels, and those before it are continued. The
    answers of a labelled batch are thus hidden. A row without a token before its labels, such as a
    plain text, is continued at its end, and so are rows without labels.

    Raises:
        ValueError: the rows are packed.
    """
    if "position_ids" in batch and "attention_mask" not in batch:
        raise ValueError(
            "the rows of this batch are packed, and generation continues one text per row: use "
            "rows that are not packed"
        )
    mask, labels = _attended(batch), batch.get("labels")
    if labels is None:
        return mask, torch.zeros_like(mask, dtype=torch.bool)
    trained = labels != IGNORED
    starts = trained & ~torch.nn.functional.pad(trained, (1, -1))
    number = starts.cumsum(1)
    target = trained & (number == number[:, -1:])
    before = mask * (target.cumsum(1) == 0)
    return torch.where(before.any(1, keepdim=True), before, mask), target
