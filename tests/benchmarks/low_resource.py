"""Gated mixtures against single methods with few training rows, on real data.

    python tests/benchmarks/low_resource.py tune ../shared/data --out FOLDER --k 100
    python tests/benchmarks/low_resource.py test ../shared/data --out FOLDER --k 100
    python tests/benchmarks/low_resource.py table --out FOLDER --k 100

Of the shuffled training split, the first K rows train, and the next 500 rows choose. ``tune`` fits
every contestant with the same grid of rates on two seeds, and ``test`` fits each with the rates
that were best on average over tasks and seeds, on five other seeds; its scores are those of the
official dev split (of at most 1,000 rows), which is read then for the first time. ``table``
compares: the interval is that of the mean of paired differences over the seeds (Student's t, 95%).
``levers`` shows what each contestant reached while tuning, by its best rates.

Every fit is a line of ``FOLDER/fits.jsonl``, so that a study goes on where it ended; several
processes may share the folder, each with other ``--tasks``. ``--precision bf16`` takes half of the
time on processors with matrix products in bf16; the folder knows its precision. All fits take the
same number of steps of 16 rows, AdamW with linear warmup and decay, and the last weights. Scores
are accuracy and Spearman correlation (stsb), times 100.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy.stats import t as student
from tabulate import tabulate
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_matthews_corrcoef
from torchmetrics.functional.regression import spearman_corrcoef
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    get_linear_schedule_with_warmup,
)

from lightning_pelt import (
    Adapter,
    Gate,
    Group,
    LoRA,
    Plan,
    Prefix,
    UniPELT,
    attach,
    resolve_backbone,
)
from lightning_pelt.attach import Attachment
from lightning_pelt.training import named_groups

BATCH, CHOOSE, MOST = 16, 500, 1000  # rows of a batch, of the choosing rows, of the test rows
# LoRA learns neither cola nor qnli from 100 rows.
TASKS = ["sst2", "ag_news", "banking77", "huffpost_authors", "stsb", "mrpc"]
RATES = [
    {"lr": lr, "lrs": {"head": head}}
    for lr, head in itertools.product([3e-4, 1e-3, 3e-3], [1e-3, 1e-2])
]
TUNING_SEEDS, SEEDS = [100, 101], [0, 1, 2, 3, 4]


@dataclass(frozen=True)
class Contestant:
    """A plan, and what is done with it in training.

    Args:
        plan: makes it.
        rates: rates by group beside those of the grid.
        before_step: called with the attachment and the share of all steps that is done.
        averaged: predict with the exponential moving average of the weights.
    """

    plan: Callable[[], Plan]
    rates: dict[str, float] = field(default_factory=dict)
    before_step: Callable[[Attachment, float], None] | None = None
    averaged: bool = False


def drop_submodules(attachment: Attachment, done: float, *, share: float = 0.2) -> None:
    """Close each submodule with probability ``share`` for one step, as dropout of whole methods."""
    for gate in attachment.gates.values():
        gate.set_open(float(torch.rand(()) >= share))


def join_late(attachment: Attachment, done: float) -> None:
    """LoRA alone for a third of the steps; then the others open linearly until two thirds."""
    for gate in attachment.gates.values():
        if gate.method != "lora":
            gate.set_open(min(1.0, max(0.0, 3 * done - 1)))


class ScaledLoRA(LoRA):
    """LoRA whose gate multiplies ``alpha / r``, which it replaces in UniPELT."""

    @property
    def scale(self) -> float:
        return self.alpha / self.r


def single(method: Any) -> Contestant:
    return Contestant(partial(Plan.uniform, method))


CONTESTANTS = {
    "lora": single(LoRA()),
    "adapter": single(Adapter()),
    "prefix": single(Prefix()),
    "unipelt": Contestant(UniPELT),
    "unipelt, gates 1e-2": Contestant(UniPELT, rates={"gate": 1e-2}),
    "unipelt, late": Contestant(UniPELT, before_step=join_late),
    "unipelt, dropped": Contestant(UniPELT, before_step=drop_submodules),
    "unipelt, averaged": Contestant(UniPELT, averaged=True),
    "lora, averaged": Contestant(partial(Plan.uniform, LoRA()), averaged=True),
    "unipelt, token gates": Contestant(
        lambda: UniPELT([each(gate=Gate(pool="token")) for each in (Adapter, Prefix, LoRA)])
    ),
    "unipelt, AL": Contestant(lambda: UniPELT([Adapter(), LoRA()])),
    "unipelt, alpha / r": Contestant(
        lambda: UniPELT([each(gate=Gate()) for each in (Adapter, Prefix, ScaledLoRA)])
    ),
    "unipelt, open gates": Contestant(
        lambda: UniPELT([each(gate=Gate(init_bias=2.0)) for each in (Adapter, Prefix, LoRA)])
    ),
    "ungated mixture": Contestant(
        lambda: Plan([Group([Adapter(), Prefix(), LoRA()])]),
    ),
    "ungated AL": Contestant(lambda: Plan([Group([Adapter(), LoRA()])])),
}


class Rows:
    """The rows of a task, tokenized when they are needed."""

    def __init__(
        self, folder: Path, tokenizer: Any, *, tokens: int = 64, precision: str = "32"
    ) -> None:
        self.folder, self.tokenizer, self.tokens = folder, tokenizer, tokens
        self.bf16 = precision == "bf16"
        self.meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.regression = not isinstance(self.meta["labels"], list)

    def read(self, split: str) -> list[dict]:
        text = (self.folder / f"{split}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def train_and_choose(self, k: int, seed: int) -> tuple[list[dict], list[dict]]:
        """The first K rows of the shuffled training split, and the next ones."""
        rows = self.read("train")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        shuffled = [rows[number] for number in order[: k + CHOOSE]]
        return shuffled[:k], shuffled[k:]

    def batch(self, rows: list[dict]) -> dict[str, Tensor]:
        texts = [[row[name] for row in rows] for name in ("text", "text2") if name in rows[0]]
        encoded = self.tokenizer(
            *texts, padding=True, truncation=True, max_length=self.tokens, return_tensors="pt"
        )
        labels = torch.tensor([row["label"] for row in rows])
        return dict(encoded) | {"labels": labels.float() if self.regression else labels}

    def model(self, backbone: str, seed: int) -> PreTrainedModel:
        """The pretrained model with a new head."""
        torch.manual_seed(seed)
        labels = 1 if self.regression else len(self.meta["labels"])
        # On processors, the fused attention's backward in bf16 is slower than in 32 bits.
        attention = "eager" if self.bf16 else "sdpa"
        return AutoModelForSequenceClassification.from_pretrained(
            backbone, num_labels=labels, attn_implementation=attention
        )

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return model(**batch)

    @torch.no_grad()
    def score(self, model: nn.Module, rows: list[dict]) -> float:
        rows = sorted(rows, key=lambda row: len(row["text"]) + len(row.get("text2", "")))
        batches = [self.batch(rows[at : at + 32]) for at in range(0, len(rows), 32)]
        true = torch.cat([batch.pop("labels") for batch in batches])
        logits = torch.cat([self.outputs(model, batch).logits.float() for batch in batches])
        if self.regression:
            return 100 * float(spearman_corrcoef(logits.squeeze(-1), true))
        matthews = self.meta["metric"] == "matthews"
        metric = multiclass_matthews_corrcoef if matthews else multiclass_accuracy
        average = {} if matthews else {"average": "micro"}
        return 100 * float(metric(logits, true, num_classes=logits.shape[-1], **average))


def fit(
    rows: Rows, backbone: str, contestant: Contestant, rates: dict, *, k: int, steps: int, seed: int
) -> tuple[nn.Module, list[dict]]:
    """The trained model, and the rows that choose."""
    train, choose = rows.train_and_choose(k, seed)
    model = rows.model(backbone, seed)
    attachment = attach(model, contestant.plan(), seed=seed)
    known = attachment.parameter_groups().keys()
    lrs = {n: r for n, r in {**contestant.rates, **rates["lrs"]}.items() if n in known}
    optimizer = torch.optim.AdamW(named_groups(attachment, lr=rates["lr"], lrs=lrs), fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, round(0.06 * steps), steps)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    mean_of = [parameter.detach().clone() for parameter in trained]
    attachment.train(base_dropout=False)
    order: list[int] = []
    for step in range(steps):
        while len(order) < BATCH:
            order += torch.randperm(len(train)).tolist()
        batch, order = [train[number] for number in order[:BATCH]], order[BATCH:]
        if contestant.before_step is not None:
            contestant.before_step(attachment, step / steps)
        rows.outputs(model, rows.batch(batch)).loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(mean_of, [parameter.detach() for parameter in trained], 0.05)
    if contestant.averaged:
        with torch.no_grad():
            torch._foreach_copy_(trained, mean_of)
    for gate in attachment.gates.values():
        gate.set_open(1.0)
    return model.eval(), choose


class Fits:
    """The scores of all fits so far, in a file of lines."""

    def __init__(self, folder: Path, settings: dict | None = None) -> None:
        """``settings`` that all fits of the folder share are those of its first fit."""
        folder.mkdir(parents=True, exist_ok=True)
        self.file, kept = folder / "fits.jsonl", folder / "settings.json"
        if settings is None:
            return
        if not kept.exists():
            kept.write_text(json.dumps(settings), encoding="utf-8")
        before = json.loads(kept.read_text(encoding="utf-8"))
        if before != settings:
            raise ValueError(f"{folder} has fits with {before}, not {settings}: name another --out")

    def read(self) -> dict[str, float]:
        """Scores by key; a line that a kill has cut short is left out."""
        scores = {}
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            try:
                fit = json.loads(line)
            except json.JSONDecodeError:
                continue
            scores[fit["key"]] = fit["score"]
        return scores

    def add(self, key: str, score: float) -> None:
        cut = self.file.exists() and not self.file.read_bytes().endswith(b"\n")  # by a kill
        line = "\n" * cut + json.dumps({"key": key, "score": score}) + "\n"
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line.encode())  # at once, so that processes can share the file
        os.close(descriptor)


def key(stage: str, k: int, task: str, name: str, rates: dict, seed: int) -> str:
    return f"{stage} k={k} {task} {name} lr={rates['lr']} head={rates['lrs']['head']} seed={seed}"


def tuned(scores: dict[str, float], name: str, options: argparse.Namespace) -> list[list[float]]:
    """Scores of the choosing rows: of each pair of rates, by task, means of the tuning seeds.

    Raises:
        ValueError: fits are missing.
    """
    k, seeds = options.k, options.tuning_seeds
    keys = [
        [[key("tune", k, task, name, rates, seed) for seed in seeds] for task in options.all_tasks]
        for rates in RATES
    ]
    missing = [each for by_task in keys for by in by_task for each in by if each not in scores]
    if missing:
        raise ValueError(f"{len(missing)} fits are missing, such as {missing[0]}: run `tune`")
    return [[mean(scores[each] for each in by) for by in by_task] for by_task in keys]


def chosen(scores: dict[str, float], name: str, options: argparse.Namespace) -> dict:
    """The rates that are best on average over tasks and tuning seeds."""
    means = [mean(each) for each in tuned(scores, name, options)]
    return deepcopy(RATES[means.index(max(means))])


def run(options: argparse.Namespace) -> None:
    """Fit what is missing of the stage."""
    torch.set_num_threads(options.threads)
    backbone = resolve_backbone(options.backbone)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    shared = {name: getattr(options, name) for name in ("steps", "backbone", "precision")}
    fits = Fits(options.out, shared)
    cells = []
    for name in options.contestants:
        if options.stage == "tune":
            pairs = [(rates, seed) for rates in RATES for seed in options.tuning_seeds]
        else:
            rates = chosen(fits.read(), name, options)
            pairs = [(rates, seed) for seed in SEEDS]
        cells += [(task, name, *pair) for task in options.tasks for pair in pairs]
    for task, name, rates, seed in tqdm(cells, options.stage):
        this = key(options.stage, options.k, task, name, rates, seed)
        if this in fits.read():
            continue
        rows = Rows(options.data / task, tokenizer, precision=options.precision)
        contestant = CONTESTANTS[name]
        settings = {"k": options.k, "steps": options.steps, "seed": seed}
        model, scored = fit(rows, backbone, contestant, rates, **settings)
        if options.stage == "test":
            scored = rows.read("dev")[:MOST]
        fits.add(this, rows.score(model, scored))


def table(options: argparse.Namespace) -> str:
    """Means over seeds, and differences from the best single method with intervals."""
    scores, k, tasks = Fits(options.out).read(), options.k, options.all_tasks
    found: dict[str, list[list[float]]] = {}  # by contestant: seeds by tasks
    rates = {}
    for name in options.contestants:
        try:
            rates[name] = chosen(scores, name, options)
            found[name] = [
                [scores[key("test", k, task, name, rates[name], seed)] for task in tasks]
                for seed in SEEDS
            ]
        except (KeyError, ValueError):
            continue
    if not found:
        raise ValueError("no contestant has all its fits: run `tune` and `test`")
    average = {name: mean(map(mean, by_seed)) for name, by_seed in found.items()}
    singles = [name for name in ("lora", "adapter", "prefix") if name in found]
    best = max(singles, key=average.__getitem__) if singles else None
    lines = []
    for name, by_seed in found.items():
        columns = [mean(column) for column in zip(*by_seed, strict=True)]
        lines.append([name, f"{rates[name]['lr']:g}", f"{rates[name]['lrs']['head']:g}", *columns])
        lines[-1] += [average[name], difference(by_seed, found[best]) if best else ""]
    headers = ["contestant", "rate", "head", *tasks, "mean", f"against {best}"]
    return tabulate(lines, headers, floatfmt=".1f", tablefmt="github", disable_numparse=[1, 2])


def levers(options: argparse.Namespace) -> str:
    """What each contestant reached on the choosing rows by its best rates and by all."""
    scores, lines = Fits(options.out).read(), []
    for name in options.contestants:
        try:
            grid = tuned(scores, name, options)
        except ValueError:
            continue
        best, rates = max(grid, key=mean), chosen(scores, name, options)
        line = [name, f"{rates['lr']:g}", f"{rates['lrs']['head']:g}", *best, mean(best)]
        lines.append([*line, mean(map(mean, grid))])
    headers = ["contestant", "rate", "head", *options.all_tasks, "mean", "mean of all rates"]
    return tabulate(lines, headers, floatfmt=".1f", tablefmt="github", disable_numparse=[1, 2])


def difference(ours: list[list[float]], theirs: list[list[float]]) -> str:
    """The mean over seeds of the difference of the mean over tasks, with its interval."""
    each = [mean(a) - mean(b) for a, b in zip(ours, theirs, strict=True)]
    half = float(student.ppf(0.975, len(each) - 1)) * stdev(each) / len(each) ** 0.5
    return f"{mean(each):+.2f} ± {half:.2f}"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["tune", "test", "table", "levers"])
    parser.add_argument("data", type=Path, nargs="?", help="folder of the tasks, one folder each")
    parser.add_argument("--out", type=Path, default=Path("low_resource"), help="of the fits")
    parser.add_argument("--k", type=int, default=100, help="training rows")
    parser.add_argument("--steps", type=int, default=150, help="of every fit")
    parser.add_argument("--backbone", default="all-MiniLM-L6-v2")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="to fit in this process")
    parser.add_argument("--all_tasks", nargs="+", default=TASKS, help="of the whole study")
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--tuning_seeds", nargs="+", type=int, default=TUNING_SEEDS)
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def main(arguments: list[str] | None = None) -> str | None:
    options = parser().parse_args(arguments)
    tables = {"table": table, "levers": levers}
    if options.stage in tables:
        return tables[options.stage](options)
    run(options)
    return None


if __name__ == "__main__":
    print(main() or "", end="")
