"""Candidates: the inputs on which a model may run, from all that it takes to the words alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.anatomy.dummy_inputs.decoder import decoder_inputs
from lightning_pelt.anatomy.dummy_inputs.images import images
from lightning_pelt.anatomy.dummy_inputs.noise import noise
from lightning_pelt.anatomy.dummy_inputs.part import Part
from lightning_pelt.anatomy.dummy_inputs.placeholders import has_placeholders, with_placeholders
from lightning_pelt.anatomy.dummy_inputs.running import on
from lightning_pelt.anatomy.dummy_inputs.series import series
from lightning_pelt.anatomy.dummy_inputs.sound import sounds
from lightning_pelt.anatomy.dummy_inputs.text import COUNT, words

Inputs = dict[str, Tensor]


def base_of(model: PreTrainedModel) -> Any:
    """``model`` without its head.

    Where ``model.base_model`` holds only the blocks, without the embeddings, it is ``model``.

    Example:
        >>> from lightning_pelt.testing import tiny_bert
        >>> type(base_of(tiny_bert())).__name__
        'BertModel'
    """
    base = model.base_model
    accepted = inspect.signature(base.forward).parameters
    return base if accepted.keys() & main_inputs(base) else model


def main_inputs(model: nn.Module) -> tuple[str, ...]:
    """Names of the arguments that ``model`` calls its main inputs."""
    names = getattr(model, "main_input_name", ())
    return (names,) if isinstance(names, str) else tuple(names)


@dataclass(frozen=True)
class Candidate:
    """Inputs on which a model may run.

    Attributes:
        model: the model.
        given: the inputs without placeholders.
        replaced: whether placeholders for images or sounds are added to the words.
    """

    model: PreTrainedModel
    given: Inputs
    replaced: bool = False

    def make(self) -> Inputs:
        """The inputs, on the device of the model and in its dtype.

        Raises:
            Exception: of a tower of the model, which runs to count the placeholders.
        """
        with torch.device("cpu"):  # trainers set another default device
            inputs = with_placeholders(self.model, self.given) if self.replaced else self.given
            inputs = _with_mask(self.model, inputs)
        return on(self.model, inputs)

    def __str__(self) -> str:
        return ", ".join(f"{name} {tuple(t.shape)}" for name, t in self.given.items())


def _with_mask(model: PreTrainedModel, inputs: Inputs) -> Inputs:
    """``inputs`` with the mask that tokenizers give; some models hide later words only with it."""
    rows = inputs.get("input_ids", inputs.get("input_values"))
    accepted = "attention_mask" in Part(model).accepted and "attention_mask" not in inputs
    if rows is None or rows.dim() != 2 or not accepted:
        return inputs
    return {**inputs, "attention_mask": torch.ones(rows.shape, dtype=torch.long)}


def candidates(model: PreTrainedModel) -> list[Candidate]:
    """Small inputs of ``model``, the most telling first.

    What runs most parts comes first: words, images and sounds together, then fewer of them. A
    model of words alone has one candidate, and the model's own ``dummy_inputs`` if it defines any.
    """
    with torch.device("cpu"):
        return [*_candidates(model)]


def _candidates(model: PreTrainedModel) -> Iterator[Candidate]:
    part = Part(model)
    kinds = [list(made(model)) for made in (words, images, sounds, series)]
    combined = [*_together(kinds)] or [{}]
    known = set[str]().union(*combined)
    needed = known.intersection(part.required)
    others = [name for name in _vectors(model, part) if name not in known]
    vectors = {name: noise(1, COUNT, _width(part)) for name in others}
    demanded = {name: vectors[name] for name in others if name in part.required}
    forms = [{**chosen, **vectors} for chosen in combined]
    if len(demanded) < len(vectors):
        # A main input may be another name of what is there (SpeechEncoderDecoderModel).
        forms += [{**chosen, **demanded} for chosen in combined if chosen]
    for form in forms:
        if not needed <= form.keys():
            continue
        for beside in [*decoder_inputs(model)] or [{}]:
            inputs = {**form, **beside}
            if has_placeholders(part, inputs):
                yield Candidate(model, inputs, replaced=True)
            yield Candidate(model, inputs)
    yield from _last_resorts(model, part, vectors)


def _last_resorts(model: PreTrainedModel, part: Part, vectors: Inputs) -> Iterator[Candidate]:
    """The states of an encoder for a decoder alone, and the model's own dummy inputs."""
    if vectors and "encoder_hidden_states" in part.accepted:
        width = part.entry("encoder_hidden_size", default=_width(part))
        yield Candidate(model, {**vectors, "encoder_hidden_states": noise(1, COUNT, width)})
    if type(model).dummy_inputs is not PreTrainedModel.dummy_inputs:
        own = model.dummy_inputs.items()
        yield Candidate(model, {name: t for name, t in own if name in part.accepted})


def _together(kinds: Sequence[Sequence[Inputs]]) -> Iterator[Inputs]:
    """Inputs of all kinds together, then of fewer, each in all forms."""
    present = [forms for forms in kinds if forms]
    for count in range(len(present), 0, -1):
        for chosen in combinations(present, count):
            for parts in product(*chosen):
                yield {name: value for part in parts for name, value in part.items()}


def _vectors(model: PreTrainedModel, part: Part) -> Iterator[str]:
    """Names of the arguments that the model needs and that hold vectors in the place of words."""
    for name in dict.fromkeys([*part.required, *main_inputs(model)]):
        if name in part.accepted and name.endswith(("embeds", "states", "inputs")):
            yield name


def _width(part: Part) -> int:
    return part.entry("hidden_size", "d_model", default=1)
