"""``Predictor``: a base with adapters, labels and tokenizer, ready to predict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_pelt.attach import Attachment
from lightning_pelt.exchange.pipelines import TEXT_TO_TEXT, kind_of
from lightning_pelt.utils.model_class import class_name


@dataclass(eq=False)
class Predictor:
    """What :func:`lightning_pelt.load_pelt` gives.

    Calling it calls transformers' pipeline for the class of the model, with the same arguments and
    results: a text or a list of texts for text models, images, or sounds. Texts to classify are
    cut to the length that the model takes. A sequence-to-sequence model generates, and its options
    are those of ``generate``.

    A plan with several profiles needs the number of each row's profile, around the call:
    ``with profiles_of(predictor.model, [2]):``.

    Attributes:
        model: with the adapters attached, in ``eval`` mode.
        attachment: the record of the plan.
        labels: their names in the order of their ids; None for models without labels.
        tokenizer: of the base, or of the folder of the adapters; None if there is none.
        processor: of images or sounds; None for models of texts.

    Example:
        >>> from lightning_pelt import LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> predictor = Predictor(model, attach(model, Plan.uniform(LoRA(r=2))), ["a", "b", "c"])
        >>> predictor.labels
        ['a', 'b', 'c']
    """

    model: PreTrainedModel
    attachment: Attachment
    labels: list[str] | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    processor: Any = None

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Predict.

        Args:
            inputs: what the pipeline takes: ``"a text"``, a list, or for a pair of texts
                ``{"text": ..., "text_pair": ...}``.
            options: of the pipeline's call, such as ``batch_size``, ``top_k`` or
                ``max_new_tokens``.

        Returns:
            What the pipeline returns, such as ``[{"label": "yes", "score": 0.9}]``.

        Raises:
            ValueError: transformers has no pipeline for the class of the model, or the tokenizer
                or processor that it needs is absent.
        """
        kind = kind_of(class_name(self.model))
        if kind == TEXT_TO_TEXT:
            return self._generate(inputs, options)
        if kind is not None and kind.cuts:
            options.setdefault("truncation", True)
        return self.pipeline(inputs, **options)

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline of transformers, on the device of the model.

        Raises:
            ValueError: as a call.
        """
        kind = kind_of(name := class_name(self.model))
        if kind is None or kind == TEXT_TO_TEXT:
            raise ValueError(
                f"transformers has no pipeline for {name}: call predictor.model with the outputs "
                "of predictor.tokenizer"
            )
        own = {"text": "tokenizer", "image": "image_processor", "audio": "feature_extractor"}
        part = self.tokenizer if kind.reads == "text" else self.processor
        part = self._need(part, "tokenizer" if kind.reads == "text" else "processor")
        parts = {own[kind.reads]: part}
        if kind.writes:
            parts["tokenizer"] = self._need(self.tokenizer, "tokenizer")
        spread = getattr(self.model, "hf_device_map", None) is not None
        make: Any = transformers.pipeline  # imported when it is first needed: it takes seconds
        return make(
            kind.task,
            model=self.model,
            device=None if spread else self.model.device,
            **parts,
        )

    def _need(self, part: Any, name: str) -> Any:
        if part is None:
            raise ValueError(
                f"there is no {name}: give load_pelt(folder, {name}=...), or save it into the "
                f"folder of the adapters, {name}.save_pretrained(folder)"
            )
        return part

    def _generate(self, inputs: str | list[str], options: dict[str, Any]) -> list[dict[str, str]]:
        tokenizer = self._need(self.tokenizer, "tokenizer")
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        batch = tokenizer(
            texts,
            return_tensors="pt",
            return_token_type_ids=False,
            padding=True,
            truncation=True,
        )
        with torch.inference_mode():
            ids = self.model.generate(**batch.to(self.model.device), **options)  # type: ignore[operator]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [{"generated_text": text} for text in texts]
