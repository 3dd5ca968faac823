"""The fingerprint of a base: which bases count as the same, in adapter files and in checkpoints."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from lightning_pelt import FullFineTuning, LoRA, Plan, attach, detach, load_adapters, save_adapters
from lightning_pelt.attach.fingerprint import TENSORS, differences, fingerprint
from lightning_pelt.testing import awaken, draw
from lightning_pelt.utils.adapter_format import read_adapters, write_adapters

PLAN = Plan.uniform(LoRA(r=2))


def bert(seed: int = 0, **options: Any) -> PreTrainedModel:
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    config = BertConfig(**{**sizes, "num_attention_heads": 4, **options})
    return draw(BertForSequenceClassification(config), seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = bert()
    awaken(attach(model, PLAN))
    return save_adapters(model, tmp_path / "adapters")


@pytest.fixture
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


# Another base.


def test_other_weights_are_a_warning_and_with_strict_an_error(folder):
    other = bert(seed=1)
    with pytest.warns(UserWarning, match=r"adapters\.safetensors: it was trained on another backb"):
        load_adapters(other, folder)
    detach(other)
    with pytest.raises(ValueError, match="sampled tensors of the base have other values, such as"):
        load_adapters(other, folder, strict=True)
    assert not any("pelt" in name for name, _ in other.named_modules())


def test_one_other_tensor_is_found():
    """A base that differs in one tensor only, as after training its biases."""
    model = bert()
    parameters = dict(model.named_parameters())
    known = fingerprint(model.config, parameters)
    for name, parameter in parameters.items():
        changed = parameters | {name: parameter * 1.001 + 1e-4}
        (found,) = differences(known, fingerprint(model.config, changed))
        count = f"1 of {len(parameters)} sampled tensors"
        assert found == f"{count} of the base have other values, such as {name}"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("hidden_act", "relu", "hidden_act 'gelu' there, 'relu' here"),
        ("num_attention_heads", 2, "num_attention_heads 4 there, 2 here"),
        ("layer_norm_eps", 0.1, "layer_norm_eps 1e-12 there, 0.1 here"),
    ],
)
def test_another_computation_with_equal_weights(folder, option, value, message):
    other = bert(**{option: value})
    with pytest.warns(UserWarning, match=f"another backbone .*{message}"):
        load_adapters(other, folder)
    with pytest.raises(ValueError, match=message):
        load_adapters(bert(**{option: value}), folder, strict=True)


def test_a_state_dict_knows_its_base(tmp_path):
    """As in a Lightning checkpoint: inside a module, through a file that is read without pickle."""
    module = nn.ModuleDict({"encoder": bert()})
    attach(module, PLAN)
    torch.save(module.state_dict(), tmp_path / "state.ckpt")
    state = torch.load(tmp_path / "state.ckpt", weights_only=True)
    other = nn.ModuleDict({"encoder": bert(seed=1)})
    attach(other, PLAN)
    with pytest.warns(UserWarning, match="the checkpoint was trained on another backbone"):
        other.load_state_dict(state)
    same = nn.ModuleDict({"encoder": bert()})
    attach(same, PLAN)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        same.load_state_dict(state)
        same.load_state_dict(dict(state))  # without the metadata nothing is known


# The same base.


@pytest.mark.usefixtures("no_warning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_same_base_in_another_dtype(tmp_path, folder, dtype):
    low = bert().to(dtype)
    load_adapters(low, folder, strict=True)
    load_adapters(bert(), save_adapters(low, tmp_path / "low"), strict=True)


@pytest.mark.usefixtures("no_warning")
def test_settings_of_training_and_of_the_head_do_not_count(folder):
    other = bert(
        hidden_dropout_prob=0.5, use_cache=False, problem_type="single_label_classification"
    )
    load_adapters(other, folder, strict=True)


@pytest.mark.usefixtures("no_warning")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        lambda model: nn.Sequential(nn.ModuleDict({"module": model})),
        lambda model: (attach(model, PLAN).detach(), model)[1],  # attached once before
    ],
    ids=["compiled", "nested", "detached"],
)
@pytest.mark.slow
def test_the_same_base_in_a_wrapper(folder, wrap):
    load_adapters(wrap(bert()), folder, strict=True)


@pytest.mark.usefixtures("no_warning")
def test_training_does_not_change_the_fingerprint(tmp_path, folder):
    """Norms that the plan trains are no part of the base."""
    model = bert()
    attachment = attach(model, Plan.uniform(LoRA(r=2), norms=True))
    assert not attachment.norms & attachment.fingerprint["weights"].keys()
    with torch.no_grad():
        for group in attachment.parameter_groups().values():
            for parameter in group:
                parameter.add_(1.0)
    load_adapters(bert(), save_adapters(model, tmp_path / "norms"), strict=True)


@pytest.mark.usefixtures("no_warning")
def test_full_fine_tuning_replaces_the_base(tmp_path):
    model = bert()
    attach(model, FullFineTuning())
    load_adapters(bert(seed=1), save_adapters(model, tmp_path), strict=True)


class Packed(torch.Tensor):
    """A quantised tensor of another library."""


class Int8(nn.Linear):
    """Keeps whole numbers and computes with floats."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features)
        whole = (linear.weight.detach() * 100).to(torch.int8)
        self.weight, self.bias = nn.Parameter(whole, requires_grad=False), linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.float() / 100, self.bias)


