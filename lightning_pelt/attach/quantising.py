"""``quantise``: the linear layers of a base in 8 or 4 bits, before a plan is attached."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import base_of, examine, is_without_values
from lightning_pelt.attach.attach import find_model
from lightning_pelt.attach.attachment import find_attachments
from lightning_pelt.attach.dequantising import keep_layout
from lightning_pelt.utils.errors import unknown
from lightning_pelt.utils.quantised import kinds_of

Quantisation = Literal["int8", "nf4", "fp8"]
LIBRARIES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}


@torch.no_grad()
def quantise(
    model: nn.Module,
    kind: Quantisation,
    *,
    path: str | None = None,
    example_inputs: dict[str, Tensor] | None = None,
) -> PreTrainedModel:
    """Quantise the weights of the linear layers in the blocks of a Hugging Face model, in place.

    Embeddings, norms, biases, the head, layers that transformers keeps in fp32, and weights that
    several modules share stay as they are. Attach the plan afterwards: submodules are not
    quantised, and gradients flow through the quantised layers. Inputs are never quantised, so that
    every layer still computes W x + b, with rounded W, and ``merge`` can dequantise it.

    ``int8`` and ``fp8`` (e4m3) have one scale per output channel, and need torchao. ``nf4`` is the
    4-bit NormalFloat of QLoRA (Dettmers et al., 2023) with quantised scales, one for 64 weights,
    and needs bitsandbytes. Its layers compute in the dtype that the weights had.

    Args:
        model: a Hugging Face model with weights, or a module that holds one; nothing is attached.
        kind: ``int8``, ``nf4`` or ``fp8``.
        path: of the model inside ``model``, if there are several.
        example_inputs: as for ``attach``.

    Raises:
        ImportError: the library is not installed.
        ValueError: ``kind`` is unknown; a plan is attached; the model is on the meta device, is
            quantised already, or has no layers of ``nn.Linear`` in its blocks; or such a layer does
            not run on this device. The model is then as it was.

    Example:
        >>> from lightning_pelt import UniPELT, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = quantise(tiny_bert(), "int8")  # doctest: +SKIP
        >>> attachment = attach(model, UniPELT())  # doctest: +SKIP
    """
    check_quantisation(kind)
    root = find_model(model, path)
    _refuse_unfit(root, kind)
    make = _maker(kind)
    paths = _layers(root, example_inputs)
    if not paths:
        raise ValueError(
            f"{type(root).__name__} has no nn.Linear in its blocks, which {LIBRARIES[kind]} could "
            "quantise (the Conv1D layers of GPT-2 are none): leave quantise out"
        )
    _try(root, paths[0], kind, make)
    for each in paths:
        root.set_submodule(each, make(root.get_submodule(each)))
    return root


def check_quantisation(kind: Quantisation | None) -> Quantisation | None:
    """Return ``kind`` if it is known, or None.

    Raises:
        ValueError: the message lists the known kinds.
    """
    if kind is not None and kind not in LIBRARIES:
        raise unknown("quantisation", kind, LIBRARIES)
    return kind


def _refuse_unfit(root: PreTrainedModel, kind: str) -> None:
    name = type(root).__name__
    if find_attachments(root):
        raise ValueError(
            f"{name} has a plan already: quantise the model before attach, or detach(model) first"
        )
    if is_without_values(root):
        raise ValueError(f"{name} is on the meta device: load its weights before quantising them")
    if there := kinds_of(root.parameters()):
        raise ValueError(
            f"{name} is quantised already ({', '.join(there)}), and quantise={kind!r} would do so "
            "again: leave it out, or load the base in full precision"
        )


def _layers(root: PreTrainedModel, example_inputs: dict[str, Tensor] | None) -> list[str]:
    """Paths of the linear layers in the blocks, in network order."""
    anatomy = examine(root, example_inputs)
    blocks = [root.get_submodule(path) for stack in anatomy.stacks for path in stack.blocks]
    inside = {module for block in blocks for module in block.modules()}
    inside &= set(base_of(root).modules())
    modules = list(root.modules())
    holders = Counter(id(p) for module in modules for p in module._parameters.values())
    in_fp32 = {
        word
        for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        for word in getattr(root, name, None) or ()
    }
    return [
        path
        for path, module in root.named_modules()
        if module in inside
        and type(module) is nn.Linear
        and module.weight.is_floating_point()
        and holders[id(module.weight)] == 1
        and not in_fp32.intersection(path.split("."))
    ]


def _maker(kind: str) -> Any:
    """What gives the quantised layer of an ``nn.Linear``.

    Raises:
        ImportError: the message names the extra.
    """
    library = LIBRARIES[kind]
    try:
        import_module("torchao.quantization" if library == "torchao" else library)
    except ImportError as error:
        raise ImportError(
            f"quantise={kind!r} needs {library}: pip install 'lightning-pelt[quantise]'"
        ) from error
    return {"int8": _int8, "fp8": _fp8, "nf4": _nf4}[kind]


def _int8(linear: nn.Linear) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig

    return _by_torchao(linear, Int8WeightOnlyConfig(set_inductor_config=False))


def _fp8(linear: nn.Linear) -> nn.Module:
    from torchao.quantization import Float8WeightOnlyConfig, PerRow

    config = Float8WeightOnlyConfig(granularity=PerRow(), set_inductor_config=False)
    return _by_torchao(linear, config)


def _by_torchao(linear: nn.Linear, config: Any) -> nn.Module:
    from torchao.quantization import quantize_

    quantize_(linear, config)
    return linear


def _nf4(linear: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight = linear.weight
    new = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    packed: Any = Params4bit(
        weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=new
    )
    new.weight = packed.to(weight.device)  # quantises
    new.bias = linear.bias
    keep_layout(new)
    new.__dict__ |= {n: v for n, v in linear.__dict__.items() if n not in new.__dict__}
    return new.train(linear.training)


def _try(root: PreTrainedModel, path: str, kind: str, make: Any) -> None:
    """Quantise and run a copy of one layer, forward and backward.

    Raises:
        ValueError: it does not run; the message names the device.
    """
    linear: Any = deepcopy(root.get_submodule(path))
    device, dtype, width = linear.weight.device, linear.weight.dtype, linear.in_features
    try:
        layer = make(linear)
        with torch.enable_grad():
            x = torch.ones(2, width, device=device, dtype=dtype, requires_grad=True)
            layer(x).sum().backward()
        finite = x.grad is not None and bool(x.grad.isfinite().all())
    except Exception as error:  # kernels raise many types
        raise ValueError(
            f"quantise={kind!r} does not run on {device} in {dtype}: {path} fails with "
            f"{type(error).__name__}: {str(error)[:200]}. Use another quantisation, or none"
        ) from error
    if not finite:
        raise ValueError(f"quantise={kind!r} does not run on {device}: {path} gives no gradients")
