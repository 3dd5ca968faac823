"""Images that are cut into patches before they reach the model."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor, nn

from lightning_pelt.anatomy.dummy_inputs.noise import noise, ones
from lightning_pelt.anatomy.dummy_inputs.part import Part, pair

GRIDS = ("image_grid_thw", "grid_thw")
PLACES = ("image_position_ids", "pixel_position_ids")
SIZES = ("merge_sizes", "image_merge_sizes")
HALVINGS = 8  # patches of a side that is halved three times


def patches(part: Part, inside: Part) -> Iterator[dict[str, Tensor]]:
    """The arguments that hold the patches of an image, if the part takes patches."""
    grid = next((name for name in GRIDS if name in part.accepted), None)
    places = next((name for name in PLACES if name in part.accepted), None)
    if grid is not None:
        yield from _packed(part, inside, grid)
    elif places is not None:
        yield from _placed(inside, places)
    elif "spatial_shapes" in part.accepted:
        yield _shaped(inside)
    elif "target_sizes" in part.accepted:
        yield _sized(inside)
    elif "flattened_patches" in part.accepted:
        yield {"flattened_patches": _numbered(inside)}
    elif "pixel_values" in part.accepted and inside.first(nn.Conv2d, nn.Conv3d) is None:
        for shape in _shapes(inside):
            yield {"pixel_values": noise(1, 4, *shape)}


def _packed(part: Part, inside: Part, grid: str) -> Iterator[dict[str, Tensor]]:
    """The patches of one image behind each other, and the grid that they form.

    The grid comes first, since it alone has a row for each image.
    """
    merge = pair(inside.entry("spatial_merge_size", "merge_size", "merge_kernel_size", default=2))
    sides = [2 * side for side in merge]
    pixels = "pixel_values" if "pixel_values" in part.accepted else "hidden_states"
    inputs = {grid: torch.tensor([[1, *sides]])}
    inputs |= {name: torch.tensor(merge[:1]) for name in SIZES if name in part.accepted}
    for shape in _shapes(inside):
        yield {**inputs, pixels: noise(prod(sides), *shape)}


def _placed(inside: Part, places: str) -> Iterator[dict[str, Tensor]]:
    """Flat patches and the column and row of each."""
    side = 2 * inside.entry("pooling_kernel_size", default=1)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    numbers = torch.stack([columns, rows], -1).reshape(1, side**2, 2)
    for shape in _shapes(inside):
        yield {"pixel_values": noise(1, side**2, *shape), places: numbers}


def _shaped(inside: Part) -> dict[str, Tensor]:
    """Flat patches, which of them are real, and the shape of the image."""
    side = 2 * inside.entry("downsample_factor", default=1)
    return {
        "pixel_values": noise(1, side**2, *_shapes(inside)[0]),
        "pixel_attention_mask": ones(1, side**2),
        "spatial_shapes": torch.tensor([[side, side]]),
    }


def _sized(inside: Part) -> dict[str, Tensor]:
    """Pixels and the numbers of patches of their sides."""
    channels, height, width = next(shape for shape in _shapes(inside) if len(shape) == 3)
    return {
        "pixel_values": noise(1, channels, HALVINGS * height, HALVINGS * width),
        "target_sizes": torch.tensor([[HALVINGS, HALVINGS]]),
    }


def _numbered(inside: Part) -> Tensor:
    """Flat patches with their row and column in front."""
    flat = noise(1, 4, 2 + _shapes(inside)[0][0])
    flat[..., :2] = torch.tensor([[1, 1], [1, 2], [2, 1], [2, 2]])
    return flat


def _shapes(inside: Part) -> list[tuple[int, ...]]:
    """Shapes of a patch, flat and as pixels, from the first layers and from the stated sides."""
    shapes: list[tuple[int, ...]] = []
    for layer in inside.each(nn.Conv2d, nn.Conv3d, nn.Linear):
        if isinstance(layer, nn.Linear):
            shapes += [] if shapes else [(layer.in_features,)]
        elif layer.groups == 1:
            shape = (layer.in_channels, *layer.kernel_size)
            shapes += [(prod(shape),), shape]
            break
    side = inside.entry("patch_size")
    if side is not None:
        shapes.append((inside.entry("num_channels", default=3) * prod(pair(side)),))
    return list(dict.fromkeys(shapes))
