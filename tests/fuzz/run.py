"""Feed many hostile inputs to every loader, and print a table.

Example: ``python tests/fuzz/run.py --inputs 50000 --seed 0``, in all, over the loaders.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tabulate import tabulate
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.driver import Figures, fuzz
from fuzz.targets import TARGETS

COLUMNS = ["loader", "inputs", "refused", "equal", "different", "failed", "worst s", "worst MiB"]


def row(figures: Figures) -> list[object]:
    found = figures.outcomes
    kinds = [found[kind] for kind in ("refused", "equal", "different", "failed")]
    return [figures.name, found.total(), *kinds, f"{figures.seconds:.2f}", f"{figures.mib:.0f}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=50_000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loader", action="append", choices=sorted(TARGETS), help="only these")
    given = parser.parse_args()
    names = given.loader or list(TARGETS)
    each = -(-given.inputs // len(names))
    with TemporaryDirectory() as folder, tqdm(total=each * len(names), unit=" inputs") as bar:
        found = fuzz(names, seed=given.seed, inputs=each, folder=Path(folder), done=bar.update)
    for figures in found.values():
        for index, change, why in figures.failures[:20]:
            print(f"{figures.name}, input {index}, {change}:\n{why}\n")
    print(tabulate([row(one) for one in found.values()], headers=COLUMNS))
    return 1 if any(one.failures for one in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
