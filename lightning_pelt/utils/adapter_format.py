"""The file format of adapters: safetensors with a configuration in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_pelt.utils.files import write_aside

TENSORS = "adapters.safetensors"
CONFIG = "adapter_config.json"
FORMAT = "1"
HEADER = "lightning_pelt"


def write_adapters(
    folder: Path, tensors: Mapping[str, Tensor], *, plan: dict[str, Any], backbone: dict[str, Any]
) -> None:
    """Write ``adapters.safetensors``, and its configuration again as a readable JSON file.

    Args:
        folder: created if it does not exist.
        tensors: by their state-dict names.
        plan: configuration of the plan.
        backbone: what a model must share with the trained one to load the adapters.

    Raises:
        OSError: the disk is full or not writable. Existing files stay unchanged.
    """
    config = {"format": FORMAT, "plan": plan, "backbone": backbone}
    header = {HEADER: json.dumps(config)}
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(folder / TENSORS, lambda path: save_file(dict(tensors), path, metadata=header))
    text = json.dumps(config, indent=2, ensure_ascii=False)
    write_aside(folder / CONFIG, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def read_adapters(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the configuration and the tensors that :func:`write_adapters` wrote.

    Raises:
        ValueError: the file is truncated or not an adapter file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            if header is None:
                raise ValueError(
                    f"{path} is a safetensors file, but not one of save_adapters: its header has "
                    f"no {HEADER} entry"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return json.loads(header), tensors
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
