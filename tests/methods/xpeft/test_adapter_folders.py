"""Banks of trained adapters, from folders of ``save_adapters`` and of AdapterHub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods.xpeft.adapters import (
    BERT,
    HUB,
    NORM,
    UP,
    apply_adapter,
    hub_folder,
    hub_tensors,
    pelt_folder,
)
from torch import Tensor

from lightning_pelt import Adapter, Gate, Group, LoRA, Plan, TrainedBank, load_adapters
from lightning_pelt.testing import tiny_bert
from lightning_pelt.utils.adapter_format import read_adapters, write_adapters

# -- folders of save_adapters -------------------------------------------------------------------


def test_a_bank_computes_what_the_saved_adapters_compute(tmp_path):
    plan = Plan.uniform(Adapter(bottleneck=4, name="mine"), norms=False)
    folders = [pelt_folder(tmp_path / "0"), pelt_folder(tmp_path / "1", seed=1, plan=plan)]
    bank = TrainedBank(folders=folders).load(**BERT)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    model = tiny_bert()
    for adapter, folder in enumerate(folders):
        attachment = load_adapters(model, folder)
        (modules,) = attachment.submodules.values()
        for block, module in enumerate(modules):
            expected = module(torch.zeros_like(x), x)
            torch.testing.assert_close(apply_adapter(bank, block, adapter, x), expected)
        attachment.detach()


def test_the_blocks_are_in_the_order_of_their_numbers(tmp_path):
    """In alphabetical order, block 10 would be before block 2."""
    folder = hub_folder(tmp_path, blocks=11)
    bank = TrainedBank([folder]).load(blocks=11, width=4, bottleneck=2)
    assert bank.b_bias is not None
    assert bank.b_bias[:, 0, 0].tolist() == [-float(block) for block in range(11)]


REFUSED = {
    "a gate": (Plan.uniform(Adapter(bottleneck=4, gate=Gate()), norms=False), r"gate=Gate\("),
    "another activation": (
        Plan.uniform(Adapter(bottleneck=4, activation="gelu"), norms=False),
        "activation='gelu', expected 'relu'",
    ),
    "attention": (
        Plan.uniform(Adapter(bottleneck=4, sites=("ffn", "attention")), norms=False),
        r"sites=\['ffn', 'attention'\], expected \['ffn'\]",
    ),
    "another placement": (
        Plan.uniform(Adapter(bottleneck=4, placement="parallel"), norms=False),
        "placement='parallel', expected 'unipelt'",
    ),
    "another method beside": (
        Plan.uniform(Adapter(bottleneck=4), LoRA(r=2), norms=False),
        "expected one Adapter and nothing else",
    ),
    "no adapter": (Plan.uniform(LoRA(r=2), norms=False), "expected one Adapter"),
    "trained norms": (Plan.uniform(Adapter(bottleneck=4), norms=True), "not even trained norms"),
    "a missing block": (
        Plan([Group([Adapter(bottleneck=4)], blocks=[1])], norms=False),
        "has adapters in the blocks 1, expected 0 to 1",
    ),
    "another bottleneck": (
        Plan.uniform(Adapter(bottleneck=8), norms=False),
        r"down of block 0 is \(8, 32\), expected \(4, 32\)",
    ),
}


@pytest.mark.parametrize(("plan", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_adapter_that_does_not_fit_raises_with_its_folder(tmp_path, plan, message):
    good, bad = pelt_folder(tmp_path / "good"), pelt_folder(tmp_path / "bad", plan=plan)
    with pytest.raises(ValueError, match=message) as raised:
        TrainedBank([good, bad]).load(**BERT)
    assert bad in str(raised.value)
    assert good not in str(raised.value)


def test_a_truncated_adapter_raises(tmp_path):
    path = Path(pelt_folder(tmp_path)) / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"adapters\.safetensors is truncated"):
        TrainedBank([str(tmp_path)]).load(**BERT)


# -- folders of AdapterHub ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["pytorch_adapter.bin", "adapter.safetensors", "model.safetensors"]
)
def test_a_bank_computes_what_the_adapters_of_the_hub_compute(tmp_path, name):
    bank = TrainedBank([hub_folder(tmp_path, name=name)]).load(**HUB)
    state = hub_tensors()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for block in range(2):
        prefix = f"bert.encoder.layer.{block}.output.adapters.7.adapter_"
        down = [state[f"{prefix}down.0.{kind}"] for kind in ("weight", "bias")]
        up = [state[f"{prefix}up.{kind}"] for kind in ("weight", "bias")]
        expected = F.linear(F.relu(F.linear(x, *down)), *up)
        torch.testing.assert_close(apply_adapter(bank, block, 0, x), expected)


def test_names_of_old_versions_of_the_hub_load(tmp_path):
    old = {
        k.replace(".adapters.", ".layer_text_task_adapters."): t for k, t in hub_tensors().items()
    }
    folder = Path(hub_folder(tmp_path / "old", tensors=old))
    settings = {"LN_after": False, "MH_Adapter": False, "Output_Adapter": True}
    settings = {**settings, "non_linearity": "relu", "invertible_adapter": None}
    (folder / "adapter_config.json").write_text(json.dumps({"config": settings}))
    new = TrainedBank([hub_folder(tmp_path / "new")])
    assert TrainedBank([str(folder)]).digest(**HUB) == new.digest(**HUB)


def test_a_bank_combines_both_kinds_of_folders(tmp_path):
    folders = [pelt_folder(tmp_path / "ours"), hub_folder(tmp_path / "hub", width=32, bottleneck=4)]
    both = TrainedBank(folders).load(**BERT)
    for adapter, folder in enumerate(folders):
        alone = TrainedBank([folder]).load(**BERT)
        assert torch.equal(both.A[:, adapter], alone.A[:, 0])
        assert torch.equal(both.B[:, adapter], alone.B[:, 0])
    assert both.size == 2
    swapped = TrainedBank(folders[::-1])
    assert swapped.digest(**BERT) != both.digest


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("mh_adapter", True),
        ("output_adapter", False),
        ("non_linearity", "swish"),
        ("cross_adapter", True),
        ("is_parallel", True),
        ("original_ln_before", False),
        ("original_ln_after", False),
        ("residual_before_ln", "post_add"),
        ("ln_before", True),
        ("ln_after", True),
        ("phm_layer", True),
        ("use_gating", True),
        ("scaling", 4.0),
        ("inv_adapter", "nice"),
    ],
)
def test_another_kind_of_adapter_of_the_hub_raises_with_its_folder(tmp_path, setting, value):
    folder = hub_folder(tmp_path, config={setting: value})
    with pytest.raises(ValueError, match=f"{setting}={value!r}, expected") as raised:
        TrainedBank([folder]).load(**HUB)
    assert folder in str(raised.value)
    assert "ungated, relu, after the feed-forward layers" in str(raised.value)


def without(part: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in hub_tensors().items() if part not in key}


SPOILED = {
    "a norm": (
        {**hub_tensors(), NORM: torch.ones(4)},
        "adapter_norm_after.weight', expected only adapter_down and adapter_up",
    ),
    "two stacks": (
        {f"{s}.{k}": t for s in ("encoder", "decoder") for k, t in hub_tensors().items()},
        "two adapters in block 0",
    ),
    "a missing block": (without(".layer.0."), "in the blocks 1, expected 0 to 1"),
    "nothing": ({}, "in the blocks none, expected 0 to 1"),
    "a missing bias": (without("1.output.adapters.7.adapter_up.bias"), "up_bias of block 1 is mis"),
    "another shape": (
        {**hub_tensors(), UP: torch.ones(2, 4)},
        r"up of block 1 is \(2, 4\), expected \(4, 2\)",
    ),
    "NaN": ({**hub_tensors(), UP: torch.full((4, 2), torch.nan)}, "up of block 1 contains NaN"),
}


@pytest.mark.parametrize(("tensors", "message"), SPOILED.values(), ids=SPOILED.keys())
def test_tensors_of_another_adapter_raise_with_the_folder(tmp_path, tensors, message):
    folder = hub_folder(tmp_path, tensors=tensors)
    with pytest.raises(ValueError, match=message) as raised:
        TrainedBank([folder]).load(**HUB)
    assert folder in str(raised.value)


class Harmful:
    """Runs code when it is unpickled without ``weights_only``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


