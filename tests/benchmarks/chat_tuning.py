"""Instruction tuning of a tiny pretrained decoder: how many answers are right, by plan.

    PYTHONPATH=tests python tests/benchmarks/chat_tuning.py --steps 2000 --epochs 6

The decoder is pretrained on the docstrings of the standard library (``tests/pretrained.py``); a
base of 0 steps has random weights. The conversations ask for the intent of a question to a bank
(banking77, 77 intents) or, with ``--chats chapters``, for the chapter of a docstring.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chat import saved
from lightning.pytorch import Trainer, seed_everything
from pretrained import chapters, intents, pretrain
from tabulate import tabulate

from lightning_pelt import CausalLM, ChatText, LoRA, PELTModule, Plan, UniPELT

LINEAR = ("query", "key", "value", "output", "ffn.in", "ffn.out")
PLANS = {
    "LoRA": Plan.uniform(LoRA(r=16, alpha=32, sites=LINEAR)),
    "LoRA, packed": Plan.uniform(LoRA(r=16, alpha=32, sites=LINEAR)),
    "UniPELT": UniPELT(),
}
HEAD = ["plan", "exact match before", "after", "perplexity before", "after", "seconds of fit"]


def tune(base: str, folder: Path, name: str, places: dict[str, str], epochs: int) -> list[Any]:
    """A row of the table: scores on the test rows before and after a fit."""
    seed_everything(0, verbose=False)
    packing = name.endswith("packed")
    options = {"chat_template": "zephyr", "max_length": 128, "dev_share": 0, "eval_batch_size": 64}
    data = ChatText(base, **places, **options, packing=packing, batch_size=4 if packing else 16)
    task = CausalLM(("exact_match",), max_new_tokens=24)
    module = PELTModule(base, PLANS[name], task, lr=2e-3, warmup=0.1)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    (before,) = trainer.test(module, data, verbose=False)
    start = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - start
    (after,) = trainer.test(module, data, verbose=False)
    names = ("test/exact_match", "test/perplexity")
    return [name, *(scores[n] for n in names for scores in (before, after)), seconds]


def main(arguments: Sequence[str] | None = None) -> list[list[Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="of pretraining")
    parser.add_argument("--epochs", type=int, default=6, help="of tuning")
    parser.add_argument("--chats", choices=("intents", "chapters"), default="intents")
    parser.add_argument("--rows", type=int, help="use only this many conversations of each split")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        base = pretrain(folder / "base", steps=given.steps)
        print(f"pretrained for {given.steps} steps in {time.perf_counter() - start:.0f} s")
        chats = chapters() if given.chats == "chapters" else intents(bool)
        places = {s: saved(folder / f"{s}.jsonl", r[: given.rows]) for s, r in chats.items()}
        rows = [tune(base, folder, plan, places, given.epochs) for plan in PLANS]
    print(tabulate(rows, HEAD, floatfmt=".3f"))
    return rows


if __name__ == "__main__":
    main()
