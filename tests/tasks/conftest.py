"""Tiny random backbones, saved to a folder so that they come in through ``Task.load``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from lightning_pelt.utils.backbone import load_tokenizer

WORDS = ["yes", "no", "maybe", "one", "two", "three", "1.5", "2.0", "red", "green", "blue"]


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; ids 0, 1, 2 are padding, end and unknown."""
    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A headless BERT with the vocabulary of MiniLM, as sentence encoders are published."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = load_tokenizer("sentence-transformers/all-MiniLM-L6-v2")
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory, word_tokenizer: Any) -> str:
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(1)
    config = T5Config(
        vocab_size=len(word_tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        initializer_factor=5.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory, word_tokenizer: Any) -> str:
    """A GPT-2 whose configuration knows no padding, as the published one."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=len(word_tokenizer),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=1,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def encode(word_tokenizer: Any) -> Callable[..., dict[str, torch.Tensor]]:
    """A right-padded batch of texts, with labels from ``targets`` where they are given."""

    def encode(texts: list[str], targets: list[str] | None = None) -> dict[str, torch.Tensor]:
        options = {"padding": True, "return_tensors": "pt", "return_token_type_ids": False}
        batch = dict(word_tokenizer(texts, **options))
        if targets is not None:
            answer = word_tokenizer(targets, **options)
            batch["labels"] = answer["input_ids"].masked_fill(answer["attention_mask"] == 0, -100)
        return batch

    return encode