def test_a_pickle_with_code_raises_and_does_not_run(tmp_path):
    folder = Path(hub_folder(tmp_path))
    torch.save({"a": Harmful()}, folder / "pytorch_adapter.bin")
    with pytest.raises(ValueError, match=r"_adapter\.bin is truncated or contains more than"):
        TrainedBank([str(folder)]).load(**HUB)
    assert not Path("harm").exists()
    torch.save([torch.ones(2)], folder / "pytorch_adapter.bin")
    with pytest.raises(ValueError, match="contains a list, expected tensors by name"):
        TrainedBank([str(folder)]).load(**HUB)


@pytest.mark.parametrize("name", ["pytorch_adapter.bin", "adapter.safetensors"])
@pytest.mark.parametrize("keep", [0, 10, -200])
def test_truncated_weights_of_the_hub_raise(tmp_path, name, keep):
    path = Path(hub_folder(tmp_path, name=name)) / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{name} is truncated"):
        TrainedBank([str(tmp_path)]).load(**HUB)


FOREIGN = ["{", "[]", "{}", '{"config": null}', '{"config": "pfeiffer"}', "[" * 100_000]


@pytest.mark.parametrize("text", FOREIGN, ids=lambda text: text[:20])
def test_a_foreign_configuration_raises(tmp_path, text):
    (Path(hub_folder(tmp_path)) / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"adapter_config\.json is not the configuration"):
        TrainedBank([str(tmp_path)]).load(**HUB)


