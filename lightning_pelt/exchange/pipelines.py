"""The pipeline of transformers that predicts with a model, by the name of the model's class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from transformers.models.auto import modeling_auto


class Kind(NamedTuple):
    """A kind of prediction.

    Attributes:
        task: name of transformers' pipeline, and of the task on the hub.
        reads: ``"text"``, ``"image"`` or ``"audio"``.
        cuts: whether a text that is too long is cut.
        writes: whether the model writes words, so that sounds need the tokenizer too.
    """

    task: str
    reads: str
    cuts: bool = False
    writes: bool = False


TEXT_TO_TEXT = Kind("text2text-generation", "text", cuts=True)  # transformers 5 has no pipeline
_KINDS: tuple[tuple[Kind, Mapping[str, Any]], ...] = (
    (
        Kind("text-classification", "text", cuts=True),
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ),
    (
        Kind("token-classification", "text"),
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    ),
    (TEXT_TO_TEXT, modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    (Kind("text-generation", "text"), modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    (Kind("fill-mask", "text"), modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    (
        Kind("image-classification", "image"),
        modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    ),
    (
        Kind("audio-classification", "audio"),
        modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    ),
    (
        Kind("automatic-speech-recognition", "audio", writes=True),
        modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    ),
    (Kind("feature-extraction", "text"), modeling_auto.MODEL_MAPPING_NAMES),
)


def kind_of(name: str | None) -> Kind | None:
    """The kind of prediction of a class of transformers; None if there is no pipeline for it.

    Example:
        >>> kind_of("BertForSequenceClassification").task, kind_of("GPT2LMHeadModel").task
        ('text-classification', 'text-generation')
    """
    for kind, classes in _KINDS:
        if any(name == n or (isinstance(n, tuple) and name in n) for n in classes.values()):
            return kind
    return None
