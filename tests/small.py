"""Tiny backbones on disk, with a tokenizer of whole words, and a data set for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from lightning_pelt.data import TextDataModule

WORDS = ["one", "two", "three", "four", "five", "six", "red", "green", "blue", "yes", "no"]
LABELS = ["low", "middle", "high"]

disable_progress_bars()


def bert(folder: Path, **options: Any) -> str:
    """A headless BERT of two blocks, 16 wide, with dropout 0.1, unless ``options`` set others."""
    tokenizer = _tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=options.pop("num_hidden_layers", 2),
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.3,
        **options,
    )
    return _save(BertModel, config, tokenizer, folder)


def gpt2(folder: Path, **options: Any) -> str:
    """A GPT-2 of two blocks, 16 wide, without a padding token in its configuration."""
    tokenizer = _tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=1,
        **options,
    )
    return _save(GPT2LMHeadModel, config, tokenizer, folder)


def t5(folder: Path, **options: Any) -> str:
    """A T5 of two and two blocks, 16 wide."""
    tokenizer = _tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        initializer_factor=2.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        **options,
    )
    return _save(T5ForConditionalGeneration, config, tokenizer, folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    ids = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=32,
    )


def _save(
    kind: type[PreTrainedModel], config: Any, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Sentences(TextDataModule):
    """Random sentences of 1 to 12 words; the target is their length.

    Args:
        backbone: folder of the tokenizer.
        target: ``label`` is a class, ``value`` a number, ``text`` the label's name as tokens, and
            ``none`` leaves the targets out, as for causal language models.
    """

    def __init__(
        self, backbone: str, *, rows_of_train: int = 20, target: str = "label", **common: Any
    ) -> None:
        super().__init__(backbone, **{"batch_size": 4, "max_length": 32, **common})
        self.rows_of_train = rows_of_train
        self.target = target

    @property
    def labels(self) -> list[str] | None:
        return LABELS if self.target == "label" else None

    def read(self) -> dict[str, Dataset]:
        draw = np.random.default_rng(0)
        sizes = {"train": self.rows_of_train, "dev": 8, "test": 8}
        return {split: self._rows(size, draw) for split, size in sizes.items()}

    def _rows(self, size: int, draw: np.random.Generator) -> Dataset:
        lengths = draw.integers(1, 13, size)
        return Dataset.from_dict(
            {
                "text": [" ".join(draw.choice(WORDS, length)) for length in lengths],
                "number": [int(length) for length in lengths],
            }
        )

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        tokens = dict(self.tokenizer(rows["text"], return_token_type_ids=False))
        if split == "predict" or self.target == "none":
            return tokens
        if self.target == "value":
            return {**tokens, "labels": [float(number) for number in rows["number"]]}
        classes = [(number - 1) // 4 for number in rows["number"]]
        if self.target == "text":
            names = [WORDS[index] for index in classes]
            return {**tokens, "labels": self.tokenizer(names)["input_ids"]}
        return {**tokens, "labels": classes}
