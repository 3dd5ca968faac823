"""Images and videos as pixels; :mod:`.patches` has those that are cut into patches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.anatomy.dummy_inputs.noise import noise, ones
from lightning_pelt.anatomy.dummy_inputs.part import Part, pair, tower
from lightning_pelt.anatomy.dummy_inputs.patches import GRIDS, patches
from lightning_pelt.anatomy.dummy_inputs.text import COUNT

SIDE = 128  # pixels of an image where no size is stated: two positions after six halvings
PIXELS = ("pixel_values", "pixel_values_videos")
STATED = ("image_size", "crop_size", "img_size", "input_size", "max_img_size")


def images(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """The arguments that hold an image or a video, the likeliest form first."""
    part = Part(model)
    inside = tower(model, PIXELS[0], "flattened_patches", *GRIDS, PIXELS[1])
    yield from patches(part, inside)
    name = next((name for name in PIXELS if name in part.accepted), None)
    if name is None or any(grid in part.accepted for grid in GRIDS):
        return
    if "aspect_ratio_ids" in part.accepted:
        yield _tile(inside)
    elif "image_sizes" in part.accepted and inside.entry("image_grid_pinpoints"):
        yield _pinned(inside)
    else:
        yield from _pixels(part, inside, name)


def _pixels(part: Part, inside: Part, name: str) -> Iterator[dict[str, Tensor]]:
    """A video if frames are stated, an image, and the images of a row."""
    image = (channels(inside), *size(inside))
    for frames in _frames(inside):
        yield {name: noise(1, frames, *image)}
    extra = {}
    if "image_sizes" in part.accepted and "image_sizes" in inside.accepted:
        extra["image_sizes"] = torch.tensor([image[1:]])
    if "dataset_index" in part.accepted and inside.entry("num_experts", default=1) > 1:
        extra["dataset_index"] = torch.zeros(1, dtype=torch.long)  # of the expert
    yield {name: noise(1, *image), **extra}
    several = {name: noise(1, 1, *image)}
    if "image_attention_mask" in part.accepted:  # which words see which image
        several["image_attention_mask"] = ones(1, COUNT, 1)
    yield several
    if "pixel_attention_mask" in part.accepted:  # which images are real
        yield {**several, "pixel_attention_mask": ones(1, 1).bool()}
    if max(image[1:]) < SIDE:  # the stated size may be that of a part
        yield {name: noise(1, image[0], SIDE, SIDE)}
    yield {name: noise(1, 2, inside.entry("num_channels", default=3), *image[1:])}  # a pair


def _pinned(inside: Part) -> dict[str, Tensor]:
    """An image of the smallest layout of tiles, and before them all of it as one tile."""
    height, width = size(inside)
    area = min(rows * columns for rows, columns in inside.entry("image_grid_pinpoints"))
    tiles = 1 + max(1, area // (height * width))
    return {
        "pixel_values": noise(1, tiles, channels(inside), height, width),
        "image_sizes": torch.tensor([[height, width]]),
    }


def _tile(inside: Part) -> dict[str, Tensor]:
    """An image of one tile, in the first of the known aspect ratios, which all words see."""
    tiles = inside.entry("max_num_tiles", default=1)
    shown = ones(1, 1, tiles)
    shown[..., 1:] = 0
    return {
        "pixel_values": noise(1, 1, tiles, channels(inside), *size(inside)),
        "aspect_ratio_ids": ones(1, 1),
        "aspect_ratio_mask": shown,
        "cross_attention_mask": shown[:, None].expand(-1, COUNT, -1, -1).contiguous(),
    }


def size(part: Part) -> tuple[int, int]:
    """Height and width of an image."""
    value = part.entry(*STATED, default=SIDE)
    return (value["height"], value["width"]) if isinstance(value, dict) else pair(value)


def channels(part: Part) -> int:
    """Channels of an image, which the first convolution reads."""
    layer = part.first(nn.Conv2d, nn.Conv3d)
    stated = part.entry("num_channels", "in_channels", "in_chans", default=3)
    return int(stated if layer is None else layer.in_channels)


def _frames(part: Part) -> list[int]:
    """Numbers of frames of a video, the smaller first; empty for images."""
    layer = part.first(nn.Conv2d, nn.Conv3d)
    stated = part.entry("num_frames", "frames_per_clip")
    depth = int(layer.kernel_size[0]) if isinstance(layer, nn.Conv3d) else 1
    if stated is None and depth == 1:
        return []
    return list(dict.fromkeys([2 * depth, stated or 2 * depth]))
