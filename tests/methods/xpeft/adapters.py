"""Folders with trained adapters, of ``save_adapters`` and of AdapterHub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_pelt import Adapter, Plan, RandomBank, attach, save_adapters
from lightning_pelt.methods.xpeft import BankTensors
from lightning_pelt.testing import tiny_bert

BERT: Any = {"blocks": 2, "width": 32, "bottleneck": 4}
HUB: Any = {"blocks": 2, "width": 4, "bottleneck": 2}


def pelt_folder(folder: Path, *, seed: int = 0, plan: Plan | None = None) -> str:
    """A folder of ``save_adapters`` with an adapter whose weights, biases included, are random."""
    model = tiny_bert()
    attachment = attach(model, plan or Plan.uniform(Adapter(bottleneck=4), norms=False), seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for group in attachment.parameter_groups().values():
            for parameter in group:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return str(save_adapters(model, folder))


def apply_adapter(bank: BankTensors, block: int, adapter: int, x: Tensor) -> Tensor:
    """The definition in the docstring of ``BankTensors``."""
    assert bank.a_bias is not None
    assert bank.b_bias is not None
    A = bank.A[block, adapter].view(bank.width, bank.bottleneck)
    B = bank.B[block, adapter].view(bank.bottleneck, bank.width)
    inner = torch.relu(x @ A + bank.a_bias[block, adapter])
    return inner @ B + bank.b_bias[block, adapter]


# What ``adapters`` 1.3.0 writes for SeqBnConfig.
PFEIFFER = {
    "cross_adapter": False,
    "dropout": 0.0,
    "inv_adapter": None,
    "is_parallel": False,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": False,
    "non_linearity": "relu",
    "original_ln_after": True,
    "original_ln_before": True,
    "output_adapter": True,
    "phm_layer": False,
    "reduction_factor": 2,
    "residual_before_ln": True,
    "scaling": 1.0,
    "use_gating": False,
}


def hub_tensors(
    *,
    blocks: int = 2,
    width: int = 4,
    bottleneck: int = 2,
    layers: str = "bert.encoder.layer.{}.output",
) -> dict[str, Tensor]:
    """The state of a Pfeiffer adapter named 7; its output biases hold minus the block's number."""
    draw = torch.Generator().manual_seed(blocks + width + bottleneck)
    tensors = {}
    for block in sorted(range(blocks), key=str):
        prefix = f"{layers.format(block)}.adapters.7."
        tensors[f"{prefix}adapter_down.0.weight"] = torch.randn(bottleneck, width, generator=draw)
        tensors[f"{prefix}adapter_down.0.bias"] = torch.randn(bottleneck, generator=draw)
        tensors[f"{prefix}adapter_up.weight"] = torch.randn(width, bottleneck, generator=draw)
        tensors[f"{prefix}adapter_up.bias"] = torch.full((width,), -float(block))
    return tensors


def hub_folder(
    folder: Path,
    *,
    name: str = "pytorch_adapter.bin",
    tensors: dict[str, Tensor] | None = None,
    config: dict[str, Any] | None = None,
    model_type: str = "bert",
    **shape: Any,
) -> str:
    """A folder in the format of AdapterHub's library; ``shape`` is of :func:`hub_tensors`."""
    folder.mkdir(exist_ok=True)
    state = hub_tensors(**shape) if tensors is None else tensors
    whole = {"config": {**PFEIFFER, **(config or {})}, "model_type": model_type, "version": "1.3.0"}
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    if name.endswith(".bin"):
        torch.save(state, folder / name)
    elif name:
        save_file(state, folder / name)
    return str(folder)


# Keys of the state of :func:`hub_tensors`.
UP = "bert.encoder.layer.1.output.adapters.7.adapter_up.weight"
NORM = "bert.encoder.layer.1.output.adapters.7.adapter_norm_after.weight"


def digests(bank: RandomBank, sizes: dict[str, int]) -> tuple[str, str]:
    """Of the bank without and with its weights."""
    return bank.digest(**sizes), bank.load(**sizes).digest
