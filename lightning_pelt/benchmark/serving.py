"""What many profiles in a batch cost: ``python -m lightning_pelt.benchmark.serving``."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tqdm import tqdm

from lightning_pelt.methods import XPEFT, Adapter
from lightning_pelt.module import PELTModule
from lightning_pelt.plan import Plan
from lightning_pelt.profiles.bank import RandomBank
from lightning_pelt.profiles.masks import masks_of
from lightning_pelt.profiles.profile import Profile
from lightning_pelt.profiles.store import ProfileStore
from lightning_pelt.serving import ProfileServer

LABELS = ["no", "yes"]


def main(args: Sequence[str] | None = None) -> dict[str, float]:
    """Measure, print and return milliseconds per batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--rows", type=int, default=64, help="of a batch, each of its own profile")
    parser.add_argument("--words", type=int, default=48, help="of a row")
    parser.add_argument("--size", type=int, default=100, help="of the bank")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(args)
    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(0)
    texts = [
        " ".join(rng.choice(["the", "house", "of", "many", "words"], given.words))
    ] * given.rows
    module = PELTModule(
        given.backbone, Plan.uniform(XPEFT(bank=RandomBank(size=given.size))), labels=LABELS
    )
    with tempfile.TemporaryDirectory() as folder, ProfileStore(Path(folder) / "p.db") as store:
        server = ProfileServer(module, store, slots=given.rows)
        store.put_many((str(n), _random(module, rng)) for n in range(given.rows))
        people = [str(number) for number in range(given.rows)]

        def cold() -> None:
            server.forget()
            server.predict(texts, people)

        ways: dict[str, Callable[[], object]] = {
            "one adapter": _ordinary(given.backbone, texts),
            "warm": lambda: server.predict(texts, people),
            "one profile": lambda: server.predict(texts, people[:1] * given.rows),
            "cold": cold,
        }
        times = _race(ways, given.rounds)
    for name, seconds in times.items():
        ratio = median(a / b for a, b in zip(seconds, times["one adapter"], strict=True))
        print(f"{name:12} {1e3 * median(seconds):7.1f} ms, {ratio:.3f} of one adapter")
    return {name: 1e3 * median(seconds) for name, seconds in times.items()}


def _race(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in tqdm(range(rounds + 2), leave=False):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number > 1:  # the first two rounds warm up
                times[name].append(time.perf_counter() - start)
    return times


def _random(module: PELTModule, rng: np.random.Generator) -> Profile:
    masks = masks_of(module)
    chosen = np.zeros((len(masks.sites), 2, masks.bank.size), dtype=bool)
    for row in chosen.reshape(-1, masks.bank.size):
        row[rng.choice(len(row), masks.k, replace=False)] = True
    return Profile(chosen, masks.bank.digest, masks.scale)


def _ordinary(backbone: str, texts: list[str]) -> Callable[[], object]:
    """All rows through one ordinary adapter, tokenising and naming labels included."""
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
