"""LoRA of word embeddings in PEFT's format, both ways; rows of new tokens are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exchange.peft_oracle import attached, peft, run, trained_by_peft
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from zoo import build

from lightning_pelt import LoRA, NewTokens, Plan
from lightning_pelt.exchange.peft import load_peft, save_peft

TENSORS = "adapter_model.safetensors"
TARGETS = {"bert": "word_embeddings", "gpt2": "wte", "t5": "embed_tokens", "gemma2": "embed_tokens"}


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    assert_close(one, other, atol=2e-6 * max(1.0, float(other.abs().max())), rtol=0)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_embeddings_compute_the_same_in_peft_and_come_back(tmp_path: Path, name: str) -> None:
    plan = Plan.uniform(LoRA(r=3, alpha=5.0, sites=["query", "embedding"]))
    attachment = attached(name, plan)
    here = run(attachment.model, name)
    folder = save_peft(attachment.model, tmp_path)
    assert any("lora_embedding_A" in key for key in load_file(folder / TENSORS))
    close(
        run(peft.PeftModel.from_pretrained(build(name), folder).eval().get_base_model(), name), here
    )
    again = load_peft(build(name), folder)
    assert again.plan == plan
    assert torch.equal(run(again.model.eval(), name), here)
    save_file(load_file(folder / TENSORS), folder / TENSORS)  # without the plan in the header
    close(run(load_peft(build(name), folder).model.eval(), name), here)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_embeddings_that_peft_has_trained(tmp_path: Path, name: str) -> None:
    """PEFT saves the table below the LoRA too."""
    config = peft.LoraConfig(r=4, target_modules=[TARGETS[name]])
    there = trained_by_peft(name, config, tmp_path)
    saved = any("base_layer" in key for key in load_file(tmp_path / TENSORS))
    assert saved == (name == "gemma2"), "which knows the table by its name"
    close(run(load_peft(build(name), tmp_path).model.eval(), name), there)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_another_table_below_the_lora_is_refused(tmp_path: Path) -> None:
    trained_by_peft("gemma2", peft.LoraConfig(r=4, target_modules=["embed_tokens"]), tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    name = next(key for key in tensors if "base_layer" in key)
    save_file({**tensors, name: tensors[name] + 1}, tmp_path / TENSORS)
    with pytest.raises(ValueError, match="the embeddings below its LoRA, with other values"):
        load_peft(build("gemma2"), tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_projection_onto_the_words(tmp_path: Path, name: str) -> None:
    config = peft.LoraConfig(r=4, target_modules=["lm_head"])
    there = trained_by_peft(name, config, tmp_path / "theirs")
    attachment = load_peft(build(name), tmp_path / "theirs")
    close(run(attachment.model.eval(), name), there)
    again = load_peft(build(name), save_peft(attachment.model, tmp_path / "ours"))
    close(run(again.model.eval(), name), there)


def test_rows_of_new_tokens_are_refused(tmp_path: Path) -> None:
    attachment = attached("bert", Plan.uniform(NewTokens([5])))
    with pytest.raises(ValueError, match=r"NewTokens cannot be written in PEFT's format: rows of"):
        save_peft(attachment.model, tmp_path)
