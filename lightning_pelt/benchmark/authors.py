"""Real authors: what X-PEFT's masks are worth beside whole adapters, on a folder of labelled texts.

    python -m lightning_pelt.benchmark.authors --data FOLDER --seeds 0 1 2 --out FOLDER

All contestants have the same rows, 5 epochs of batches of 32, 32 tokens a row, bf16-mixed, no
dropout in the base, warmup 6% and then a linear decay; the weights of the last epoch count.
``adapter-each`` is one ordinary adapter per author, all trained in one run under one head, as the
masks are. The two ``alone`` are one fit per author, with a head of its own, in batches of 8.

Rates were chosen on the dev split of ``huffpost_authors``, seed 0 (518 rows, so a standard error of
2 points a figure), and the test split was read once the settings were final:

- Head: hard masks at 3e-3, 1e-2, 3e-2 gave 67.2, 69.5, 71.2, an adapter for each author 69.3, 72.0,
  71.8: 3e-2 for all. Higher ones were not tried.
- Hard masks, with the head at 3e-3: rates 2e-2, 5e-2, 1e-1 gave 65.8, 67.2, 65.6 at temperature 10;
  temperature 1 instead 66.2; at temperature 1 also a scale of 0.4, for 1 / sqrt(50), 64.7 and each
  author's own norm 65.4. The size of the bank, and k = N / 2, were not chosen but given.
- Adapters, with the head at 3e-3: 1e-3 and 3e-3 gave 69.3 and 61.8. The shared one has 1e-3 too.
- Not tuned by themselves: the control (all as hard masks have it), the shared adapter, soft masks
  (temperature 1), the trained bank, banks of 200 and 400, and fits alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from datasets import disable_progress_bars
from safetensors.torch import load_file, save_file

from lightning_pelt.benchmark.adapter_each import AdapterEach
from lightning_pelt.benchmark.author_fits import (
    CONTESTANTS,
    Common,
    Counts,
    bank_of,
    fit,
    score,
    sizes,
)
from lightning_pelt.errors import unknown
from lightning_pelt.files import write_aside
from lightning_pelt.methods import XPEFT
from lightning_pelt.profiles.bank import TrainedBank, save_bank


class Runs:
    """Results of finished runs, one JSON file each; what a run hands on to others lies beside."""

    def __init__(self, common: Common, *, log: bool = True) -> None:
        self.common, self.log = common, log
        common.out.mkdir(parents=True, exist_ok=True)

    def result(self, name: str, seed: int) -> dict[str, Any]:
        """Of one run, which is made unless it was finished with the same settings before."""
        settings = self.settings(name)
        path = self.common.out / f"{name}-{seed}.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["settings"] == settings:
                return found
        start = time.perf_counter()
        found = {"settings": settings, **self._make(name, seed)}
        found["seconds"] = round(time.perf_counter() - start)
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))
        if self.log:
            print(f"{name} {seed}: dev {micro(found['dev']):.2f}, {found['seconds']} s", flush=True)
        return found

    def settings(self, name: str) -> str:
        """All that a result depends on but the seed, wherever the folders lie."""
        here = replace(self.common, folder=Path(self.common.folder.name), out=Path())
        return f"{CONTESTANTS[name]}; {here}"

    def _make(self, name: str, seed: int) -> dict[str, Any]:
        entry = CONTESTANTS[name]
        head = None
        if entry.head_from is not None:
            self.result(entry.head_from, seed)
            head = load_file(self._beside(entry.head_from, seed, "head"))
        if entry.bank_from is not None:
            self.result(entry.bank_from, seed)
            bank = TrainedBank([str(self._beside(entry.bank_from, seed, "bank"))])
            assert isinstance(entry.method, XPEFT)
            entry = replace(entry, method=replace(entry.method, bank=bank))
        authors: list[str | None] = [None]
        if entry.alone:
            authors = [*self.common.data().profiles]
        counts: dict[str, Counts] = {"dev": {}, "test": {}}
        for only in authors:
            model = fit(entry, self.common, seed=seed, only=only, head=head)
            for split, of_split in counts.items():
                of_split |= score(model, self.common, split, only=only)
        if entry.method is None:
            save_file(dict(model.head()), self._beside(name, seed, "head"))
        if isinstance(entry.method, AdapterEach):
            save_bank(bank_of(model), self._beside(name, seed, "bank"))
        return {**sizes(model, alone=entry.alone), **counts}

    def _beside(self, name: str, seed: int, what: str) -> Path:
        return self.common.out / f"{name}-{seed}.{what}.safetensors"


def micro(counts: Counts) -> float:
    """Accuracy over rows, in points."""
    return 100 * sum(right for right, _ in counts.values()) / sum(n for _, n in counts.values())


def macro(counts: Counts) -> float:
    """Mean over authors of their accuracies, in points."""
    return 100 * mean(right / rows for right, rows in counts.values())


HEAD = (
    "contestant", "trained, shared", "trained, an author", "bytes an author",
    "dev", "test", "test, mean of authors", "seeds",
)  # fmt: skip


def row(name: str, results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """A contestant's line of the table, over the results of its seeds."""
    first = results[0]
    return (
        name,
        *(f"{first[key]:,}" for key in ("shared", "own", "bytes")),
        f"{mean(micro(result['dev']) for result in results):.1f}",
        _spread([micro(result["test"]) for result in results]),
        _spread([macro(result["test"]) for result in results]),
        str(len(results)),
    )


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """In Markdown."""
    lines = [HEAD, ("---", *["---:"] * (len(HEAD) - 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m lightning_pelt.benchmark.authors",
        description="Accuracy of masks over a bank, of whole adapters, and of controls, by author.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--data", type=Path, required=True, help="folder of the three splits")
    options.add_argument("--out", type=Path, default=Path("runs/authors"), help="finished runs")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--only", nargs="+", metavar="NAME", type=_name, default=[*CONTESTANTS])
    options.add_argument("--backbone", default=Common.backbone)
    options.add_argument("--epochs", type=int, default=Common.epochs)
    options.add_argument("--max-length", type=int, default=Common.max_length)
    options.add_argument("--precision", default=Common.precision)
    options.add_argument("--limit", type=int, help="rows of each split, for a trial")
    return options


def _name(name: str) -> str:
    if name not in CONTESTANTS:
        raise argparse.ArgumentTypeError(str(unknown("contestant", name, CONTESTANTS)))
    return name


def main(args: Sequence[str] | None = None) -> str:
    """Run what is not finished yet, seed by seed, then print the table and return it."""
    given = parser().parse_args(args)
    disable_progress_bars()
    warnings.filterwarnings("ignore", module="lightning")
    for name in ("lightning.pytorch", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    common = Common(
        given.data,
        given.out,
        backbone=given.backbone,
        epochs=given.epochs,
        max_length=given.max_length,
        precision=given.precision,
        limit=given.limit,
    )
    runs = Runs(common)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in given.only}
    for seed in given.seeds:
        for name in given.only:
            results[name].append(runs.result(name, seed))
    printed = table([row(name, found) for name, found in results.items()])
    print(printed)
    return printed


if __name__ == "__main__":
    main()
