"""Time and accuracy of an epoch on rows padded to a fixed length, and on rows of similar length.

    python tests/benchmarks/padding.py ../shared/data/sst2

Each seed trains UniPELT on MiniLM for one epoch per kind of batch:

- fixed: random rows, padded to ``--length`` tokens (``bucketed=False``, ``pad="max_length"``);
- longest: random rows, padded to the longest of the batch (``bucketed=False``);
- bucketed: rows of similar length, padded to the longest of the batch, the default of data modules.

The seconds are processor time of the training steps alone. Accuracies, in percent, are of the dev
and the test split. The last lines show the means, the speed relative to ``fixed``, and the share of
tokens that are not padding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from tabulate import tabulate

from lightning_pelt import PELTModule, UniPELT
from lightning_pelt.data import TextClassification

KINDS: dict[str, dict[str, Any]] = {
    "fixed": {"bucketed": False, "pad": "max_length"},
    "longest": {"bucketed": False},
    "bucketed": {},
}


class Result(NamedTuple):
    """An epoch: seconds, accuracies in percent, and the share of tokens that are not padding."""

    seconds: float
    dev: float
    test: float
    filled: float


class TrainingTime(Callback):
    """Processor time of the training epoch, and its tokens with and without padding."""

    def __init__(self) -> None:
        self.seconds, self.tokens, self.places = 0.0, 0, 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.tokens += int(batch["attention_mask"].sum())
        self.places += batch["attention_mask"].numel()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = time.process_time() - self.start


def main(arguments: Sequence[str] | None = None) -> dict[str, Result]:
    """Print a line for each epoch, and the means; returns the means."""
    given = parser().parse_args(arguments)
    torch.set_num_threads(given.threads)
    results: dict[str, list[Result]] = {kind: [] for kind in given.kinds}
    for seed in given.seeds:
        for kind in given.kinds:
            result = train(kind, seed, given)
            results[kind].append(result)
            print(f"seed {seed}, {kind}: {result}", flush=True)
    means = {kind: Result(*map(mean, zip(*found, strict=True))) for kind, found in results.items()}
    slowest = means.get("fixed", means[given.kinds[0]]).seconds
    rows = [(kind, *result, slowest / result.seconds) for kind, result in means.items()]
    head = ("batches", "seconds", "dev", "test", "not padding", "speed")
    print(tabulate(rows, head, tablefmt="plain", floatfmt=".2f"))
    return means


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("data", type=Path, help="folder with train, dev and test.jsonl")
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=["fixed", "bucketed"])
    options.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    options.add_argument("--length", type=int, default=128, help="tokens of a row, at most")
    options.add_argument("--batch_size", type=int, default=32)
    options.add_argument("--rows", type=int, help="train on a random choice of this many rows")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--lr", type=float, default=1e-3)
    options.add_argument("--head_lr", type=float, default=1e-2)
    options.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    return options


def train(kind: str, seed: int, given: argparse.Namespace) -> Result:
    """Train for an epoch, and evaluate."""
    seed_everything(seed, verbose=False)
    files: dict[str, Any] = {s: str(given.data / f"{s}.jsonl") for s in ("train", "dev", "test")}
    data = TextClassification(
        given.backbone,
        **files,
        **KINDS[kind],
        batch_size=given.batch_size,
        eval_batch_size=64,
        max_length=given.length,
        limit_train=given.rows,
        seed=seed,
    )
    rates: dict[str, Any] = {"lr": given.lr, "lrs": {"head": given.head_lr}, "warmup": 0.06}
    module = PELTModule(given.backbone, UniPELT(), labels=data.labels, seed=seed, **rates)
    timer = TrainingTime()
    training = _trainer(callbacks=[timer], limit_val_batches=0, gradient_clip_val=1.0)
    training.fit(module, data)
    trainer = _trainer()
    dev = trainer.validate(module, data, verbose=False)[0]["val/accuracy"]
    test = trainer.test(module, data, verbose=False)[0]["test/accuracy"]
    return Result(timer.seconds, 100 * dev, 100 * test, timer.tokens / timer.places)


def _trainer(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **options,
    )


if __name__ == "__main__":
    main()