def test_a_configuration_must_name_the_sites_of_the_adapter(tmp_path):
    path = Path(hub_folder(tmp_path)) / "adapter_config.json"
    path.write_text('{"config": {"ln_after": false}}')
    with pytest.raises(ValueError, match="output_adapter=None, expected True; mh_adapter=None"):
        TrainedBank([str(tmp_path)]).load(**HUB)


def test_a_folder_without_an_adapter_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere has no trained adapter: expected"):
        TrainedBank([str(tmp_path / "nowhere")]).load(**HUB)
    folder = hub_folder(tmp_path, name="")
    with pytest.raises(FileNotFoundError, match=r"no weights: expected one of adapter\.safeten"):
        TrainedBank([folder]).load(**HUB)


def test_weights_that_are_no_floats_raise(tmp_path):
    whole = {key: tensor.to(torch.int32) for key, tensor in hub_tensors().items()}
    with pytest.raises(
        ValueError, match=r"down of block 0 has the dtype torch\.int32, expected fl"
    ):
        TrainedBank([hub_folder(tmp_path, tensors=whole)]).load(**HUB)


def test_a_damaged_folder_of_save_adapters_raises(tmp_path):
    path = Path(pelt_folder(tmp_path)) / "adapters.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"adapters\.safetensors is damaged"):
        TrainedBank([str(tmp_path)]).load(**BERT)


def test_a_plan_that_cannot_be_read_names_its_file(tmp_path):
    path = Path(pelt_folder(tmp_path)) / "adapters.safetensors"
    config, tensors = read_adapters(path)
    config["plan"]["init_args"]["groups"] = "all"
    write_adapters(tmp_path, tensors, plan=config["plan"], backbone=config["backbone"])
    with pytest.raises(ValueError, match=r"the plan in .*adapters\.safetensors .*groups='all'"):
        TrainedBank([str(tmp_path)]).load(**BERT)
