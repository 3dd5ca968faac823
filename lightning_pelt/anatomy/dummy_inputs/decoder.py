"""What the decoder beside an encoder reads."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.anatomy.dummy_inputs.noise import noise
from lightning_pelt.anatomy.dummy_inputs.part import Part
from lightning_pelt.anatomy.dummy_inputs.text import COUNT, in_codebooks, tokens

STEPS = COUNT - 1  # one fewer than the words of the encoder


def decoder_inputs(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """The arguments of a decoder, the likeliest form first."""
    part = Part(model)
    if "decoder_input_ids" in part.accepted:
        for ids in in_codebooks(part, tokens(part, STEPS)):
            yield {"decoder_input_ids": ids}
    elif "decoder_input_values" in part.accepted:
        yield from _values(part, model.get_decoder())


def _values(part: Part, decoder: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Words or features, as the first layer of the decoder reads them."""
    layer = Part(decoder).first(nn.Embedding, nn.Linear)
    name = "decoder_input_values"
    if isinstance(layer, nn.Embedding):
        yield {name: tokens(part, STEPS)}
        return
    features = {name: noise(1, STEPS, layer.in_features)}
    yield features
    if "speaker_embeddings" in part.accepted:
        width = part.entry("speaker_embedding_dim", default=layer.in_features)
        yield {**features, "speaker_embeddings": noise(1, width)}
