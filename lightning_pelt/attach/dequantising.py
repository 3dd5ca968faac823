"""Quantised layers: which of them equal an ordinary linear layer, and a model of such layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from lightning_pelt.methods._ops import first_tensor
from lightning_pelt.utils.quantised import kind_of

PAIRS = 16  # of random inputs
# Root mean square of what a layer lacks to W x + b, by that of its outputs: rounding to bf16 gives
# 0.0035 or less, and rounding the inputs to eight bits, as LLM.int8() does, 0.008 or more.
DEVIATION = 0.005


def can_dequantise(model: PreTrainedModel) -> bool:
    """Whether the model is quantised in a way that transformers or this package can undo."""
    return _by_transformers(model) or _ours(model)


def _by_transformers(model: PreTrainedModel) -> bool:
    quantizer: Any = getattr(model, "hf_quantizer", None)
    own = getattr(type(quantizer), "_dequantize", None)
    return own is not None and own is not HfQuantizer._dequantize


def _ours(model: PreTrainedModel) -> bool:
    """Whether every quantised parameter is the weight of a layer that ``ordinary`` can convert."""
    parameters = [p for module in model.modules() for p in _quantised(module)]
    layers = [module for module in model.modules() if _is_convertible(module)]
    return bool(layers) and len(parameters) == len(layers)


def _quantised(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module._parameters.values() if p is not None and kind_of(p) is not None]


def _is_convertible(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    if weight is None or kind_of(weight) is None:
        return False
    if type(module) is nn.Linear:
        return type(weight).__module__.split(".")[0] == "torchao" and hasattr(weight, "dequantize")
    return type(weight).__name__ == "Params4bit" and type(module).__name__ == "Linear4bit"


def keep_layout(model: nn.Module) -> None:
    """Let 4-bit layers of bitsandbytes keep their layout on CPUs with AVX512-BF16.

    There an evaluation packs them in another way, with scales rounded to bf16: the frozen base
    would change, and ``dequantize()`` would read the wrong weights.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
            module.state_dict()  # which gives packed ones their layout back


@torch.no_grad()
def is_affine(layer: nn.Module, d_in: int, like: torch.Tensor) -> bool:
    """Whether the output of a layer is W x + b for some W and b: f(x + z) + f(0) = f(x) + f(z).

    Args:
        layer: linear, with its weight in any form.
        d_in: width of its input.
        like: a tensor on its device and in the dtype of its input.
    """
    draw = torch.Generator().manual_seed(0)
    x, z = (torch.randn(PAIRS, d_in, generator=draw).to(like) for _ in range(2))
    with torch.autocast(like.device.type, enabled=False):
        inputs = (x + z, torch.zeros_like(x), x, z)
        both, none, one, other = (first_tensor(layer.forward(i)).float() for i in inputs)
    lacking = both + none - one - other
    return bool(lacking.square().mean() <= DEVIATION**2 * both.square().mean())


@torch.no_grad()
def dequantise(model: PreTrainedModel) -> None:
    """Give a model ordinary layers, and a configuration that names no quantisation.

    Raises:
        ValueError: transformers did not convert the model in place.
    """
    if not _by_transformers(model):
        for path, module in list(model.named_modules()):
            if _is_convertible(module):
                model.set_submodule(path, ordinary(module))
        _forget_quantizer(model)
    elif model.dequantize() is not model:
        raise ValueError(
            f"transformers did not dequantise {type(model).__name__} in place: load the base, call "
            "its dequantize(), then load_adapters and merge"
        )


def ordinary(layer: Any) -> nn.Linear:
    """A linear layer with the dequantised weight of ``layer``, in the dtype that it stands for.

    Args:
        layer: of torchao with quantised weights alone, or of 4 bits of bitsandbytes.
    """
    weight = layer.weight
    if type(weight).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        whole = dequantize_4bit(weight.data, weight.quant_state)
    else:
        whole = weight.dequantize()
    new = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    new.weight = nn.Parameter(whole)
    new.bias = layer.bias
    return new.train(layer.training)


def _forget_quantizer(model: PreTrainedModel) -> None:
    """Remove what transformers keeps of a quantised model, as its ``dequantize()`` does."""
    for holder, names in (
        (model, ("hf_quantizer", "is_quantized", "quantization_method")),
        (model.config, ("quantization_config", "_pre_quantization_dtype")),
    ):
        for name in names:
            holder.__dict__.pop(name, None)
