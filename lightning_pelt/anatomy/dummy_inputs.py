"""Inputs on which a model is examined and tried, and running it without side effects."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel


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
    return base if getattr(base, "main_input_name", None) in accepted else model


def dummy_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """The smallest inputs that run ``model``: five tokens, an image, or a quarter second of sound.

    The values are drawn from a fixed seed.
    """
    accepted = inspect.signature(model.forward).parameters
    device, dtype = model.device, model.dtype
    generator = torch.Generator().manual_seed(0)
    config = model.config
    vision = getattr(config, "vision_config", config)
    inputs: dict[str, Tensor] = {}
    if "pixel_values" in accepted:
        size = vision.image_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        image = (1, getattr(vision, "num_channels", 3), height, width)
        inputs["pixel_values"] = torch.randn(image, generator=generator, device="cpu")
    if "input_features" in accepted:
        shape = (1, config.num_mel_bins, 2 * config.max_source_positions)
        inputs["input_features"] = torch.randn(shape, generator=generator, device="cpu")
    if "input_values" in accepted:
        inputs["input_values"] = torch.randn((1, 4000), generator=generator, device="cpu")
    inputs = {name: tensor.to(device, dtype) for name, tensor in inputs.items()}
    tokens = torch.arange(3, 8, device=device)[None]
    if "input_ids" in accepted or not inputs:
        inputs["input_ids"] = tokens
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = tokens[:, :4].contiguous()
    return inputs


def tried_inputs(
    model: PreTrainedModel, inputs: dict[str, Tensor] | None
) -> Iterator[tuple[PreTrainedModel, dict[str, Any]]]:
    """What to run to try a changed ``model``, and on what, the most telling first.

    By default two equal rows, the second with padding, then what the model was examined on.

    Args:
        model: a whole model.
        inputs: its example inputs; None for the dummy inputs of its base.
    """
    if inputs is not None:
        yield model, on(model, inputs)
        return
    base = base_of(model)
    single = dummy_inputs(base)
    double = {name: torch.cat([tensor, tensor]) for name, tensor in single.items()}
    if "input_ids" in single and "attention_mask" in inspect.signature(base.forward).parameters:
        double["attention_mask"] = torch.ones_like(double["input_ids"])
        double["attention_mask"][1, -1] = 0
    yield base, double
    yield base, single


def on(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """``inputs`` on the device of ``model``, floats in its dtype."""
    moved = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            dtype = model.dtype if value.is_floating_point() else value.dtype
            value = value.to(model.device, dtype)
        moved[name] = value
    return moved


def rows_of(inputs: Mapping[str, Any]) -> int:
    """Number of rows: the length of the first tensor."""
    return next((len(v) for v in inputs.values() if isinstance(v, Tensor) and v.dim()), 1)


@contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Run ``model`` in eval mode, and leave it and the global random state as they were.

    BigBird replaces its attentions at the first short input.
    """
    before = [(module, dict(module._modules), _plain(module)) for module in model.modules()]
    kind = model.device.type
    devices = [model.device.index or 0] if kind not in ("cpu", "meta", "mps") else []
    model.eval()
    try:
        with (
            torch.random.fork_rng(devices, device_type=kind if devices else "cuda"),
            torch.device(model.device),  # trainers run configure_model with another default device
        ):
            yield
    finally:
        for module, children, attributes in before:
            module._modules.clear()
            module._modules.update(children)
            vars(module).update(attributes)


def _plain(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are words, numbers and answers, its mode among them."""
    kinds = (str, int, float, bool, type(None))
    return {name: value for name, value in vars(module).items() if isinstance(value, kinds)}
