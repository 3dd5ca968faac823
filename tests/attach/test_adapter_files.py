"""Adapters as files: what comes back, what is refused, and what a full disk leaves behind."""

from __future__ import annotations

import errno
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedModel
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
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
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
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    load_adapters(build("bert"), tmp_path)


# -- two files that fit each other -----------------------------------------------------------------


def test_both_files_may_be_read_by_others(tmp_path):
    """safetensors creates files that only their owner may read."""
    before = os.umask(0o027)
    try:
        save_adapters(trained("bert", HeadOnly()), tmp_path)
    finally:
        os.umask(before)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {
        TENSORS: 0o640,
        CONFIG: 0o640,
    }


@pytest.mark.slow
def test_several_threads_save_into_one_folder(tmp_path):
    """The last one wins, and the two files come from the same one, even while others write."""
    plans = [Plan.uniform(LoRA(r=2)), Plan.uniform(IA3()), HeadOnly()]
    models = [trained("bert", plan) for plan in plans]
    save_adapters(models[0], tmp_path)
    with ThreadPoolExecutor(len(models)) as pool:
        jobs = [pool.submit(save_adapters, model, tmp_path) for model in models for _ in range(8)]
        for _ in range(8):
            config, _ = read_adapters(tmp_path / TENSORS)  # compares it with the other file
            assert config["plan"] in [plan.to_config() for plan in plans]
        for job in jobs:
            job.result()
    assert {path.name for path in tmp_path.iterdir()} == {TENSORS, CONFIG}
    assert load_adapters(build("bert"), tmp_path).plan in plans


# -- the backbone's name ---------------------------------------------------------------------------


def test_the_files_name_the_backbone_and_its_tokenizer(tmp_path):
    build("bert", task=False).save_pretrained(tmp_path / "base")
    load = BertForSequenceClassification.from_pretrained
    model = load(tmp_path / "base")
    attach(model, HeadOnly())
    saved = save_adapters(model, tmp_path / "a")
    backbone = json.loads((saved / CONFIG).read_text())["backbone"]
    assert backbone["name"] == backbone["tokenizer"] == str(tmp_path / "base")
    with pytest.raises(ValueError, match=r"another backbone or head .*base'"):
        load_adapters(build("electra"), saved)


def test_the_tokenizer_of_the_module_is_named(tmp_path):
    module = nn.ModuleDict({"inner": trained("bert", HeadOnly())})
    module.tokenizer = SimpleNamespace(name_or_path="some/tokenizer")  # type: ignore[assignment]
    save_adapters(module, tmp_path)
    backbone = json.loads((tmp_path / CONFIG).read_text())["backbone"]
    assert (backbone["name"], backbone["tokenizer"]) == (None, "some/tokenizer")


def test_the_model_inside_is_named_by_its_path(tmp_path: Path) -> None:
    def towers() -> nn.ModuleDict:
        return nn.ModuleDict({"text": build("bert"), "other": build("bert").requires_grad_(False)})

    module = towers()
    module["text"] = trained("bert", SMALL)
    save_adapters(module, tmp_path)
    again = towers()
    with pytest.raises(ValueError, match="2 Hugging Face models"):
        load_adapters(again, tmp_path)
    assert load_adapters(again, tmp_path, path="text").model is again["text"]
    assert torch.equal(run(again["text"], "bert"), run(module["text"], "bert"))
    assert find_attachment(again["other"]) is None


class Twice(BertModel):
    """Needs an input that nobody can guess."""

    def forward(self, input_ids: Tensor, factor: dict[str, float], **others: Any) -> Any:
        return super().forward(input_ids=input_ids * int(factor["of ids"]), **others)


def test_a_model_of_other_inputs_gets_examples(tmp_path: Path) -> None:
    config = build("bert").config
    batch: dict[str, Any] = {"input_ids": torch.arange(3, 9)[None], "factor": {"of ids": 2.0}}
    torch.manual_seed(0)
    model = Twice(config).eval()
    attach(model, Plan.uniform(LoRA()), example_inputs=batch)
    save_adapters(model, tmp_path)
    torch.manual_seed(0)
    again = Twice(config).eval()
    with pytest.raises(ValueError, match="example_inputs"):
        load_adapters(again, tmp_path)
    load_adapters(again, tmp_path, example_inputs=batch)
    assert torch.equal(again(**batch)[0], model(**batch)[0])
