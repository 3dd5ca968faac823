"""Tokenizers and tiny decoders for conversations, and conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# The special tokens of the templates in the tests, beside the end of text.
SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<s>", "</s>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|observation|>"),
]
END = "<|endoftext|>"
TEXT = (
    "You are a helpful assistant. What is the capital of France? Paris is the capital of France.",
    "user system assistant tool <think> </think> <tool_call> the weather in Lisbon: 21 degrees",
)


def tokenizer(
    texts: Sequence[str] = TEXT, *, size: int = 400, chat_template: str | None = None, **own: Any
) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on ``texts``, without a padding token."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END, *SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    options = {"eos_token": END, "bos_token": "<s>", "model_max_length": 4096, **own}
    found = PreTrainedTokenizerFast(tokenizer_object=inner, **options)
    found.add_special_tokens({"additional_special_tokens": SPECIAL})
    found.chat_template = chat_template
    return found


def llama(folder: Path, words: PreTrainedTokenizerFast, **options: Any) -> str:
    """A Llama of two blocks, 32 wide, saved with its tokenizer."""
    config = LlamaConfig(
        **{
            "vocab_size": len(words),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
            **options,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def says(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def saved(path: Path, rows: Sequence[Any]) -> str:
    """A JSONL file; a list is the messages of a row."""
    lines = [{"messages": row} if isinstance(row, list) else row for row in rows]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)
