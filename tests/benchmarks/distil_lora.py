"""Accuracy of UniPELT before and after it is distilled into a plain LoRA, on real data.

    python tests/benchmarks/distil_lora.py ../shared/data --out distil
    python tests/benchmarks/distil_lora.py ../shared/data --tasks sst2 --seeds 0 --rank 8

For each task and seed, UniPELT (adapter, prefix and LoRA, all gated) is trained on MiniLM and kept
in ``--out``, so that another recipe of distillation starts from the same models. Its LoRA learns
from the rows of the training without their labels. Both are scored on the whole dev split. The
table shows accuracies, the difference in points, the share of equal predictions on the dev split,
and the error of the hidden states on held-out rows, where 1 is the base without the plan.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from time import perf_counter

import torch
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    get_linear_schedule_with_warmup,
)

from lightning_pelt import UniPELT, attach, load_adapters, resolve_backbone, save_adapters
from lightning_pelt.exchange.distillation import Report, distil_lora
from lightning_pelt.training import named_groups

Batch = dict[str, Tensor]
BATCH = 32


@dataclass(frozen=True)
class Task:
    """How UniPELT is trained on a task.

    Args:
        rows: of the train split, at most.
        tokens: of a row, at most.
        epochs: of the training.
    """

    rows: int
    tokens: int
    epochs: int


TASKS = {"sst2": Task(2000, 32, 3), "ag_news": Task(1600, 32, 2), "banking77": Task(3000, 32, 6)}


class Rows:
    """The rows of a task as batches of about equal lengths."""

    def __init__(self, folder: Path, task: Task, tokenizer: object) -> None:
        self.folder, self.task, self.tokenizer = folder, task, tokenizer
        self.labels = len(json.loads((folder / "meta.json").read_text(encoding="utf-8"))["labels"])

    def batches(self, split: str, *, seed: int | None = None, limit: int | None = None) -> list:
        """Batches of ``split``: shuffled rows sorted by length, or all in order of length."""
        lines = (self.folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        if seed is not None:
            order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(seed))
            lines = [lines[number] for number in order]
        rows = [json.loads(line) for line in lines[:limit]]
        rows.sort(key=lambda row: len(row["text"]))
        return [self._batch(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]

    def _batch(self, rows: list[dict]) -> Batch:
        texts = [row["text"] for row in rows]
        encoded = self.tokenizer(  # type: ignore[operator]
            texts, padding=True, truncation=True, max_length=self.task.tokens, return_tensors="pt"
        )
        return dict(encoded) | {"labels": torch.tensor([row["label"] for row in rows])}


def main(arguments: list[str] | None = None) -> list[list]:
    """Print the table, once after each comparison; returns its lines."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    backbone = resolve_backbone(options.backbone)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    lines = []
    for name in options.tasks:
        rows = Rows(options.data / name, TASKS[name], tokenizer)
        for seed in options.seeds:
            lines.append(_compare(rows, name, seed, options))
            print(_table(lines), flush=True)
    return lines


def _compare(rows: Rows, name: str, seed: int, options: argparse.Namespace) -> list:
    """One line of the table."""
    train = rows.batches("train", seed=seed, limit=rows.task.rows)
    dev = rows.batches("dev")
    model = _backbone(options.backbone, rows.labels, seed)
    _train(model, rows, train, options.out / f"{name}-{seed}", seed=seed)
    start = perf_counter()
    unlabelled = rows.batches("train", seed=seed, limit=options.rows or rows.task.rows)
    student, report = distil_lora(
        model, unlabelled, r=options.rank, epochs=options.epochs, lr=options.lr, seed=seed
    )
    seconds = perf_counter() - start
    theirs, own, true = _predictions(model, dev), _predictions(student, dev), _labels(dev)
    return [name, seed, *_figures(theirs, own, true), *_errors(report), seconds]


def _backbone(name: str, labels: int, seed: int) -> PreTrainedModel:
    """The pretrained model with a new head."""
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(
        resolve_backbone(name), num_labels=labels
    )


def _train(
    model: PreTrainedModel, rows: Rows, train: list[Batch], folder: Path, *, seed: int
) -> None:
    """Attach UniPELT, and train it on ``train`` or load it from ``folder``."""
    attachment = attach(model, UniPELT(), seed=seed)
    if folder.exists():
        load_adapters(model, folder)
        return
    rates = {"head": 5e-3, "gate": 1e-3}
    optimizer = torch.optim.AdamW(named_groups(attachment, lr=1e-3, lrs=rates))
    steps = rows.task.epochs * len(train)
    schedule = get_linear_schedule_with_warmup(optimizer, round(0.06 * steps), steps)
    attachment.train(base_dropout=False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    orders = (torch.randperm(len(train)) for _ in range(rows.task.epochs))
    for number in tqdm([int(n) for order in orders for n in order], folder.name):
        loss = model(**train[number]).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    save_adapters(model, folder)


@torch.no_grad()
def _predictions(model: PreTrainedModel, batches: list[Batch]) -> Tensor:
    model.eval()
    inputs = [{n: t for n, t in batch.items() if n != "labels"} for batch in batches]
    return torch.cat([model(**batch).logits.argmax(-1) for batch in inputs])


def _labels(batches: list[Batch]) -> Tensor:
    return torch.cat([batch["labels"] for batch in batches])


def _figures(theirs: Tensor, own: Tensor, true: Tensor) -> list[float]:
    """Accuracies of plan and LoRA, their difference in points, and the share of equal ones."""
    plan, lora = (100 * float((found == true).float().mean()) for found in (theirs, own))
    return [plan, lora, lora - plan, 100 * float((theirs == own).float().mean())]


def _errors(report: Report) -> list[float]:
    """Of the hidden states, by least squares and after training."""
    assert report.first is not None and report.last is not None
    return [report.first.hidden_error, report.last.hidden_error]


def _table(lines: list[list]) -> str:
    names = list(dict.fromkeys(line[0] for line in lines))
    means = []
    for name in names:
        own = [line for line in lines if line[0] == name]
        columns = zip(*(line[2:] for line in own), strict=True)
        means.append([name, f"mean of {len(own)}", *(mean(column) for column in columns)])
    headers = ["task", "seed", "UniPELT", "LoRA", "points", "equal", "first fit", "error", "s"]
    formats = ("", "", ".2f", ".2f", "+.2f", ".1f", ".3f", ".3f", ".0f")
    return tabulate([*lines, *means], headers, floatfmt=formats, tablefmt="github")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the tasks, one folder each")
    parser.add_argument("--out", type=Path, default=Path("distil"), help="folder of the models")
    parser.add_argument("--backbone", default="all-MiniLM-L6-v2")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--rows", type=int, default=None, help="rows to distil on; None is all")
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    main()
