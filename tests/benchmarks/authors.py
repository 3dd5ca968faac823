"""Masks of X-PEFT compared with complete adapters, on labelled texts of real authors.

    python tests/benchmarks/authors.py --data FOLDER --seeds 0 1 2 --out FOLDER

All setups use the same rows, 5 epochs with batches of 32, 32 tokens per row, bf16-mixed precision,
no dropout in the base, a warmup of 6% and then a linear decay; the result is that of the weights
after the last epoch. ``adapter-each`` trains one ordinary adapter per author, all in one run with a
shared head, as the masks are trained. The two ``alone`` setups are one fit per author, each with an
own head, in batches of 8.

Learning rates were selected on the dev split of ``huffpost_authors`` with seed 0 (518 rows, so that
one figure has a standard error of 2 points). The test split was read once, after all settings were
final:

- Head: with 3e-3, 1e-2 and 3e-2, hard masks had 67.2, 69.5 and 71.2, and an adapter per author had
  69.3, 72.0 and 71.8. All setups use 3e-2. Higher rates were not tried.
- Hard masks, with 3e-3 for the head: rates of 2e-2, 5e-2 and 1e-1 had 65.8, 67.2 and 65.6 at
  temperature 10; temperature 1 had 66.2. At temperature 1, a scale of 0.4 instead of 1 / sqrt(50)
  had 64.7, and norms per author had 65.4. The size of the bank, and k = N / 2, were given.
- Adapters, with 3e-3 for the head: 1e-3 and 3e-3 had 69.3 and 61.8. The shared adapter uses 1e-3
  too.
- Not tuned separately: the control (it has the settings of hard masks), the shared adapter, soft
  masks (temperature 1), the trained bank, banks of 200 and 400, and the fits per author.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from adapter_per_profile import AdapterPerProfile
from author_fits import SETUPS, Counts, SharedSettings, bank_of, fit, score, sizes
from jsonargparse import ArgumentParser
from safetensors.torch import load_file, save_file
from tabulate import tabulate

from lightning_pelt.methods import XPEFT
from lightning_pelt.methods.xpeft import TrainedBank, save_bank
from lightning_pelt.search.isolation import quiet
from lightning_pelt.utils.errors import unknown
from lightning_pelt.utils.files import write_aside


class Runs:
    """Results of finished runs, one JSON file each, with heads and banks for other setups."""

    def __init__(self, shared: SharedSettings, *, log: bool = True) -> None:
        self.shared, self.log = shared, log
        shared.out.mkdir(parents=True, exist_ok=True)

    def result(self, name: str, seed: int) -> dict[str, Any]:
        """The result of a run, which starts unless it has finished with the same settings."""
        settings = self.settings(name)
        path = self.shared.out / f"{name}-{seed}.json"
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
        """Everything that determines a result except the seed and the location of the folders."""
        here = replace(self.shared, folder=Path(self.shared.folder.name), out=Path())
        return f"{SETUPS[name]}; {here}"

    def _make(self, name: str, seed: int) -> dict[str, Any]:
        setup = SETUPS[name]
        head = None
        if setup.head_from is not None:
            self.result(setup.head_from, seed)
            head = load_file(self._weights(setup.head_from, seed, "head"))
        if setup.bank_from is not None:
            self.result(setup.bank_from, seed)
            bank = TrainedBank([str(self._weights(setup.bank_from, seed, "bank"))])
            assert isinstance(setup.method, XPEFT)
            setup = replace(setup, method=replace(setup.method, bank=bank))
        authors: list[str | None] = [None]
        if setup.alone:
            authors = [*self.shared.data().profiles]
        counts: dict[str, Counts] = {"dev": {}, "test": {}}
        for only in authors:
            model = fit(setup, self.shared, seed=seed, only=only, head=head)
            for split, of_split in counts.items():
                of_split |= score(model, self.shared, split, only=only)
        if setup.method is None:
            save_file(dict(model.head_weights()), self._weights(name, seed, "head"))
        if isinstance(setup.method, AdapterPerProfile):
            save_bank(bank_of(model), self._weights(name, seed, "bank"))
        return {**sizes(model, alone=setup.alone), **counts}

    def _weights(self, name: str, seed: int, what: str) -> Path:
        return self.shared.out / f"{name}-{seed}.{what}.safetensors"


def micro(counts: Counts) -> float:
    """Accuracy over rows, in points."""
    return 100 * sum(right for right, _ in counts.values()) / sum(n for _, n in counts.values())


def macro(counts: Counts) -> float:
    """Mean over authors of their accuracies, in points."""
    return 100 * mean(right / rows for right, rows in counts.values())


HEAD = (
    "setup", "trained, shared", "trained, per author", "bytes per author",
    "dev", "test", "test, mean of authors", "seeds",
)  # fmt: skip


def row(name: str, results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The row of a setup, over the results of its seeds."""
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
    sides = ("left", *["right"] * (len(HEAD) - 1))
    return tabulate(rows, HEAD, tablefmt="pipe", disable_numparse=True, colalign=sides)


def parser() -> ArgumentParser:
    options = ArgumentParser(
        prog="python tests/benchmarks/authors.py",
        description="Accuracy of masks over a bank, of adapters, and of controls, by author.",
    )
    options.add_argument("--data", type=Path, required=True, help="folder with the three splits")
    options.add_argument(
        "--out", type=Path, default=Path("runs/authors"), help="folder of finished runs"
    )
    options.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of each setup per seed"
    )
    options.add_argument(
        "--only", nargs="+", metavar="NAME", default=[*SETUPS], help="setups to run"
    )
    options.add_class_arguments(
        SharedSettings, as_group=False, skip={"folder", "out", "max_length"}
    )
    options.add_argument(
        "--max-length", type=int, default=SharedSettings.max_length, help="tokens of a row"
    )
    return options


def main(args: Sequence[str] | None = None) -> str:
    """Run what is not finished yet, seed by seed, then print the table and return it."""
    options = parser()
    given = options.parse_args(args)
    for name in given.only:
        if name not in SETUPS:
            options.error(str(unknown("setup", name, SETUPS)))
    folders = {"folder": given.data, "out": given.out}
    others = {field.name: given[field.name] for field in fields(SharedSettings)[2:]}
    runs = Runs(SharedSettings(**folders, **others))
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in given.only}
    with quiet():
        for seed in given.seeds:
            for name in given.only:
                results[name].append(runs.result(name, seed))
    printed = table([row(name, found) for name, found in results.items()])
    print(printed)
    return printed


if __name__ == "__main__":
    main()
