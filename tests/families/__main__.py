"""``python -m families [--jobs N] [--output FILE]``: check all families, and print the table."""

from __future__ import annotations

import logging
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import transformers
from jsonargparse import auto_cli
from tqdm import tqdm

from families.catalogue import by_label
from families.table import Row, examined, markdown


def main(labels: list[str] | None = None, jobs: int = 2, output: Path | None = None) -> None:
    """Check families of transformers, and print the table of docs/families.md.

    Args:
        labels: of the families; all by default, which are the table.
        jobs: number of processes.
        output: a file for the table.
    """
    names = labels or list(by_label())
    with ProcessPoolExecutor(jobs, initializer=_quiet) as pool:
        rows = list(tqdm(pool.map(_row, names), total=len(names), unit="family"))
    faults = [row for row in rows if row.fault]
    if labels:
        for row in rows:
            verdicts = {method: each.takes for method, each in row.verdicts.items()}
            print(row.label, verdicts, row.fault)
    elif output is None:
        print(markdown(rows))
    else:
        output.write_text(markdown(rows), encoding="utf-8")
    if faults:
        raise SystemExit(f"{len(faults)} of {len(rows)} do not hold: {[r.label for r in faults]}")


def _row(label: str) -> Row:
    return examined(by_label()[label])


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
