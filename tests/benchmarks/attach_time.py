"""How long ``attach`` takes: the first time in a process, and again on an equal structure.

    python tests/benchmarks/attach_time.py
    python tests/benchmarks/attach_time.py --models llama-7b --rounds 5

BERT-base has random weights on the CPU; the Llama of 7B is on the meta device. Times are
milliseconds of the processor, and of the clock.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter, process_time

import torch
from tabulate import tabulate
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from lightning_pelt import LoRA, Plan, UniPELT, attach
from lightning_pelt.anatomy.discovery import KNOWN


def llama() -> PreTrainedModel:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig())


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert-base": lambda: BertForSequenceClassification(BertConfig()),
    "llama-7b": llama,
}
PLANS: dict[str, Callable[[], Plan]] = {"UniPELT": UniPELT, "LoRA": lambda: Plan.uniform(LoRA())}


def times(model: PreTrainedModel, plan: Plan, rounds: int) -> list[tuple[float, float]]:
    """Processor and clock time of each round in milliseconds."""
    taken = []
    for _ in range(rounds):
        cpu, wall = process_time(), perf_counter()
        attachment = attach(model, plan)
        taken.append((1e3 * (process_time() - cpu), 1e3 * (perf_counter() - wall)))
        attachment.detach()
    return taken


def main(arguments: list[str] | None = None) -> list[list]:
    """Print the table; returns its lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    lines = []
    for name in options.models:
        for plan, make in PLANS.items():
            KNOWN.forget()  # as in a new process
            first, *again = times(MODELS[name](), make(), options.rounds)
            cpu, wall = (median(column) for column in zip(*again, strict=True))
            lines.append([name, plan, first[0], cpu, first[1], wall])
    headers = ["model", "plan", "first, cpu", "again, cpu", "first, wall", "again, wall"]
    print(tabulate(lines, headers, floatfmt=".0f", tablefmt="github"))
    return lines


if __name__ == "__main__":
    main()
