"""New tokens in a run: a resized backbone from a folder, its checkpoint, and a backbone without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from callbacks.tiny import trainer
from small import Sentences, gpt2
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_pelt import CausalLM, LoRA, NewTokens, PELTModule, Plan
from lightning_pelt.methods.new_tokens import TokenRows


def resized(folder: Path) -> str:
    """A saved GPT-2 with two new words, which the tokenizer knows."""
    old = gpt2(folder / "old")
    tokenizer = AutoTokenizer.from_pretrained(old)
    model = AutoModelForCausalLM.from_pretrained(old)
    tokenizer.add_tokens(["<ask>", "<answer>"])
    model.resize_token_embeddings(len(tokenizer))
    for saved in (model, tokenizer):
        saved.save_pretrained(folder / "new")
    return str(folder / "new")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the checkpoint was trained on another backbone")
def test_rows_are_trained_saved_resumed_and_loaded(tmp_path: Path) -> None:
    backbone = resized(tmp_path)
    data = Sentences(backbone, target="none")
    ids = data.tokenizer.convert_tokens_to_ids(["<ask>", "<answer>"])
    module = PELTModule(backbone, Plan.uniform(LoRA(r=2), NewTokens(ids)), CausalLM(), lr=0.1)
    run = trainer(tmp_path, limit_train_batches=2)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]
    assert {len(t) for n, t in saved.items() if "new_tokens" in n} == {2}
    assert not any("wte.weight" in name for name in saved)

    again = PELTModule.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    assert again.model is not None and module.model is not None
    words = data.tokenizer("<ask> a b <answer>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found, expected = again.model.eval()(words).logits, module.model.eval()(words).logits
    assert torch.equal(found, expected)
    assert again.attachment is not None
    (rows,) = (m for m in again.attachment.submodules["new_tokens"] if isinstance(m, TokenRows))
    base = again.model.get_input_embeddings().weight[ids]
    assert (base != rows.W).any(1).all(), "both have moved"

    more = PELTModule(backbone, Plan.uniform(LoRA(r=2), NewTokens(ids)), CausalLM(), lr=0.1)
    resumed = trainer(tmp_path, max_epochs=2, limit_train_batches=2)
    resumed.fit(more, data, ckpt_path=str(tmp_path / "one.ckpt"), weights_only=True)
    assert resumed.global_step == 4

    with pytest.raises(ValueError, match=r"needs a row for each token.*give that as backbone"):
        PELTModule.load_from_checkpoint(tmp_path / "one.ckpt", backbone=str(tmp_path / "old"))
