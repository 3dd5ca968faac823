"""One format: tensors with their configuration in the header, and a JSON file to read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_pelt.utils.adapter_format import (
    CONFIG,
    DIGESTS,
    FORMAT,
    TENSORS,
    digest_of,
    read_adapters,
    refuse_damage,
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
    digests = config.pop(DIGESTS)
    assert config == {"format": FORMAT, "plan": PLAN, "backbone": BACKBONE}
    assert {*map(len, digests.values())} == {64}
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


def test_a_changed_tensor_is_damage(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / TENSORS
    config, tensors = read_adapters(path)
    refuse_damage(path, config, tensors)
    tensors["a.bias"] = torch.ones(2, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"adapters\.safetensors is damaged"):
        refuse_damage(path, config, tensors)
    refuse_damage(path, config | {"format": "1"}, tensors)  # which has no digest


def test_a_digest_covers_names_dtypes_shapes_and_values() -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.zeros((), dtype=torch.bool)}
    expected = digest_of(tensors)
    assert digest_of(dict(reversed(tensors.items()))) == expected
    assert digest_of(tensors | {"a": torch.arange(12.0)[::2] / 2}) == expected  # not contiguous
    for other in (
        {"c": tensors["a"], "b": tensors["b"]},
        tensors | {"a": torch.arange(6.0).view(2, 3)},
        tensors | {"a": torch.arange(6.0).view(torch.int32)},
        tensors | {"a": -torch.arange(6.0)},
        tensors | {"b": torch.ones((), dtype=torch.bool)},
        {"a": tensors["a"]},
    ):
        assert digest_of(other) != expected