def packed(linear: nn.Linear) -> nn.Linear:
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Packed), requires_grad=False)
    return linear


@pytest.mark.usefixtures("no_warning")
@pytest.mark.parametrize("convert", [Int8, packed])
def test_quantised_tensors_are_not_compared(folder, convert):
    other = bert()
    for layer in other.bert.encoder.layer:
        layer.attention.self.query = convert(layer.attention.self.query)
    attachment = load_adapters(other, folder, strict=True)
    sampled = attachment.fingerprint["weights"]
    assert not any(name.endswith("self.query.weight") for name in sampled)
    assert "bert.embeddings.word_embeddings.weight" in sampled


# What is kept.


def test_it_is_small_and_plain(folder):
    tensors = {f"layer.{i}.weight": torch.randn(50, 50) for i in range(300)}
    found = fingerprint(BertConfig(), tensors)
    assert len(found["weights"]) == TENSORS
    assert json.loads(json.dumps(found)) == found
    assert len(json.dumps(found)) < 8_000
    assert differences(found, found) == []


def test_a_model_without_values_has_no_samples():
    """As under deferred initialization."""
    with torch.device("meta"):
        found = fingerprint(BertConfig(), {"weight": torch.empty(4, 4)})
    assert found["weights"] == {}


def test_what_only_one_of_them_has_is_not_compared():
    """Other releases of transformers have other options."""
    ours = fingerprint(BertConfig(), {"a": torch.ones(4), "b": torch.ones(4)})
    theirs = fingerprint(BertConfig(), {"a": torch.ones(4), "c": torch.zeros(4)})
    theirs["config"]["new_option"] = 7
    del ours["config"]["hidden_act"]
    assert differences(theirs, ours) == []
    assert differences({}, ours) == []


@pytest.mark.parametrize(
    "change",
    [
        {"weights": []},
        {"weights": {"bert.pooler.dense.weight": 7}},
        {"weights": {"bert.pooler.dense.weight": "float32 zz"}},
        {"weights": {"bert.pooler.dense.weight": "uint8 00000000 00000000 00000000 00000000"}},
        {"weights": {"bert.pooler.dense.weight": "float32 00000000"}},
        {"vocabulary": 7},
        {"vocabulary": {"bert.embeddings.word_embeddings.weight": "float32 00000000"}},
        {"vocabulary": {"bert.embeddings.word_embeddings.weight": [7, "float32 zz"]}},
        {"token_parameters": "32"},
        {"config": "gelu"},
        {"name": 7},
    ],
)
def test_what_is_none_is_refused(folder, change):
    config, tensors = read_adapters(folder / "adapters.safetensors")
    write_adapters(folder, tensors, plan=config["plan"], backbone=config["backbone"] | change)
    with pytest.raises(ValueError, match=r"adapters\.safetensors"):
        load_adapters(bert(), folder)


# A vocabulary that is resized after the plan was attached.


def gpt2(seed: int = 0) -> PreTrainedModel:
    """Its vocabulary projection is tied to the embedding."""
    config = GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=16)
    return draw(GPT2LMHeadModel(config), seed)


