"""The cost of inference with submodules, as ratios against the bare base.

python tests/benchmarks/inference_cost.py
python tests/benchmarks/inference_cost.py --compiled true --bases MiniLM --plans UniPELT

Compiled models are those of ``torch.compile`` with frozen weights: what depends on weights alone,
such as the MLP of a prefix, is computed once, by the compiler. Compiling takes about a minute each.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
import torch._inductor.config as inductor
from jsonargparse import ArgumentParser
from tabulate import tabulate
from torch import Tensor
from transformers import AutoModel, BertConfig, BertModel, PreTrainedModel

from lightning_pelt import (
    Gate,
    LoRA,
    Plan,
    Prefix,
    UniPELT,
    attach,
    merge,
    resolve_backbone,
)
from lightning_pelt.testing import awaken

BARE = "bare"
TOLERANCE = 1e-5  # of the outputs of compiled models
BASES: dict[str, Callable[[], PreTrainedModel]] = {
    "MiniLM": lambda: AutoModel.from_pretrained(
        resolve_backbone("all-MiniLM-L6-v2"), use_safetensors=True
    ),
    "BERT-base size": lambda: BertModel(BertConfig()),
}
PLANS: dict[str, Callable[[], Plan]] = {
    "merged LoRA": lambda: Plan.uniform(LoRA()),
    "folded prefix": lambda: Plan.uniform(Prefix().folded()),
    "prefix with its MLP": lambda: Plan.uniform(Prefix()),
    "LoRA": lambda: Plan.uniform(LoRA()),
    "gated LoRA": lambda: Plan.uniform(LoRA(gate=Gate())),
    "gated LoRA and prefix": lambda: UniPELT([LoRA(), Prefix()]),
    "UniPELT": lambda: UniPELT(),
}
MERGED = ("merged LoRA",)


class Cost(NamedTuple):
    """Median time of a forward in seconds, and its ratio to the bare base in the same round."""

    seconds: float
    ratio: float


def build(base: str, plan: str) -> PreTrainedModel:
    """The base with a plan whose submodules have an effect, in eval mode."""
    torch.manual_seed(0)
    model = BASES[base]()
    if plan != BARE:
        awaken(attach(model, PLANS[plan]()), std=0.02)
    return (merge(model) if plan in MERGED else model).eval()


def sentence(model: PreTrainedModel, tokens: int, *, rows: int = 1) -> dict[str, Tensor]:
    """``rows`` sentences of ``tokens`` tokens without padding, as a tokenizer returns them."""
    ids = torch.randint(1000, model.config.vocab_size, (rows, tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def measure(
    models: Mapping[str, Callable[..., Any]],
    inputs: dict[str, Tensor],
    *,
    rounds: int,
    repeats: int,
) -> dict[str, Cost]:
    """Time every model in every round, in turn, so that the load of the machine is shared.

    A round takes the fastest of ``repeats`` forwards of each model.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    with torch.inference_mode():
        for model in models.values():
            model(**inputs)
        for number in range(rounds):
            start = number % len(names)
            best = dict.fromkeys(names, float("inf"))
            for _ in range(repeats):
                for name in names[start:] + names[:start]:
                    best[name] = min(best[name], once(models[name], inputs))
            for name in names:
                times[name].append(best[name])
    base = times[BARE]
    return {
        name: Cost(median(own), median(mine / bare for mine, bare in zip(own, base, strict=True)))
        for name, own in times.items()
    }


def compiled(
    models: dict[str, PreTrainedModel], inputs: dict[str, Tensor]
) -> dict[str, Callable[..., Any]]:
    """The models compiled for ``inputs``.

    Raises:
        RuntimeError: a compiled model computes something else.
    """
    inductor.freezing = True
    found: dict[str, Callable[..., Any]] = {}
    for name, model in models.items():
        torch.compiler.reset()
        found[name] = torch.compile(model, fullgraph=True, dynamic=False)
        with torch.inference_mode():
            error = (found[name](**inputs)[0] - model(**inputs)[0]).abs().max()
        if error > TOLERANCE:
            raise RuntimeError(f"{name} differs by {error:.1e} when it is compiled")
    return found


def once(model: Callable[..., Any], inputs: dict[str, Tensor]) -> float:
    """Seconds of one forward."""
    started = time.perf_counter()
    model(**inputs)
    return time.perf_counter() - started


def main(args: Sequence[str] | None = None) -> dict[tuple[str, int], dict[str, Cost]]:
    """Measure, print a table for every base and length, and return the figures."""
    options = ArgumentParser(description="Cost of inference against the bare base, on a CPU.")
    options.add_argument("--bases", nargs="+", default=list(BASES), choices=list(BASES))
    options.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    options.add_argument("--tokens", nargs="+", type=int, default=[16, 64])
    options.add_argument("--rows", type=int, default=1)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--repeats", type=int, default=5, help="forwards of a model in a round")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--compiled", type=bool, default=False, help="compare compiled models")
    given = options.parse_args(args)
    torch.set_num_threads(given.threads)
    figures = {}
    for base in given.bases:
        models = {plan: build(base, plan) for plan in (BARE, *given.plans)}
        for tokens in given.tokens:
            inputs = sentence(models[BARE], tokens, rows=given.rows)
            timed = compiled(models, inputs) if given.compiled else models
            gc.disable()
            costs = measure(timed, inputs, rounds=given.rounds, repeats=given.repeats)
            gc.enable()
            figures[base, tokens] = costs
            how = ", compiled" if given.compiled else ""
            print(f"{base}, {given.rows} x {tokens} tokens, {given.threads} thread(s){how}")
            rows = [(plan, f"{1e3 * c.seconds:.2f}", f"{c.ratio:.3f}") for plan, c in costs.items()]
            print(tabulate(rows, headers=("plan", "ms", "ratio"), disable_numparse=True), "\n")
    return figures


if __name__ == "__main__":
    main()
