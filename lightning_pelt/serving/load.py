"""What many profiles cost a server: ``python -m lightning_pelt.serving.load --self``."""

from __future__ import annotations

import argparse
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
from lightning.pytorch import Trainer
from tqdm import tqdm

from lightning_pelt.methods import XPEFT
from lightning_pelt.module import PELTModule
from lightning_pelt.plan import Plan
from lightning_pelt.profiles.bank import RandomBank
from lightning_pelt.profiles.masks import masks_of
from lightning_pelt.profiles.profile import Profile
from lightning_pelt.profiles.store import ProfileStore
from lightning_pelt.serving.opening import open_store

PATIENCE = 300  # seconds for a server to be ready, and for an answer
K = 50  # adapters of a hundred that each profile of its own server chooses
VOCABULARY = ["the", "house", "of", "many", "words"]


class Load(NamedTuple):
    """One round: requests per second, and the seconds that each request took, sorted."""

    rate: float
    seconds: list[float]

    def percentile(self, share: float) -> float:
        """The smallest time that ``share`` of the requests did not exceed."""
        return self.seconds[max(1, math.ceil(share * len(self.seconds))) - 1]


def main(args: Sequence[str] | None = None) -> dict[str, float]:
    """Measure with one profile and with many in turn; print and return how they differ."""
    parser = _parser()
    given = parser.parse_args(args)
    if given.url and not given.store:
        parser.error("--url needs --store, which knows the profiles")
    if given.self:
        with _own_server(given.profiles, given.backbone) as (url, store):
            return measure(url, store, given)
    return measure(given.url, given.store, given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="of POST /predict; needs --store")
    where.add_argument("--self", action="store_true", help="a server of its own, random profiles")
    parser.add_argument("--store", help="of the profiles that the server has")
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--profiles", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=2000, help="with one, and with many")
    parser.add_argument("--concurrency", type=int, default=64, help="that are open at a time")
    parser.add_argument("--rounds", type=int, default=5, help="that the requests are split into")
    parser.add_argument("--words", type=int, default=48, help="of a text")
    return parser


def measure(url: str, store: str, given: argparse.Namespace) -> dict[str, float]:
    """Rounds of both in turn, so that they meet the same machine; the first of each warms up."""
    with open_store(store) as opened:
        ids = list(islice(opened.ids(), given.profiles))
    if len(ids) < given.profiles:
        raise ValueError(f"{store} has {len(ids)} profiles, and {given.profiles} are asked for")
    rng = random.Random(0)
    text = " ".join(rng.choice(VOCABULARY) for _ in range(given.words))
    ways = {"one": ids[:1], "many": ids}
    rounds: dict[str, list[Load]] = {name: [] for name in ways}
    each = max(1, given.requests // given.rounds)
    for number in tqdm(range(given.rounds + 1), unit=" rounds"):
        for name, people in ways.items():
            # The warm-up asks for every profile, so that the rounds find all adapters in the cache.
            count = max(each, len(people)) if number == 0 else each
            order = [people[i % len(people)] for i in range(count)]
            rng.shuffle(order)
            load = fire(url, [{"text": text, "profile": id} for id in order], given.concurrency)
            if number:
                rounds[name].append(load)
    return _report(rounds, len(ids))


def fire(url: str, bodies: Sequence[object], concurrency: int) -> Load:
    """Send all, ``concurrency`` of them at a time, over connections that stay open.

    Raises:
        RuntimeError: one was not answered, or with an error.
    """
    target, queue = urlsplit(url), iter(list(bodies))
    seconds: list[float] = []
    faults: list[str] = []

    def work() -> None:
        connection = http.client.HTTPConnection(target.netloc, timeout=PATIENCE)
        try:
            for body in queue:  # taking from a list's iterator is atomic
                start = time.perf_counter()
                connection.request("POST", target.path, json.dumps(body))
                answer = connection.getresponse()
                said = answer.read().decode()
                seconds.append(time.perf_counter() - start)
                if answer.status != 200:
                    faults.append(f"{answer.status}: {said}")
        except (OSError, http.client.HTTPException) as error:
            faults.append(repr(error))
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise RuntimeError(f"{len(faults)} requests failed, the first with {faults[0]}")
    return Load(len(bodies) / (time.perf_counter() - start), sorted(seconds))


def _report(rounds: dict[str, list[Load]], profiles: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    print(f"{'profiles':>8} {'requests/s':>11} {'p50 ms':>8} {'p99 ms':>8}")
    for name, loads in rounds.items():
        seconds = sorted(second for load in loads for second in load.seconds)
        every = Load(median(load.rate for load in loads), seconds)
        p50, p99 = (1e3 * every.percentile(share) for share in (0.5, 0.99))
        figures.update({f"{name} rate": every.rate, f"{name} p50": p50, f"{name} p99": p99})
        print(f"{profiles if name == 'many' else 1:>8} {every.rate:>11.1f} {p50:>8.1f} {p99:>8.1f}")
    for figure in ("p50", "p99"):
        figures[figure] = figures[f"many {figure}"] / figures[f"one {figure}"]
    pairs = zip(rounds["one"], rounds["many"], strict=True)
    figures["rate"] = median(one.rate / many.rate for one, many in pairs)
    print(
        f"many profiles take {figures['rate']:.2f} times the time of one"
        f" ({figures['p50']:.2f} at p50, {figures['p99']:.2f} at p99)"
    )
    return figures


@contextmanager
def _own_server(profiles: int, backbone: str) -> Iterator[tuple[str, str]]:
    """A server on a free port with profiles that choose at random; its URL and its store."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, store = f"{folder}/model.ckpt", f"{folder}/profiles.db"
        _make(checkpoint, store, profiles, backbone)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "lightning_pelt", "profiles", "serve"]
        options = [f"--checkpoint={checkpoint}", f"--store={store}", f"--port={port}"]
        process = subprocess.Popen([*command, *options])
        try:
            _wait(process, port)
            yield f"http://127.0.0.1:{port}/predict", store
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=PATIENCE)


def _make(checkpoint: str, store: str, profiles: int, backbone: str) -> None:
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


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the server did not start: it says why above")


if __name__ == "__main__":
    main()
