"""A tiny decoder that is pretrained on the docstrings of Python's standard library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from chat import END, llama, says, tokenizer
from transformers import AutoModelForCausalLM

from lightning_pelt.data.stdlib_docs import collect

WIDTH, WINDOW, ROWS = 128, 64, 32
CHAPTERS = ("concurrency", "files", "mathematics")
INTENTS = ("age_limit", "exchange_rate", "lost_or_stolen_card", "top_up_limits")
BANKING77 = Path(__file__).parents[2] / "shared" / "data" / "banking77"


def pretrain(folder: Path, *, steps: int, seed: int = 0, **config: Any) -> str:
    """Save a Llama of two blocks after ``steps`` batches of 32 windows of 64 tokens.

    Its tokenizer is a byte-level BPE of 1,024 tokens, trained on the same texts.
    """
    texts = [text for text, _ in collect()]
    words = tokenizer(texts, size=1024)
    blocks = {"intermediate_size": 2 * WIDTH, "num_attention_heads": 4, **config}
    llama(folder, words, hidden_size=WIDTH, **blocks)
    ids = [i for text in texts for i in words(f"{text}{END}")["input_ids"]]
    windows = torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(1, steps))
    for _ in range(steps):
        batch = windows[torch.randint(len(windows), (ROWS,), generator=draw)]
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return str(folder)


def chapters() -> dict[str, list[Any]]:
    """Conversations that ask for the chapter of a docstring; every fifth is for tests."""
    rows = [(text, chapter) for text, chapter in collect() if chapter in CHAPTERS]
    chats = [asked(text, chapter) for text, chapter in rows if len(text) < 200]
    return {
        "test": chats[::5],
        "train": [each for number, each in enumerate(chats) if number % 5],
    }


def intents(keep: Callable[[str], bool] = INTENTS.__contains__) -> dict[str, list[Any]]:
    """Conversations that ask for the intent of a question to a bank, of banking77."""
    splits = {}
    for split in ("train", "test"):
        lines = (BANKING77 / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if keep(row["label_name"])]
        splits[split] = [asked(r["text"], r["label_name"].replace("_", " ")) for r in rows]
    return splits


def asked(question: str, answer: str) -> list[dict[str, Any]]:
    return [says("user", question), says("assistant", answer)]
