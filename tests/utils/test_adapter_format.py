"""One format: tensors with their configuration in the header, and a JSON file to read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_pelt.utils.adapter_format import (
    CONFIG,
    FORMAT,
    TENSORS,
    read_adapters,
    write_adapters,
)

PLAN = {"class_path": "lightning_pelt.UniPELT", "init_args": {}}
BACKBONE = {"model_type": "bert", "name": "größer"}


def written(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {"a.weight": torch.randn(2, 3), "a.bias": torch.zeros(2, dtype=torch.bfloat16)}
    write_adapters(folder, tensors, plan=PLAN, backbone=BACKBONE)
    return tensors


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tensors = written(tmp_path / "new" / "folder")
    config, found = read_adapters(tmp_path / "new" / "folder" / TENSORS)
    assert config == {"format": FORMAT, "plan": PLAN, "backbone": BACKBONE}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_the_json_file_repeats_the_configuration(tmp_path: Path) -> None:
    written(tmp_path)
    text = (tmp_path / CONFIG).read_text(encoding="utf-8")
    assert json.loads(text) == read_adapters(tmp_path / TENSORS)[0]
    assert "größer" in text


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="but not one of save_adapters"):
        read_adapters(tmp_path / "model.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    written(tmp_path)
    path = tmp_path / TENSORS
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        read_adapters(path)
