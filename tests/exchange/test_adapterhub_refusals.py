"""Folders that are not what they should be are refused by name, and the model is as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from exchange.adapterhub import FIXTURES, base, expected, output
from safetensors.torch import load_file, save_file
from zoo import build

from lightning_pelt import LoRA, Plan, attach, save_adapters
from lightning_pelt.exchange.adapterhub import load_adapterhub
from lightning_pelt.testing import tiny_bert

WEIGHTS = "adapter.safetensors"


def copy(tmp_path: Path, kind: str = "seq_bn", **changes: Any) -> Path:
    """A copy of a folder of BERT, with some settings changed."""
    folder = tmp_path / kind
    shutil.copytree(FIXTURES / "bert" / kind, folder)
    edit(folder, **changes)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    whole = json.loads(path.read_text())
    for name, value in changes.items():
        (whole["config"] if name in whole["config"] or name == "strange" else whole)[name] = value
    path.write_text(json.dumps(whole))


def change(folder: Path, edit_tensors: Any) -> Path:
    tensors = load_file(folder / WEIGHTS)
    save_file(edit_tensors(tensors), folder / WEIGHTS)
    return folder


def refused(folder: Path, match: str, error: type[Exception] = ValueError) -> None:
    inputs, wanted = expected("bert")
    model = base("bert")
    with pytest.raises(error, match=match):
        load_adapterhub(model, folder)
    assert torch.equal(output(model, inputs), output(base("bert"), inputs))
    torch.testing.assert_close(output(model, inputs), wanted["base"], atol=1e-5, rtol=0)
    assert not any(".pelt." in key for key in model.state_dict())


def without(key: str) -> Any:
    return lambda tensors: {name: t for name, t in tensors.items() if not name.endswith(key)}


def test_a_folder_of_another_format_names_it(tmp_path: Path) -> None:
    model = tiny_bert()
    attach(model, Plan.uniform(LoRA(r=2)))
    save_adapters(model, tmp_path / "ours")
    refused(tmp_path / "ours", "load it with load_adapters")
    refused(tmp_path / "nothing", "there is no folder", FileNotFoundError)
    tiny_bert().save_pretrained(tmp_path / "whole")
    refused(tmp_path / "whole", "a whole model of transformers")


@pytest.mark.slow
def test_weights_that_are_absent_truncated_or_not_of_tensors(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    refused(folder, "is truncated")
    (folder / WEIGHTS).unlink()
    refused(folder, "no weights", FileNotFoundError)
    torch.save({"a": "text"}, folder / "pytorch_adapter.bin")
    refused(folder, "expected tensors by name")
    torch.save({"a": Path("x")}, folder / "pytorch_adapter.bin")  # a pickle of an object
    refused(folder, "contains more than tensors")


@pytest.mark.slow
def test_tensors_that_are_missing_left_over_or_of_another_shape(tmp_path: Path) -> None:
    folder = change(copy(tmp_path), without("layer.1.output.adapters.it.adapter_up.bias"))
    refused(folder, r"lacks adapters\.\*\.adapter_up\.bias of ffn in block 1 of the encoder")
    folder = copy(tmp_path / "2", mh_adapter=True)
    refused(folder, "lacks .* of attention in block 0")
    folder = copy(tmp_path / "3", leave_out=[1])
    refused(folder, "tensors that its configuration does not explain")
    folder = copy(tmp_path / "4", reduction_factor=8)
    refused(folder, r"down-projection is \(4, 16\) there and \(2, 16\) here")
    folder = change(copy(tmp_path / "5"), lambda t: {**t, "other.weight": torch.ones(1)})
    refused(folder, "other.weight")
    folder = change(copy(tmp_path / "6"), lambda t: {k: v * float("nan") for k, v in t.items()})
    refused(folder, "contains NaN")
    folder = change(copy(tmp_path / "7"), lambda t: {k: v.long() for k, v in t.items()})
    refused(folder, "torch.int64, expected floats")


def test_blocks_that_are_no_numbers(tmp_path: Path) -> None:
    refused(copy(tmp_path, leave_out="all"), "leave_out='all', expected a list of block numbers")


def test_two_adapters_in_one_file(tmp_path: Path) -> None:
    def more(tensors: dict) -> dict:
        return tensors | {k.replace(".it.", ".two."): t.clone() for k, t in tensors.items()}

    refused(change(copy(tmp_path), more), "several adapters .it, two.")


def test_prefixes_that_differ_between_their_copies(tmp_path: Path) -> None:
    folder = copy(tmp_path, "prefix")
    path = folder / "pytorch_adapter.bin"
    tensors = {name: t.clone() for name, t in torch.load(path, weights_only=True).items()}
    tensors[next(name for name in tensors if "wte" in name)] += 1
    torch.save(tensors, path)
    refused(folder, "two different tensors")


def test_another_base_is_refused_or_named(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    with pytest.raises(ValueError, match="model_type 'bert' there, 'roberta' here"):
        load_adapterhub(base("roberta"), folder)
    with pytest.raises(ValueError, match="hidden_size 16 there, 32 here"):
        load_adapterhub(tiny_bert(), folder)
    edit(folder, model_name="bert-large-cased")
    with pytest.warns(UserWarning, match="was trained on 'bert-large-cased'"):
        load_adapterhub(base("bert"), folder)


def test_a_family_that_was_not_compared_is_refused(tmp_path: Path) -> None:
    model = build("qwen3")
    folder = copy(tmp_path, model_type="qwen3", hidden_size=model.config.hidden_size)
    with pytest.raises(ValueError, match=r"unknown family .* 'qwen3'.* not loaded on trust"):
        load_adapterhub(model, folder)


def test_unknown_fields_and_settings_of_training_are_named_in_a_warning(tmp_path: Path) -> None:
    inputs, wanted = expected("bert")
    model = base("bert")
    with pytest.warns(UserWarning) as found:
        load_adapterhub(model, copy(tmp_path, strange=1, dropout=0.1))
    texts = [str(warning.message) for warning in found]
    assert any("fields that are not known (strange)" in text for text in texts)
    assert any("dropout=0.1, which is not applied here" in text for text in texts)
    torch.testing.assert_close(output(model, inputs), wanted["seq_bn"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        ("seq_bn", {"non_linearity": "mish"}, "non_linearity='mish'"),
        ("seq_bn", {"scaling": "other"}, "scaling='other'"),
        ("seq_bn", {"residual_before_ln": "post_add"}, "residual_before_ln='post_add'"),
        ("seq_bn", {"reduction_factor": {"0": 4}}, "no positive number for block 1"),
        ("seq_bn", {"mh_adapter": False, "output_adapter": False}, "adapters at none of"),
        ("compacter", {"shared_W_phm": True}, "shared_W_phm=True"),
        ("compacter", {"phm_bias": False}, "phm_bias=False"),
        ("compacter", {"phm_dim": 8}, "phm_dim=8"),
        ("ia3", {"alpha": 2}, "alpha=2"),
        ("lora", {"attn_matrices": ["q", "o"]}, "attn_matrices"),
        ("lora", {"vera_d": 0.1}, "vera_d=0.1"),
        ("prefix", {"non_linearity": "relu"}, "eject_prefix_tuning"),
        ("lora", {"architecture": "reft"}, "ReFT interventions"),
        ("lora", {"architecture": "lorra"}, "did you mean 'lora'"),
    ],
)
def test_settings_without_a_counterpart_are_refused(
    tmp_path: Path, kind: str, changes: dict[str, Any], match: str
) -> None:
    refused(copy(tmp_path, kind, **changes), match)


def test_a_gate_for_keys_and_one_for_values(tmp_path: Path) -> None:
    folder = copy(tmp_path, "unipelt")
    path = folder / "adapter_config.json"
    whole = json.loads(path.read_text())
    whole["config"]["configs"][0]["shared_gating"] = False
    path.write_text(json.dumps(whole))
    refused(folder, "shared_gating=False")


@pytest.mark.parametrize("config", [None, 3, "pfeifer", {"architecture": "union", "configs": 1}])
def test_a_configuration_that_is_none(tmp_path: Path, config: Any) -> None:
    folder = copy(tmp_path)
    (folder / "adapter_config.json").write_text(
        json.dumps({"config": config, "model_type": "bert"})
    )
    refused(folder, "config|pfeiffer")
