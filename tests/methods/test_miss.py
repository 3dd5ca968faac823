"""MiSS against PEFT, and against weights that are changed by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import WIDTH, build, inputs, output

from lightning_pelt import Gate, MiSS, Plan, attach, merge
from lightning_pelt.attach import Attachment
from lightning_pelt.methods.miss import SharedShards
from lightning_pelt.testing import MethodConformance, awaken, tiny_bert


class TestMiSS(MethodConformance):
    compiled = ("gpt2",)
    method = MiSS(r=4)


class TestGatedMiSS(MethodConformance):
    compiled = ("bert",)
    method = MiSS(r=4, gate=Gate())


def miss(model: nn.Module, method: MiSS) -> Attachment:
    attachment = attach(model, Plan.uniform(method))
    awaken(attachment)
    return attachment


def matrices(attachment: Attachment) -> dict[str, Tensor]:
    """D (r, d_out) by host and site, ``bert.encoder.layer.0.attention.self.query/query``."""
    owners = {module: path for path, module in attachment.model.named_modules()}
    found = {}
    for module in attachment.submodules["miss"]:
        assert isinstance(module, SharedShards)
        host = owners[module].partition(".pelt.")[0]
        found[f"{host}/{module.site.label}"] = module.D.detach()
    return found


@pytest.mark.parametrize("r", [4, 5, WIDTH])
@pytest.mark.parametrize(
    ("name", "targets", "sites"),
    [
        ("bert", ["query", "value"], ("query", "value")),
        ("bert", ["key", "output.dense"], ("key", "output", "ffn.out")),
        ("llama", ["gate_proj", "up_proj", "down_proj"], ("ffn.in", "ffn.out")),
        ("t5", ["q", "v"], ("query", "value")),
    ],
)
def test_equals_peft(name: str, targets: list[str], sites: tuple[str, ...], r: int) -> None:
    peft: Any = pytest.importorskip("peft")
    model, batch = build(name), inputs(name)
    config = peft.MissConfig(r=r, target_modules=targets)
    theirs = peft.get_peft_model(copy.deepcopy(model), config).eval()
    attachment = miss(model, MiSS(r=r, sites=sites))
    layers: dict[str, Any] = dict(theirs.base_model.model.named_modules())
    adapted = {path for path, module in layers.items() if hasattr(module, "miss_block")}
    found = matrices(attachment)
    assert {key.partition("/")[0] for key in found} == adapted
    for key, D in found.items():
        layers[key.partition("/")[0]].miss_block["default"].data.copy_(D)
    with torch.no_grad():
        ours, other = output(model, batch), output(theirs, batch)
        size = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-6 * size)
        merged = output(merge(model), batch)
        torch.testing.assert_close(merged, other, rtol=0, atol=1e-5 * size)


def test_adds_the_sum_of_the_shards_times_its_matrix() -> None:
    model = tiny_bert()
    value = model.bert.encoder.layer[0].attention.self.value
    plain = copy.deepcopy(value)
    D = matrices(miss(model, MiSS(r=5)))["bert.encoder.layer.0.attention.self.value/value"]
    x = torch.randn(2, 3, 32)
    expected = plain(x)
    for number in range(32):  # channel 0, 5, 10, ... use the first row of D
        expected = expected + x[..., number : number + 1] * D[number % 5]
    torch.testing.assert_close(value(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3"])
def test_fused_projection_changes_the_rows_of_its_site(name: str) -> None:
    model, batch = build(name), inputs(name)
    changed = copy.deepcopy(model)
    attachment = miss(model, MiSS(r=4))
    for module in attachment.submodules["miss"]:
        assert isinstance(module, SharedShards)
        linear: Any = changed.get_submodule(module.site.path)
        weight = linear.weight.data.T if type(linear).__name__ == "Conv1D" else linear.weight.data
        shards = WIDTH // 4
        weight[torch.tensor(module.site.channels)] += module.D.detach().T.repeat(1, shards)
    with torch.no_grad():
        torch.testing.assert_close(output(model, batch), output(changed, batch), rtol=0, atol=2e-5)


def test_dropout_acts_in_training_only() -> None:
    model = tiny_bert()
    value = model.bert.encoder.layer[0].attention.self.value
    miss(model, MiSS(r=4, dropout=0.5))
    x = torch.randn(2, 3, 32)
    assert torch.equal(value.eval()(x), value(x))
    assert not torch.equal(value.train()(x), value(x))


def test_starts_as_the_base_and_has_half_the_parameters_of_lora() -> None:
    model = tiny_bert()
    batch = {"input_ids": torch.arange(3, 11)[None]}
    with torch.no_grad():
        before = model(**batch).logits
        attachment = attach(model, Plan.uniform(MiSS(r=8)))
        assert torch.equal(model(**batch).logits, before)
    assert attachment.counts["miss"].trained == 4 * 8 * 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "rank r=0: it must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0: it must lie in \[0, 1\)"),
    ],
)
def test_bad_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MiSS(**options)


def test_a_rank_beyond_the_input_is_refused() -> None:
    model = tiny_bert()
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=r"r=33.*query has 32 channels: use r=32 or less"):
        attach(model, Plan.uniform(MiSS(r=33)))
    assert list(model.state_dict()) == names
