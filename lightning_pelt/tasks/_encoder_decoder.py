"""Base of the tasks in which an encoder-decoder writes a target text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_pelt.tasks._tokens import Perplexity, count, decode, generate, token_loss
from lightning_pelt.tasks.base import Batch, Task, collection, model_inputs


class EncoderDecoderTask(Task):
    """Trains with teacher forcing, and compares generated texts with the targets.

    ``perplexity`` under teacher forcing is always computed; it needs no generation. A child has the
    fields below, and says how its metrics compare texts.

    Attributes:
        metrics: names of the metrics of generated texts. The first one selects the best checkpoint.
        max_new_tokens: maximum number of tokens to generate.
        num_beams: number of beams; 1 is greedy search.
        generate_in_validation: whether validation generates; otherwise perplexity selects.
    """

    metrics: tuple[str, ...]
    max_new_tokens: int
    num_beams: int
    generate_in_validation: bool

    decodes: ClassVar[bool] = True

    @abstractmethod
    def build_metric(self, name: str, labels: Sequence[str] | None) -> Metric:
        """A new metric of generated texts."""

    @abstractmethod
    def compare(
        self,
        metrics: Mapping[str, Metric],
        guesses: Sequence[str],
        targets: Sequence[str],
        *,
        labels: Sequence[str] | None,
        device: torch.device,
    ) -> None:
        """Update metrics, by name, with the generated texts and the targets of a batch."""

    def generation(self) -> dict[str, Any]:
        """Further options of the model's ``generate``."""
        return {}

    @property
    def monitor(self) -> str:
        return self.metrics[0] if self.generate_in_validation else "perplexity"

    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        generated = self.metrics if stage != "val" or self.generate_in_validation else ()
        chosen = {name: self.build_metric(name, labels) for name in generated}
        # Each metric reads the texts differently, so metrics must not share states.
        return collection({**chosen, "perplexity": Perplexity()}, compute_groups=False)

    def step(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
        inputs, labels = model_inputs(batch), batch["labels"]
        shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if shift is None:  # Whisper and a few others shift labels inside forward only
            inputs["labels"] = labels
        elif "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = shift(labels=labels)
        outputs = model(**inputs, use_cache=False)
        outputs.loss = token_loss(outputs.logits, labels)
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
        named: dict[str, Any] = dict(metrics.items(keep_base=True, copy_state=False))
        named.pop("perplexity").update(outputs.loss, count(batch["labels"]))
        if not named:
            return
        guesses = self.texts(model, batch, tokenizer)
        targets = decode(tokenizer, batch["labels"])
        self.compare(named, guesses, targets, labels=labels, device=batch["labels"].device)

    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """``{"text": generated}`` per row."""
        return [{"text": text} for text in self.texts(model, batch, tokenizer)]

    def texts(
        self, model: PreTrainedModel, batch: Batch, tokenizer: PreTrainedTokenizerBase | None
    ) -> list[str]:
        """The generated text of each row."""
        inputs = {k: v for k, v in model_inputs(batch).items() if not k.startswith("decoder_")}
        ids = generate(
            model,
            tokenizer,
            inputs,
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            **self.generation(),
        )
        return decode(tokenizer, ids)
