"""A base in a folder, with a tokenizer, and models that were tuned on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from lightning_pelt import LoRA, Plan, UniPELT, attach
from lightning_pelt.testing import awaken
from lightning_pelt.testing.models import draw

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat dog sat ran on a mat fast".split()  # noqa: SIM905
PLAN = Plan.uniform(LoRA(r=2))
LABELS = ["animal", "place", "speed"]
SMALL = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}


def save_base(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """An encoder without a head, and a tokenizer of a few words."""
    draw(BertModel(BertConfig(**(SMALL | changes))), seed).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path, words: list[str] | None = None) -> BertTokenizer:
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words or WORDS)})
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_decoder(folder: Path) -> Path:
    """A decoder that generates, with the same tokenizer and no pad token in its configuration."""
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=24, n_embd=16, n_layer=2, n_head=2, eos_token_id=3
    )
    draw(GPT2LMHeadModel(config)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def classifier(base: Path | str, plan: Any = PLAN, **options: Any) -> Any:
    """A tuned classifier whose head and submodules have left their initial values."""
    options = {"id2label": dict(enumerate(LABELS)), **options}
    model = AutoModelForSequenceClassification.from_pretrained(str(base), **options)
    return tuned(model, plan)


def generator(base: Path | str, plan: Any = PLAN) -> Any:
    return tuned(AutoModelForCausalLM.from_pretrained(str(base)), plan)


def gated(base: Path | str) -> Any:
    """A classifier with gates, of which the last batch is recorded."""
    model = classifier(base, UniPELT())
    logits(model)
    return model


def tuned(model: Any, plan: Any = PLAN) -> Any:
    attachment = attach(model, plan)
    awaken(attachment, std=0.5)
    draw_ = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in attachment.head:
                parameter.copy_(torch.randn(parameter.shape, generator=draw_))
    return model.eval()


def logits(model: Any, count: int = 6) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 5 + count).view(1, -1)).logits
