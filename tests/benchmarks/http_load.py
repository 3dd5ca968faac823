"""Requests per second of a server with one profile and with many.

    python tests/benchmarks/http_load.py --self
    python tests/benchmarks/http_load.py --self --fewest_words 1 --dtype bfloat16

With ``--fewest_words`` the lengths of the texts are drawn between it and ``--words``.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from statistics import median
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer
from tabulate import tabulate
from tqdm import tqdm

from lightning_pelt.methods import XPEFT
from lightning_pelt.methods.xpeft import RandomBank
from lightning_pelt.methods.xpeft.masks import masks_of
from lightning_pelt.plans import Plan
from lightning_pelt.profiles import Profile
from lightning_pelt.profiles.serving.loading import open_store
from lightning_pelt.profiles.store import ProfileStore
from lightning_pelt.training import PELTModule

TIMEOUT = 300  # seconds for a server to be ready, and for an answer
K = 50  # adapters of 100 that a random profile selects
VOCABULARY = ["the", "house", "of", "many", "words"]


class RoundResult(NamedTuple):
    """The result of a round: requests per second, and the sorted seconds of each request."""

    rate: float
    seconds: list[float]

    def percentile(self, share: float) -> float:
        """The shortest measured time that a ``share`` of the requests did not exceed."""
        return self.seconds[max(1, math.ceil(share * len(self.seconds))) - 1]


def main(args: Sequence[str] | None = None) -> dict[str, float]:
    """Measure one profile and many profiles in alternation; print and return the figures."""
    options = parser()
    given = options.parse_args(args)
    if given.url and not given.store:
        options.error("--url needs --store, from which the ids of profiles are read")
    if given.self:
        serving = [] if given.dtype is None else [f"--dtype={given.dtype}"]
        with temporary_server(given.profiles, given.backbone, *serving) as (url, store):
            return measure(url, store, given)
    return measure(given.url, given.store, given)


def parser() -> ArgumentParser:
    options = ArgumentParser(
        prog="python tests/benchmarks/http_load.py",
        description="Requests per second of a server with one profile and with many.",
    )
    server = options.add_mutually_exclusive_group(required=True)
    server.add_argument("--url", type=str, help="URL of POST /predict; needs --store")
    server.add_argument(
        "--self", action="store_true", help="start a temporary server with random profiles"
    )
    options.add_argument("--store", type=str, help="store of the server")
    backbone = "sentence-transformers/all-MiniLM-L6-v2"
    options.add_argument("--backbone", type=str, default=backbone, help="of the temporary server")
    options.add_argument("--profiles", type=int, default=1000, help="number of profiles")
    options.add_argument("--requests", type=int, default=2000, help="with one, and with many")
    options.add_argument("--concurrency", type=int, default=64, help="simultaneous requests")
    options.add_argument("--rounds", type=int, default=5, help="rounds with one, and with many")
    options.add_argument("--words", type=int, default=48, help="words of a text, at most")
    options.add_argument("--fewest_words", type=int, help="by default all have --words")
    options.add_argument("--dtype", type=str, help="of the base of the temporary server")
    return options


def measure(url: str, store: str, given: Namespace) -> dict[str, float]:
    """Alternate rounds with one profile and with many; the first round of each warms up."""
    with open_store(store) as opened:
        ids = list(islice(opened.ids(), given.profiles))
    if len(ids) < given.profiles:
        raise ValueError(f"{store} has {len(ids)} profiles, expected at least {given.profiles}")
    rng = random.Random(0)
    fewest = given.words if given.fewest_words is None else given.fewest_words

    def text() -> str:
        return " ".join(rng.choices(VOCABULARY, k=rng.randint(fewest, given.words)))

    cases = {"one": ids[:1], "many": ids}
    rounds: dict[str, list[RoundResult]] = {name: [] for name in cases}
    each = max(1, given.requests // given.rounds)
    for number in tqdm(range(given.rounds + 1), unit=" rounds"):
        for name, chosen in cases.items():
            # The warm-up requests every profile, so that all adapters are in the cache later.
            count = max(each, len(chosen)) if number == 0 else each
            order = [chosen[i % len(chosen)] for i in range(count)]
            rng.shuffle(order)
            bodies = [{"text": text(), "profile": id} for id in order]
            result = send_all(url, bodies, given.concurrency)
            if number:
                rounds[name].append(result)
    return _report(rounds, len(ids))


def send_all(url: str, bodies: Sequence[object], concurrency: int) -> RoundResult:
    """Send all requests, ``concurrency`` at a time, over persistent connections.

    Raises:
        RuntimeError: a request had no answer, or an error.
    """
    target, queue = urlsplit(url), iter(list(bodies))
    seconds: list[float] = []
    errors: list[str] = []

    def work() -> None:
        connection = http.client.HTTPConnection(target.netloc, timeout=TIMEOUT)
        try:
            for body in queue:  # `next` of a list's iterator is atomic
                start = time.perf_counter()
                connection.request("POST", target.path, json.dumps(body))
                answer = connection.getresponse()
                content = answer.read().decode()
                seconds.append(time.perf_counter() - start)
                if answer.status != 200:
                    errors.append(f"{answer.status}: {content}")
        except (OSError, http.client.HTTPException) as error:
            errors.append(repr(error))
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise RuntimeError(f"{len(errors)} requests failed, the first with {errors[0]}")
    return RoundResult(len(bodies) / (time.perf_counter() - start), sorted(seconds))


def _report(rounds: dict[str, list[RoundResult]], profiles: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    rows = []
    for name, results in rounds.items():
        seconds = sorted(second for result in results for second in result.seconds)
        total = RoundResult(median(result.rate for result in results), seconds)
        p50, p99 = (1e3 * total.percentile(share) for share in (0.5, 0.99))
        figures.update({f"{name} rate": total.rate, f"{name} p50": p50, f"{name} p99": p99})
        rows.append((profiles if name == "many" else 1, total.rate, p50, p99))
    head = ("profiles", "requests/s", "p50 ms", "p99 ms")
    print(tabulate(rows, head, tablefmt="plain", floatfmt=".1f"))
    for figure in ("p50", "p99"):
        figures[figure] = figures[f"many {figure}"] / figures[f"one {figure}"]
    pairs = zip(rounds["one"], rounds["many"], strict=True)
    figures["rate"] = median(one.rate / many.rate for one, many in pairs)
    print(
        f"many profiles take {figures['rate']:.2f} times the time of one profile "
        f"({figures['p50']:.2f} at p50, {figures['p99']:.2f} at p99)"
    )
    return figures


@contextmanager
def temporary_server(profiles: int, backbone: str, *serving: str) -> Iterator[tuple[str, str]]:
    """Run a server with random profiles on a free port; gives its URL and its store."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, store = f"{folder}/model.ckpt", f"{folder}/profiles.db"
        _write_model(checkpoint, store, profiles, backbone)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "lightning_pelt", "profiles", "serve"]
        options = [f"--checkpoint={checkpoint}", f"--store={store}", f"--port={port}"]
        process = subprocess.Popen(
            [*command, *options, *serving], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            if not process.stdout.readline().startswith("ready"):
                raise RuntimeError("the server did not start: see its output above")
            yield f"http://127.0.0.1:{port}/predict", store
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=TIMEOUT)


def _write_model(checkpoint: str, store: str, profiles: int, backbone: str) -> None:
    module = PELTModule(
        backbone, Plan.uniform(XPEFT(bank=RandomBank(size=100), k=K)), labels=["no", "yes"]
    )
    module.configure_model()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.trainer = trainer
    trainer.strategy.connect(module)
    trainer.save_checkpoint(checkpoint, weights_only=True)
    masks, rng = masks_of(module), np.random.default_rng(0)
    order = rng.random((profiles, len(masks.sites), 2, masks.bank.size)).argsort(-1)
    with ProfileStore(store) as opened:
        opened.put_many(
            (f"{number:07}", Profile(chosen, masks.bank.digest, masks.scale))
            for number, chosen in enumerate(order < K)
        )


if __name__ == "__main__":
    main()
