"""A tiny BERT whose tokenizer of whole words has a mask token, and texts that it can learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

CIRCLE = WORDS[:6]  # "one" to "six", which follow each other


def mask_bert(folder: Path, **options: Any) -> str:
    """A BERT of two blocks with a head for its vocabulary, and [CLS] and [SEP] around a text."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    ids = {word: i for i, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        unk_token="[UNK]",
        model_max_length=32,
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def circles(path: Path, *, count: int = 64, seed: int = 0) -> str:
    """A file of texts such as "five six one two", of 4 to 9 words."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        start, length = int(draw.integers(6)), int(draw.integers(4, 10))
        rows.append({"text": " ".join(CIRCLE[(start + i) % 6] for i in range(length))})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)
