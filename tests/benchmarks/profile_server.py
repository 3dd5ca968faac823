"""Time of a batch with many profiles, compared with one ordinary adapter.

python tests/benchmarks/profile_server.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from jsonargparse import auto_cli
from tqdm import tqdm

from lightning_pelt.methods import XPEFT, Adapter
from lightning_pelt.methods.xpeft import RandomBank
from lightning_pelt.methods.xpeft.masks import masks_of
from lightning_pelt.plans import Plan
from lightning_pelt.profiles import Profile
from lightning_pelt.profiles.serving import ProfileServer
from lightning_pelt.profiles.store import ProfileStore
from lightning_pelt.training import PELTModule

LABELS = ["no", "yes"]


def compare(
    backbone: str = "sentence-transformers/all-MiniLM-L6-v2",
    rows: int = 64,
    words: int = 48,
    size: int = 100,
    rounds: int = 15,
    threads: int = 2,
) -> dict[str, float]:
    """Print the time of a batch of many profiles, of one profile, and of one ordinary adapter.

    Args:
        backbone: hub id or folder.
        rows: rows of a batch, each with a different profile.
        words: words of a row.
        size: number of adapters of the bank.
        rounds: measurements of each case.
        threads: CPU threads of torch.

    Returns:
        Milliseconds per batch.
    """
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["the", "house", "of", "many", "words"], words))] * rows
    plan = Plan.uniform(XPEFT(bank=RandomBank(size=size)))
    module = PELTModule(backbone, plan, labels=LABELS)
    with tempfile.TemporaryDirectory() as folder, ProfileStore(Path(folder) / "p.db") as store:
        server = ProfileServer(module, store, slots=rows)
        store.put_many((str(number), _random_profile(module, rng)) for number in range(rows))
        ids = [str(number) for number in range(rows)]

        def cold() -> None:
            server.forget()
            server.predict(texts, ids)

        cases: dict[str, Callable[[], object]] = {
            "one adapter": _ordinary_adapter(backbone, texts),
            "warm": lambda: server.predict(texts, ids),
            "one profile": lambda: server.predict(texts, ids[:1] * rows),
            "cold": cold,
        }
        times = _measure(cases, rounds)
    for name, seconds in times.items():
        ratio = median(a / b for a, b in zip(seconds, times["one adapter"], strict=True))
        print(f"{name:12} {1e3 * median(seconds):7.1f} ms, {ratio:.3f} of one adapter")
    return {name: 1e3 * median(seconds) for name, seconds in times.items()}


def main(args: Sequence[str] | None = None) -> dict[str, float]:
    """Run :func:`compare` with options of the command line."""
    prog = "python tests/benchmarks/profile_server.py"
    return auto_cli(compare, None if args is None else list(args), as_positional=False, prog=prog)


def _measure(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in tqdm(range(rounds + 2), leave=False):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            if number > 1:  # the first two rounds warm up
                times[name].append(time.perf_counter() - start)
    return times


def _random_profile(module: PELTModule, rng: np.random.Generator) -> Profile:
    masks = masks_of(module)
    selected = np.zeros((len(masks.sites), 2, masks.bank.size), dtype=bool)
    for row in selected.reshape(-1, masks.bank.size):
        row[rng.choice(len(row), masks.k, replace=False)] = True
    return Profile(selected, masks.bank.digest, masks.scale)


def _ordinary_adapter(backbone: str, texts: list[str]) -> Callable[[], object]:
    """Predict all rows with one ordinary adapter, from tokenization to the names of labels."""
    module = PELTModule(backbone, Plan.uniform(Adapter()), labels=LABELS)
    module.configure_model()
    module.eval()

    @torch.inference_mode()
    def run() -> object:
        tokens = module.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return module.task.predict(module.model, dict(tokens), labels=LABELS)  # type: ignore[arg-type]

    return run


if __name__ == "__main__":
    main()