def bart(seed: int = 0) -> PreTrainedModel:
    """It has a bias with a column per token."""
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 100}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = BartConfig(**sizes, **heads, encoder_ffn_dim=64, decoder_ffn_dim=64)
    return draw(BartForConditionalGeneration(config), seed)


FAMILIES = {"bert": bert, "gpt2": gpt2, "bart": bart}


def resized(model: PreTrainedModel, rows: int) -> PreTrainedModel:
    model.resize_token_embeddings(rows)
    return model


def trained(model: PreTrainedModel, rows: int) -> PreTrainedModel:
    """With a plan, then resized."""
    awaken(attach(model, PLAN))
    return resized(model, rows)


@torch.no_grad()
@pytest.mark.parametrize("rows", [97, 103, 150])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_with_new_tokens_fit_the_resized_base_alone(tmp_path, family, rows):
    build = FAMILIES[family]
    source = trained(build(), rows)
    folder = save_adapters(source, tmp_path)
    target = resized(build(), rows)
    load_adapters(target, folder, strict=True)
    tokens = torch.tensor([[3, 50, rows - 2, rows - 1]])
    assert torch.equal(target(input_ids=tokens).logits, source(input_ids=tokens).logits)
    with pytest.raises(ValueError, match="sampled tensors of the base have other values"):
        load_adapters(resized(build(seed=1), rows), folder, strict=True)
    with pytest.raises(ValueError, match=rf"vocab_size {rows} there, 100 here \(see resize_token"):
        load_adapters(build(), folder, strict=True)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_state_dict_with_new_tokens_fits_the_resized_base_alone(before):
    state = trained(bert(), 103).state_dict()

    def load(model: PreTrainedModel) -> None:
        if before:
            attach(resized(model, 103), PLAN)
        else:
            trained(model, 103)
        model.load_state_dict(state)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*another backbone")
        load(bert())
    with pytest.warns(UserWarning, match="another backbone.*sampled tensors of the base have othe"):
        load(bert(seed=1))


@pytest.mark.parametrize("rows", [97, 103, 150])
def test_old_rows_are_compared_at_any_number_of_new_ones(rows):
    """An embedding that differs in its old rows only."""
    source = bert()
    attachment = attach(source, PLAN)
    recorded = attachment.fingerprint
    resized(source, rows)
    known = attachment.fingerprint
    assert known["config"]["vocab_size"] == rows
    assert known["parameters"] == attachment.anatomy.parameters + 32 * (rows - 100)
    assert json.loads(json.dumps(known)) == known
    name = "bert.embeddings.word_embeddings.weight"
    base = {n: t for n, t in source.named_parameters() if n in attachment.base}
    assert differences(known, fingerprint(source.config, base)) == []
    with torch.no_grad():
        base[name].add_(0.01)
    (found,) = differences(known, fingerprint(source.config, base))
    assert found.endswith(f"of the base have other values, such as {name}")
    resized(source, 100)
    assert attachment.fingerprint == recorded


@pytest.mark.parametrize("change", [0.0, 0.1])
def test_detach_after_new_tokens_warns_of_changed_old_rows_alone(change):
    model = trained(bert(), 103)
    with torch.no_grad():
        model.get_input_embeddings().weight[:100] += change
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        detach(model)
    changed = [str(each.message) for each in seen if "have changed" in str(each.message)]
    assert len(changed) == (1 if change else 0)
    assert all("1 tensors of the base" in each and "word_embeddings" in each for each in changed)


def test_another_size_than_by_tokens_is_another_backbone(tmp_path):
    folder = save_adapters(trained(bert(), 103), tmp_path)
    with pytest.raises(ValueError, match="another backbone or head: parameters"):
        load_adapters(bert(intermediate_size=48), folder)


@pytest.mark.usefixtures("no_warning")
def test_files_without_rows_of_the_vocabulary_load(folder):
    """Those of older versions."""
    config, tensors = read_adapters(folder / "adapters.safetensors")
    old = {
        n: v for n, v in config["backbone"].items() if n not in ("vocabulary", "token_parameters")
    }
    assert len(old) == len(config["backbone"]) - 2
    write_adapters(folder, tensors, plan=config["plan"], backbone=old)
    load_adapters(bert(), folder, strict=True)
