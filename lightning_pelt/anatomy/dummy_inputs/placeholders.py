"""Placeholders: tokens among the words that features of an image or a sound replace."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.anatomy.dummy_inputs.noise import ones
from lightning_pelt.anatomy.dummy_inputs.part import Part
from lightning_pelt.anatomy.dummy_inputs.running import on, undisturbed


@dataclass(frozen=True)
class Kind:
    """Images or sounds among words.

    Attributes:
        number: in ``mm_token_type_ids``.
        method: of a model, which makes features of them.
        inputs: how the names of their arguments begin.
        tokens: what configurations call their token.
    """

    number: int
    method: str
    inputs: str
    tokens: tuple[str, ...]


KINDS = (
    Kind(
        1,
        "get_image_features",
        "pixel_values",
        ("image_token_id", "image_token_index", "img_context_token_id"),
    ),
    Kind(3, "get_audio_features", "input_", ("audio_token_id", "audio_token_index")),
)


def has_placeholders(part: Part, inputs: dict[str, Tensor]) -> bool:
    """Whether features of images or sounds replace tokens among the words of ``inputs``."""
    if "input_ids" not in inputs:
        return False
    return "image_embeds_position_mask" in part.accepted or any(_present(part, inputs))


def _present(part: Part, inputs: dict[str, Tensor]) -> Iterator[tuple[Kind, int]]:
    """The kinds among ``inputs`` that have placeholders, and their tokens."""
    for kind in KINDS:
        held = [n for n, t in inputs.items() if n.startswith(kind.inputs) and t.is_floating_point()]
        token = part.entry(*kind.tokens)
        if held and token is not None:
            yield kind, token


def with_placeholders(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """``inputs`` with one placeholder before the words for each feature of the rest.

    The towers of the model run, since they decide how many features there are.

    Raises:
        Exception: of a tower that does not run on the inputs.
    """
    part, ids = Part(model), inputs["input_ids"]
    if "image_embeds_position_mask" in part.accepted:
        return _marked(part, inputs)
    kinds, made = torch.zeros_like(ids), dict(inputs)
    for kind, token in _present(part, inputs):
        holder = next((module for module in model.modules() if hasattr(module, kind.method)), None)
        # A model without the method replaces one token, and asks for the attention mask.
        count = 1 if holder is None else _count(model, getattr(holder, kind.method), inputs)
        if holder is None and "attention_mask" in part.accepted:
            made["attention_mask"] = ones(1, count + ids.shape[1])
        ids = torch.cat([torch.full((1, count), token), ids], 1)
        kinds = torch.cat([torch.full((1, count), kind.number), kinds], 1)
    made["input_ids"] = ids
    if "mm_token_type_ids" in part.accepted:
        made["mm_token_type_ids"] = kinds
    return made


def _marked(part: Part, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """``inputs`` with any words before the rest, and a mask of those that features replace."""
    count, ids = part.entry("latent_query_num"), inputs["input_ids"]
    mask = torch.cat([ones(1, count), torch.zeros_like(ids)], 1)
    ids = torch.cat([ids[:, :1].expand(-1, count), ids], 1)
    return {**inputs, "input_ids": ids, "image_embeds_position_mask": mask}


@torch.no_grad()
def _count(model: PreTrainedModel, make: Callable[..., Any], inputs: dict[str, Tensor]) -> int:
    """Number of features that a method of the model makes of ``inputs``."""
    parameters = inspect.signature(make).parameters
    with undisturbed(model):
        features = make(**on(model, {n: t for n, t in inputs.items() if n in parameters}))
    named = [getattr(features, name, None) for name in ("pooler_output", "last_hidden_state")]
    return _rows(next((each for each in named if each is not None), features))


def _rows(features: Any) -> int:
    if isinstance(features, Tensor):
        return features.numel() // features.shape[-1]
    return sum(_rows(each) for each in features)
