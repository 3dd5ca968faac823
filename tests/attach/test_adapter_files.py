"""Adapters as files: what comes back, what is refused, and what a full disk leaves behind."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel
from zoo import build, inputs, output

from lightning_pelt import (
    IA3,
    Adapter,
    BitFit,
    FullFineTuning,
    Gate,
    Group,
    HeadOnly,
    LoRA,
    Plan,
    Prefix,
    UniPELT,
    attach,
    load_adapters,
    merge,
    save_adapters,
)
from lightning_pelt.attach import find_attachment
from lightning_pelt.utils import adapter_format
from lightning_pelt.utils.adapter_format import read_adapters

TENSORS, CONFIG = "adapters.safetensors", "adapter_config.json"
SMALL = UniPELT(methods=[Adapter(bottleneck=4), Prefix(length=3, mlp=16), LoRA(r=2)])


def trained(name: str, plan: Plan, seed: int = 5) -> PreTrainedModel:
    """An attached model whose own weights are far from where they began."""
    model = build(name)
    attachment = attach(model, plan)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for group in attachment.parameter_groups().values():
            for parameter in group:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


@torch.no_grad()
def run(model: PreTrainedModel, name: str) -> Tensor:
    return output(model, inputs(name))


PLANS = {
    "unipelt": SMALL,
    "ungated": Plan.uniform(Adapter(bottleneck=4), Prefix(length=3, mlp=16), LoRA(r=2)),
    "biases": Plan.uniform(BitFit(), IA3(gate=Gate())),
    "groups": Plan([Group([LoRA(r=2)], blocks=[0]), Group([LoRA(r=4, name="b")], blocks=[1])]),
    "head": HeadOnly(),
    "everything": FullFineTuning(),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_a_round_trip_is_exact(tmp_path, plan):
    model = trained("bert", plan)
    assert save_adapters(model, tmp_path / "a" / "b") == tmp_path / "a" / "b"
    fresh = build("bert")
    expected = run(model, "bert")
    assert not torch.equal(run(fresh, "bert"), expected)
    attachment = load_adapters(fresh, tmp_path / "a" / "b")
    assert attachment.plan == plan
    assert torch.equal(run(fresh, "bert"), expected)


def test_the_files_say_what_they_are(tmp_path):
    model = trained("bert", SMALL)
    save_adapters(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {TENSORS, CONFIG}
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["plan"] == SMALL.to_config()
    assert config["backbone"]["model_type"] == "bert"
    assert config["backbone"]["blocks"] == {"encoder": 2}
    assert load_file(tmp_path / TENSORS).keys() == find_attachment(model).owned  # type: ignore[union-attr]


def test_a_module_around_the_model_will_do(tmp_path):
    model = trained("bert", SMALL)
    save_adapters(nn.ModuleDict({"inner": model}), tmp_path)
    around = nn.ModuleDict({"inner": build("bert")})
    load_adapters(around, tmp_path)
    assert torch.equal(run(around["inner"], "bert"), run(model, "bert"))  # type: ignore[arg-type]


def test_loading_again_replaces_the_weights(tmp_path):
    first, second = trained("bert", SMALL), trained("bert", SMALL, seed=6)
    save_adapters(first, tmp_path)
    attachment = load_adapters(second, tmp_path)
    assert attachment is find_attachment(second)
    assert torch.equal(run(second, "bert"), run(first, "bert"))


# -- folding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "t5", "llama"])
@pytest.mark.parametrize("plan", [PLANS["unipelt"], PLANS["ungated"]], ids=["gated", "ungated"])
def test_folding_keeps_the_outputs_and_sheds_the_mlp(tmp_path, name, plan):
    model = trained(name, plan)
    attachment = find_attachment(model)
    assert attachment is not None
    for number, gate in enumerate(attachment.gates.values()):
        gate.set_open((0.25, 1.0, 0.5)[number % 3])  # as a schedule left it
    expected = run(model, name)
    save_adapters(model, tmp_path / "whole")
    save_adapters(model, tmp_path / "folded", fold=True)
    assert torch.equal(run(model, name), expected)  # saving changes nothing

    fresh = build(name)
    folded = load_adapters(fresh, tmp_path / "folded")
    assert torch.equal(run(fresh, name), expected)
    openness = {gate.name: gate.open for gate in attachment.gates.values()}
    assert {gate.name: gate.open for gate in folded.gates.values()} == openness

    tensors = load_file(tmp_path / "folded" / TENSORS).values()
    deployed = sum(count.deployed + count.gates for count in attachment.counts.values())
    openness_values = len(attachment.gates)
    assert sum(t.numel() for t in tensors) == deployed + attachment.head_size + openness_values
    small = (tmp_path / "folded" / TENSORS).stat().st_size
    assert small < (tmp_path / "whole" / TENSORS).stat().st_size


def test_folding_what_has_no_mlp_is_saving(tmp_path):
    model = trained("bert", Plan.uniform(LoRA(r=2), Prefix(length=3, mlp=None)))
    save_adapters(model, tmp_path / "whole")
    save_adapters(model, tmp_path / "folded", fold=True)
    whole, folded = (load_file(tmp_path / n / TENSORS) for n in ("whole", "folded"))
    assert whole.keys() == folded.keys()
    assert all(torch.equal(whole[name], folded[name]) for name in whole)


# -- what is refused --------------------------------------------------------------------------


def wider() -> PreTrainedModel:
    config = BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_labels=3
    )
    return BertForSequenceClassification(config)


def test_a_wrong_backbone_says_what_differs(tmp_path):
    save_adapters(trained("bert", Plan.uniform(LoRA(r=2))), tmp_path)
    other = wider()
    with pytest.raises(ValueError, match=r"width 32 there, 64 here") as raised:
        load_adapters(other, tmp_path)
    assert "blocks {'encoder': 2} there, {'encoder': 3} here" in str(raised.value)
    assert find_attachment(other) is None  # as it was before
    assert not any("pelt" in name for name, _ in other.named_modules())

    with pytest.raises(ValueError, match="model_type 'bert' there, 'electra' here"):
        load_adapters(build("electra"), tmp_path)


def test_other_labels_are_refused(tmp_path):
    save_adapters(trained("bert", Plan.uniform(LoRA(r=2))), tmp_path)
    other = build("bert")
    other.config.id2label = {0: "no", 1: "yes", 2: "perhaps"}
    with pytest.raises(ValueError, match="'perhaps'"):
        load_adapters(other, tmp_path)


def test_another_plan_on_the_model_is_refused(tmp_path):
    save_adapters(trained("bert", Plan.uniform(LoRA(r=2))), tmp_path)
    model = trained("bert", SMALL)
    before = run(model, "bert")
    with pytest.raises(ValueError, match="another plan"):
        load_adapters(model, tmp_path)
    assert torch.equal(run(model, "bert"), before)


def test_a_missing_folder_and_an_unattached_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"no {TENSORS} in .*nowhere"):
        load_adapters(build("bert"), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nothing is attached to BertForSequenceClassification"):
        save_adapters(build("bert"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    save_adapters(trained("bert", SMALL), tmp_path)
    whole = (tmp_path / TENSORS).read_bytes()
    (tmp_path / TENSORS).write_bytes(whole[:keep])
    model = build("bert")
    with pytest.raises(ValueError, match=rf"{TENSORS} is truncated"):
        load_adapters(model, tmp_path)
    assert find_attachment(model) is None


def test_a_foreign_file_is_refused(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / TENSORS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not one of save_adapters"):
        load_adapters(build("bert"), tmp_path)


def tampered(folder: Path, change: Any) -> None:
    config, tensors = read_adapters(folder / TENSORS)
    change(config, tensors)
    header = {"lightning_pelt": json.dumps(config)}
    save_file(tensors, folder / TENSORS, metadata=header)


def drop(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors.pop("classifier.weight")


def extend(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["extra"] = torch.ones(2)


def replace_plan(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    config["plan"]["class_path"] = "os.path.Join"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"lacks 1 tensor: classifier\.weight"),
        (extend, "does not have: 1 tensor: extra"),
        (replace_plan, r"unknown class of a configuration 'os\.path\.Join'"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, change, message):
    save_adapters(trained("bert", SMALL), tmp_path)
    tampered(tmp_path, change)
    model = build("bert")
    with pytest.raises(ValueError, match=message):
        load_adapters(model, tmp_path)
    assert find_attachment(model) is None


# -- a full disk ------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [TENSORS, CONFIG])
def test_a_full_disk_leaves_the_files_that_were_there(tmp_path, monkeypatch, victim):
    save_adapters(trained("bert", SMALL), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def torn(write: Any) -> Any:
        def writer(*args: Any, **options: Any) -> None:
            write(*args, **options)
            path = next(p for p in args if isinstance(p, Path))
            path.write_bytes(path.read_bytes()[:50])
            raise OSError(errno.ENOSPC, "No space left on device")

        return writer

    if victim == TENSORS:
        monkeypatch.setattr(adapter_format, "save_file", torn(save_file))
    else:
        monkeypatch.setattr(Path, "write_text", torn(Path.write_text))
    with pytest.raises(OSError, match="No space left"):
        save_adapters(trained("bert", SMALL, seed=6), tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert after[CONFIG] == before[CONFIG]
    if victim == TENSORS:
        assert after == before
    monkeypatch.undo()
    load_adapters(build("bert"), tmp_path)


# -- merging ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("bert", LoRA(r=2)),
        ("bert", LoRA(r=4, alpha=8, rslora=True, sites=("query", "value", "ffn.in", "ffn.out"))),
        ("gpt2", LoRA(r=2)),  # query and value are parts of one transposed weight
        ("gpt2", LoRA(r=3, rslora=True, sites=("key", "output", "ffn.in"), dropout=0.5)),
        ("gpt_neox", LoRA(r=2)),  # heads interleaved
        ("phi3", LoRA(r=2, sites=("query", "key", "value"))),
        ("t5", LoRA(r=2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_merged_equals_unmerged(name, lora):
    model = trained(name, Plan.uniform(lora))
    names = set(build(name).state_dict())
    before = run(model, name)
    assert not torch.allclose(run(build(name), name), before, atol=1e-3)
    merged = merge(model)
    assert merged is model
    assert find_attachment(model) is None
    assert set(model.state_dict()) == names
    torch.testing.assert_close(run(model, name), before, rtol=1e-5, atol=1e-5)


def test_merging_follows_the_formula():
    model = trained("bert", Plan.uniform(LoRA(r=2, alpha=6, sites=("query",))))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prefix = "bert.encoder.layer.1.attention.self.query"
    (a,) = (t for n, t in state.items() if ".layer.1." in n and n.endswith("lora_down.A"))
    b = state[f"{prefix}.pelt.lora_up.B_query"]
    weight = model.get_submodule(prefix).weight.detach().clone()
    merge(model)
    after = model.get_submodule(prefix).weight
    torch.testing.assert_close(after, weight + 6 / 2 * b @ a)


def test_what_cannot_be_merged_is_refused_and_left_alone():
    gated = trained("bert", Plan.uniform(LoRA(r=2, gate=Gate())))
    before = run(gated, "bert")
    with pytest.raises(ValueError, match=r"'lora' is gated: its contribution differs from input"):
        merge(gated)
    assert torch.equal(run(gated, "bert"), before)
    with pytest.raises(ValueError, match="Adapter cannot be merged"):
        merge(trained("bert", Plan.uniform(LoRA(r=2), Adapter(bottleneck=4))))
    with pytest.raises(ValueError, match="nothing is attached"):
        merge(build("bert"))


def test_a_quantised_weight_is_not_merged_into():
    model = trained("bert", Plan.uniform(LoRA(r=2)))
    value: Any = model.get_submodule("bert.encoder.layer.1.attention.self.value")
    value.weight = nn.Parameter(value.weight.detach().to(torch.int8), requires_grad=False)
    first: Any = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    before = first.weight.detach().clone()
    with pytest.raises(ValueError, match=r"layer\.1\.attention\.self\.value is quantised"):
        merge(model)
    assert torch.equal(first.weight, before)  # nothing was merged half-way
    assert find_attachment(model) is not None
