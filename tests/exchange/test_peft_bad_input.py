"""Folders of PEFT that cannot be loaded: each is refused by name, and the model is as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exchange.peft_oracle import attached, run
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel
from zoo import build

from lightning_pelt import IA3, LoRA, MiSS, Plan, attach, save_adapters
from lightning_pelt.attach import find_attachment
from lightning_pelt.exchange.peft import load_peft, save_peft

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def folder(tmp_path):
    """A good folder."""
    return save_peft(attached("bert", Plan.uniform(LoRA(r=2))).model, tmp_path / "good")


def edit(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))


def change(folder: Path, *, drop: str = "", **tensors: torch.Tensor) -> None:
    given = {n: t for n, t in load_file(folder / TENSORS).items() if n != drop}
    save_file(given | {f"{QUERY}.{n}": t for n, t in tensors.items()}, folder / TENSORS)


def refused(folder: Path, message: str, model: nn.Module | None = None) -> None:
    """Loading raises, and leaves the model without a trace."""
    model = build("bert") if model is None else model
    names, values = [n for n, _ in model.named_modules()], {**model.state_dict()}
    with pytest.raises(ValueError, match=message):
        load_peft(model, folder)
    assert find_attachment(model) is None
    assert [n for n, _ in model.named_modules()] == names
    assert all(torch.equal(tensor, values[n]) for n, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


FIELDS = {
    "use_dora": (True, "use_dora=True: DoRA.*merge_and_unload"),
    "lora_bias": (True, "lora_bias adds a bias"),
    "trainable_token_indices": ([1, 2], "rows of the embeddings"),
    "target_parameters": (["experts.up"], "parameters that belong to no linear layer"),
    "alora_invocation_tokens": ([3], "activated LoRA"),
    "layer_replication": ([[0, 1]], "layer replication"),
    "kasa_config": ({"beta": 1.0}, "KaSA"),
    "use_qalora": (True, "QA-LoRA"),
    "bias": ("lora_only", "bias='lora_only': it trains biases"),
    "init_lora_weights": ("pissa_niter_4", "path_initial_model_for_weight_conversion"),
    "peft_type": ("VERA", "the peft_type VERA: LORA, IA3, MISS, PROMPT_TUNING can"),
    "r": ("8", "r='8', expected int"),
    "lora_alpha": (None, "lora_alpha=None, expected int or float"),
    "rank_pattern": ({"query": "4"}, r"rank_pattern\['query'\]='4'"),
    "target_modules": (["query", "key", "value"], "lacks the tensors of .*key"),
    "exclude_modules": (["value"], "value.*no targets of its configuration"),
    "modules_to_save": (["pooler", "classifier"], "lacks bert.pooler"),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize(("field", "value", "message"), [(n, *v) for n, v in FIELDS.items()])
def test_fields_that_cannot_hold(folder, field, value, message):
    edit(folder, **{field: value})
    refused(folder, message)


def test_a_damaged_regular_expression_is_named(folder):
    edit(folder, target_modules="(query")
    refused(folder, "unterminated subpattern|missing \\)")


def test_fields_of_a_newer_peft_give_a_warning(folder):
    edit(folder, use_tomorrow=True, peft_version="0.99.0")
    with pytest.warns(UserWarning, match=r"use_tomorrow=True.*PEFT 0\.99\.0 wrote it") as found:
        load_peft(build("bert"), folder)
    assert len(found) == 1


@pytest.mark.slow
def test_every_field_of_the_installed_peft_is_known(tmp_path, recwarn):
    peft: Any = pytest.importorskip("peft")
    for config, kind in (
        (peft.LoraConfig(target_modules=["query"]), LoRA(r=8, alpha=8, sites=["query"])),
        (peft.IA3Config(), IA3()),
        (peft.MissConfig(r=8, target_modules=["query"]), MiSS(r=8, sites=["query"])),
    ):
        folder = tmp_path / str(config.peft_type.value)
        save_peft(attached("bert", Plan.uniform(kind)).model, folder)
        ours = json.loads((folder / CONFIG).read_text())
        config.save_pretrained(folder)
        theirs = json.loads((folder / CONFIG).read_text())
        assert ours.keys() <= theirs.keys()
        (folder / CONFIG).write_text(json.dumps({**theirs, **ours}))
        load_peft(build("bert"), folder)
    assert not [w for w in recwarn if "does not have" in str(w.message)]


TENSOR_FAULTS = {
    "rank": ({"lora_A.weight": torch.ones(3, 32)}, r"size mismatch: .*lora_A is \(3, 32\)"),
    "width": ({"lora_B.weight": torch.ones(8, 2)}, r"lora_B is \(8, 2\).*\(32, 2\) is expected"),
    "nan": ({"lora_A.weight": torch.full((2, 32), torch.nan)}, "contains NaN"),
    "dtype": ({"lora_A.weight": torch.ones(2, 32, dtype=torch.int8)}, "expected a matrix"),
    "shard": ({"lora_A.weight": torch.ones(64)}, "expected a matrix of floats"),
    "embedding": ({"lora_embedding_A": torch.ones(3, 32)}, r"size mismatch: .*lora_A is \(3, 32\)"),
    "magnitude": ({"lora_magnitude_vector": torch.ones(32)}, "another method"),
    "stranger": ({"bias": torch.ones(32)}, "in none of its modules_to_save"),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize(("tensors", "message"), TENSOR_FAULTS.values(), ids=TENSOR_FAULTS.keys())
def test_tensors_that_do_not_fit(folder, tensors, message):
    change(folder, **tensors)
    refused(folder, message)


def test_missing_tensors_and_modules(folder):
    change(folder, drop=f"{QUERY}.lora_B.weight")
    refused(folder, "lacks .*query.lora_B.weight")
    change(folder, drop=f"{QUERY}.lora_A.weight")
    refused(folder, "lacks the tensors of .*query")
    change(folder, drop="base_model.model.classifier.bias")
    (folder / TENSORS).unlink()
    with pytest.raises(FileNotFoundError, match=r"neither adapter_model\.safetensors nor"):
        load_peft(build("bert"), folder)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_files(folder, keep):
    whole = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(whole[:keep])
    refused(folder, "truncated or not a safetensors file")
    (folder / TENSORS).rename(folder / "adapter_model.bin")
    refused(folder, "truncated or not a file of tensors")


def test_a_pickled_object_is_not_loaded(folder):
    (folder / TENSORS).unlink()
    torch.save({"a": print}, folder / "adapter_model.bin")
    refused(folder, "not a file of tensors")


def test_a_damaged_configuration(folder):
    (folder / CONFIG).write_text("{")
    refused(folder, "not valid JSON")


# -- other models ----------------------------------------------------------------------------------


def test_a_model_of_other_widths_or_of_another_class(folder):
    config = BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_labels=3
    )
    refused(folder, "size mismatch", BertForSequenceClassification(config))
    config.num_hidden_layers = 3
    refused(folder, r"lacks the tensors of .*layer\.2", BertForSequenceClassification(config))
    refused(folder, r"does not have; it has encoder\.layer\.0", BertModel(config))
    refused(folder, "which the model does not have", build("gpt2"))


def test_other_labels(folder):
    config = build("bert").config
    config.num_labels = 5
    refused(folder, "size mismatch: classifier", BertForSequenceClassification(config))


def test_another_plan_is_refused_and_stays(folder):
    attachment = attached("bert", Plan.uniform(LoRA(r=3)))
    before = run(attachment.model, "bert")
    with pytest.raises(ValueError, match="another plan"):
        load_peft(attachment.model, folder)
    assert torch.equal(run(attachment.model, "bert"), before)


def test_targets_that_are_no_sites(tmp_path):
    peft: Any = pytest.importorskip("peft")
    model = peft.get_peft_model(build("gpt2"), peft.LoraConfig(target_modules=["wpe"]))
    model.save_pretrained(str(tmp_path))
    refused(
        tmp_path, r"it extends transformer.wpe, where no method.*else than words", build("gpt2")
    )


def test_one_of_two_equal_roles(tmp_path):
    peft: Any = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["gate_proj"])
    peft.get_peft_model(build("llama"), config).save_pretrained(str(tmp_path))
    refused(tmp_path, r"extends .*gate_proj and not .*up_proj: both are 'ffn\.in'", build("llama"))


def test_a_vector_on_the_other_side(tmp_path):
    peft: Any = pytest.importorskip("peft")
    config = peft.IA3Config(target_modules=["key"], feedforward_modules=["key"])
    peft.get_peft_model(build("bert"), config).save_pretrained(str(tmp_path))
    refused(tmp_path, r"scales the input of .*key, and \(IA\)3 scales the output")


def test_a_base_of_another_name(folder):
    edit(folder, base_model_name_or_path="google-bert/bert-base-uncased")
    model = build("bert")
    model.config.name_or_path = model.name_or_path = "someone/else"
    with pytest.raises(ValueError, match="'someone/else' here"):
        load_peft(model, folder, strict=True)
    assert find_attachment(model) is None
    with pytest.warns(UserWarning, match="'google-bert/bert-base-uncased' there"):
        load_peft(model, folder)


def test_a_head_that_the_file_lacks(tmp_path):
    peft: Any = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query"])  # without a task: PEFT saves no head
    peft.get_peft_model(build("bert"), config).save_pretrained(str(tmp_path))
    with pytest.warns(UserWarning, match=r"no tensors of the head \(classifier\.bias"):
        load_peft(build("bert"), tmp_path)


def test_another_format_names_its_loader(tmp_path):
    model = build("bert")
    attach(model, Plan.uniform(LoRA(r=2)))
    save_adapters(model, tmp_path)
    refused(tmp_path, r"adapters of save_adapters.*load_adapters\(model, folder\)")
