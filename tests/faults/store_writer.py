"""A process that writes to a store until it is killed; see ``test_killed_store.py``."""

from __future__ import annotations

import random
from multiprocessing.connection import Connection

from profiles.samples import random_profile

from lightning_pelt.profiles.store import ProfileStore

IDS = 40


def put_until_killed(test: Connection, url: str, seed: int) -> None:
    """Put some profiles in one transaction after another, and tell when each is committed."""
    draw = random.Random(seed)
    with ProfileStore(url) as store:
        for turn in range(100_000):
            seeds = {
                f"u{number:02d}": seed * 10_000_000 + turn * IDS + number
                for number in draw.sample(range(IDS), draw.randint(1, 10))
            }
            test.send(("begun", seeds))
            items = {id: random_profile(one, n=20) for id, one in seeds.items()}
            store.put_many(items.items())
            test.send(("committed", seeds))


def read_until_killed(test: Connection, url: str) -> None:
    """Read all profiles again and again, as a server does."""
    with ProfileStore(url) as store:
        while True:
            test.send(len(dict(store.iterate())))
