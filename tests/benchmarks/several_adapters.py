"""What several adapters on one model cost: the switch, and a batch whose rows have different ones.

    python -m tests.benchmarks.several_adapters

prints the time of a switch between two UniPELT adapters of a BERT-base size model, and the time of
a forward of 64 rows with 64 adapters in relation to one adapter, on MiniLM.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel
from transformers import BertForSequenceClassification as Bert

from lightning_pelt import Adapter, Gate, LoRA, Plan, UniPELT, resolve_backbone
from lightning_pelt.attach.several import Adapters
from lightning_pelt.testing import awaken

ROWS, TOKENS = 64, 32
PLANS = {
    "LoRA r=8": Plan.uniform(LoRA()),
    "gated LoRA r=8": Plan.uniform(LoRA(gate=Gate())),
    "Adapter m=24": Plan.uniform(Adapter()),
    "LoRA and Adapter": Plan.uniform(LoRA(), Adapter()),
}


def seconds(call: Callable[[], object]) -> float:
    """CPU time on one thread, which other processes of the machine do not change much."""
    start = time.process_time()
    call()
    return time.process_time() - start


def switch_times(count: int = 500) -> list[float]:
    """Seconds of each switch, in ascending order."""
    adapters = Adapters(Bert(BertConfig()).eval())
    for name in ("ann", "bob"):
        adapters.add(name, UniPELT())
    return sorted(
        seconds(lambda name=("ann", "bob")[i % 2]: adapters.activate(name)) for i in range(count)
    )


def mixed(model: PreTrainedModel, plan: Plan, repeats: int) -> Iterator[tuple[str, float]]:
    """Median seconds of a forward: with one adapter, with one per row, and stacking included."""
    adapters = Adapters(model)
    for number in range(ROWS):
        awaken(adapters.add(f"a{number}", plan, seed=number), seed=number)
    batch = {
        "input_ids": torch.randint(1000, 20000, (ROWS, TOKENS)),
        "attention_mask": torch.ones(ROWS, TOKENS, dtype=torch.long),
    }
    names = [f"a{number}" for number in range(ROWS)]

    def one() -> None:
        with adapters.using("a0"):
            model(**batch)

    def rows() -> None:
        with adapters.rows(names):
            model(**batch)

    def again() -> None:
        with adapters.using("a0"), torch.no_grad():
            next(adapters["a0"].all_submodules[0].parameters()).add_(0.0)
        rows()

    calls = {"one": one, "rows": rows, "stacked again": again}
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for turn in range(repeats + 2):  # in turn, so that a slow moment of the machine hits all
            for name, call in calls.items():
                taken = seconds(call)
                if turn > 1:
                    times[name].append(taken)
    for name in names:
        adapters.delete(name)
    yield from ((name, statistics.median(taken)) for name, taken in times.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    times = switch_times()
    half, late = times[len(times) // 2], times[int(0.95 * len(times))]
    print(f"switch, UniPELT on BERT-base: median {1e3 * half:.2f} ms, 95% {1e3 * late:.2f} ms")
    path = resolve_backbone("all-MiniLM-L6-v2")
    for name, plan in PLANS.items():
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=4).eval()
        found = dict(mixed(model, plan, arguments.repeats))
        print(
            f"{name}: one {1e3 * found['one']:.0f} ms, {ROWS} adapters in {ROWS} rows "
            f"{found['rows'] / found['one']:.2f}x, stacked again "
            f"{found['stacked again'] / found['one']:.2f}x"
        )


if __name__ == "__main__":
    main()
