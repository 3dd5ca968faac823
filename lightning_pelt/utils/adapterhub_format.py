"""The folders of AdapterHub's ``adapters`` library: their configuration and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lightning_pelt.utils.json_data import parse_json

HUB_CONFIG = "adapter_config.json"
HUB_WEIGHTS = ("adapter.safetensors", "model.safetensors", "pytorch_adapter.bin")
HUB_HEAD_CONFIG = "head_config.json"
HUB_HEAD_WEIGHTS = ("model_head.safetensors", "pytorch_model_head.bin")
# Names of tensors in files of ``adapter-transformers`` 1, and those of today.
OLD_NAMES = {
    "attention_text_task_adapters": "adapters",
    "attention_text_lang_adapters": "adapters",
    "layer_text_task_adapters": "adapters",
    "layer_text_lang_adapters": "adapters",
    "invertible_lang_adapters": "invertible_adapters",
}


def read_hub_config(path: Path) -> dict[str, Any]:
    """The content of ``adapter_config.json`` or ``head_config.json``, with its entry ``config``.

    Raises:
        ValueError: it is not JSON, or no mapping with an entry ``config``.
        OSError: it cannot be read.
    """
    try:
        whole = parse_json(path.read_bytes(), path)
    except ValueError as error:
        raise not_a_configuration(path, str(error)) from error
    if not isinstance(whole, dict) or "config" not in whole:
        raise not_a_configuration(path, f"it holds {str(whole)[:40]}")
    return whole


def not_a_configuration(path: Path, why: str) -> ValueError:
    """The error for a file that is not the configuration of an adapter."""
    return ValueError(
        f"{path} is not the configuration of an AdapterHub adapter: expected JSON with a mapping "
        f"'config' ({why})"
    )


def read_hub_tensors(folder: Path, names: Sequence[str] = HUB_WEIGHTS) -> dict[str, Tensor]:
    """The tensors of the first file in ``folder`` that is one of ``names``, on the CPU.

    Old names are translated, see :data:`OLD_NAMES`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is truncated, or contains more than tensors.
    """
    files = [folder / name for name in names if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(
            f"{folder} has {HUB_CONFIG} and no weights: expected one of {', '.join(names)}"
        )
    tensors = _read(files[0])
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(
            f"{files[0]} contains a {type(tensors).__name__}, expected tensors by name"
        )
    return {_today(key): tensor for key, tensor in tensors.items()}


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes make both readers raise many types
        raise ValueError(f"{path} is truncated or contains more than tensors: {error}") from error


def _today(key: str) -> str:
    for old, new in OLD_NAMES.items():
        key = key.replace(old, new)
    return key
