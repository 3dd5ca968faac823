"""Sounds, as waveforms or as spectrograms."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.anatomy.dummy_inputs.noise import noise, ones
from lightning_pelt.anatomy.dummy_inputs.part import Part, tower
from lightning_pelt.anatomy.dummy_inputs.text import tokens

SAMPLES = 4000  # of a waveform: a quarter second at 16 kHz
FRAMES = 40  # of a spectrogram: five positions after three halvings
BINS = 128  # of a spectrogram whose configuration states none
SPECTROGRAMS = ("input_features", "audio_mel", "audio_input_features")
WAVES = ("input_values",)
# Masks over frames, and whether they are true where the sound is real.
MASKS = {
    "input_features_mask": True,
    "feature_attention_mask": True,
    "padding_mask": True,
    "audio_mel_mask": False,
}
STATED = ("num_mel_bins", "input_feat_per_channel", "feature_size", "input_feat_size", "input_dim")


def sounds(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """The arguments that hold a sound, the likeliest form first."""
    part = Part(model)
    forms: list[list[dict[str, Tensor]]] = []
    if name := next((name for name in SPECTROGRAMS if name in part.accepted), None):
        forms.append([*_with_masks(part, name, _spectrograms(tower(model, name)))])
    if name := next((name for name in WAVES if name in part.accepted), None):
        forms.append([*_waves(tower(model, name), name)])
    needed = [name for name in part.required if name in (*SPECTROGRAMS, *WAVES)]
    if len(needed) < 2:  # one sound is enough
        for form in forms:
            yield from form
        return
    for chosen in product(*forms):
        yield {name: tensor for inputs in chosen for name, tensor in inputs.items()}


def _with_masks(
    part: Part, name: str, shapes: Iterator[tuple[tuple[int, ...], int]]
) -> Iterator[dict[str, Tensor]]:
    """Spectrograms with a mask over the frames, all of which are real, and without one."""
    masks = {name: real for name, real in MASKS.items() if name in part.accepted}
    for shape, frames in shapes:
        if masks:
            real = ones(1, frames).bool()
            yield {name: noise(*shape), **{m: real if masks[m] else ~real for m in masks}}
        yield {name: noise(*shape)}


def _spectrograms(part: Part) -> Iterator[tuple[tuple[int, ...], int]]:
    """Shapes of a spectrogram and its number of frames; the first layer tells which is likely."""
    layer = part.first(nn.Conv1d, nn.Conv2d, nn.Linear)
    bins = part.entry(*STATED, default=BINS)
    frames = 2 * part.entry("n_window", default=FRAMES // 2)
    if isinstance(layer, nn.Conv1d):
        bins = layer.in_channels
        positions = part.entry("max_source_positions")
        if positions:
            length = positions * _stride(part)
            yield (1, bins, length), length
    if isinstance(layer, nn.Linear) and layer.in_features != bins:
        yield (1, frames, layer.in_features), frames
    yield (1, frames, bins), frames
    yield (1, bins, frames), frames
    yield (1, 1, frames, bins), frames


def _stride(part: Part) -> int:
    """Frames of the input for a position of the encoder: the convolutions before the blocks."""
    stride = 1
    for module in part.module.children():
        stride *= module.stride[0] if isinstance(module, nn.Conv1d) else 1
    return stride


def _waves(part: Part, name: str) -> Iterator[dict[str, Tensor]]:
    """Waveforms; spectrograms, features or words, where the first layer reads those."""
    layer = part.first(nn.Conv1d, nn.Conv2d, nn.Linear, nn.Embedding)
    if isinstance(layer, nn.Embedding):
        yield {name: tokens(part)}
    if isinstance(layer, nn.Conv2d):
        frames = part.entry("max_length", "spec_size", default=FRAMES)
        yield {name: noise(1, frames, part.entry(*STATED, default=BINS))}
    if isinstance(layer, nn.Linear):
        yield {name: noise(1, FRAMES, layer.in_features)}
    yield {name: noise(1, SAMPLES)}
    yield {name: noise(1, 1, SAMPLES)}
