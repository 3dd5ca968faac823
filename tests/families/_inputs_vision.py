"""Images and video for models whose inputs the package does not make up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

SIDE = 64  # of an image


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers that are the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image(model: PreTrainedModel) -> dict[str, Any]:
    """One image of 64 x 64 pixels."""
    return {"pixel_values": drawn(1, 3, SIDE, SIDE)}


def prompted_image(model: PreTrainedModel) -> dict[str, Any]:
    """An image, a prompt image and its mask for SegGPT."""
    height, width = model.config.image_size
    return {
        "pixel_values": drawn(1, 3, height // 2, width),
        "prompt_pixel_values": drawn(1, 3, height // 2, width, seed=1),
        "prompt_masks": drawn(1, 3, height // 2, width, seed=2),
    }


def all_words(model: PreTrainedModel) -> dict[str, Any]:
    """Words in all positions, as Perceiver reads them."""
    positions = model.config.max_position_embeddings
    return {"inputs": torch.arange(positions)[None] % 100 + 6}


def larger_image(model: PreTrainedModel) -> dict[str, Any]:
    """One image of 128 x 128 pixels."""
    return {"pixel_values": drawn(1, 3, 2 * SIDE, 2 * SIDE)}


def image_pair(model: PreTrainedModel) -> dict[str, Any]:
    """Two images whose points are matched."""
    return {"pixel_values": drawn(1, 2, 3, SIDE, SIDE)}


def image_and_task(model: PreTrainedModel) -> dict[str, Any]:
    """An image and the words of a task, for OneFormer."""
    return {**image(model), "task_inputs": torch.arange(model.config.task_seq_len)[None] % 100}


def image_and_words(model: PreTrainedModel) -> dict[str, Any]:
    """An image of the model's size and words, for SAM 3."""
    size = model.config.vision_config.backbone_config.image_size
    words = torch.tensor([[5, 17, 40, 9, 31, 22, 60, 14]])
    return {"pixel_values": drawn(1, 3, size, size), "input_ids": words}


def image_and_points(model: PreTrainedModel) -> dict[str, Any]:
    """An image of the model's size and two points, one inside and one outside, for SAM."""
    config = model.config.vision_config
    size = getattr(config, "image_size", None) or config.backbone_config.image_size
    size = size if isinstance(size, int) else size[0]
    return {
        "pixel_values": drawn(1, 3, size, size),
        "input_points": torch.tensor([[[[5.0, 9.0], [20.0, 30.0]]]]),
        "input_labels": torch.tensor([[[1, 0]]]),
    }


def pose_image(model: PreTrainedModel) -> dict[str, Any]:
    """An image of the model's size, and the data set whose expert looks at it, for ViTPose."""
    height, width = model.config.backbone_config.image_size
    return {"pixel_values": drawn(1, 3, height, width), "dataset_index": torch.tensor([0])}


def text_line(model: PreTrainedModel) -> dict[str, Any]:
    """The image of a line of text."""
    return {"pixel_values": drawn(1, 3, 48, 160)}
