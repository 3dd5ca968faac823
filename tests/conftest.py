"""Fixtures for every test: quiet libraries, a fixed seed, an unchanged environment."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from postgres import find_binaries, server
from zoo import REPRESENTATIVE, ZOO

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
# Tiny models gain nothing from threads, and two that share a core spend it waiting for each other.
torch.set_num_threads(1)
# Files with few long tests start first, so that no process waits for another at the end.
LONG = ("distributed", "serving", "cli", "search", "benchmark", "profiles")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of families that repeat a mechanism as slow, and put long files first."""
    ranks = {name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: min(ranks.get(p, len(LONG)) for p in item.path.parts))
    others = set(ZOO) - REPRESENTATIVE
    for item in items:
        values = getattr(item, "callspec", None)
        params = values.params if values else {}
        families = others & {value for value in params.values() if isinstance(value, str)}
        if families or params.get("model") == "llama":  # of MethodConformance, beside bert and gpt2
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Seed torch, and give back the environment and the working folder as they were."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-pelt"])
    torch.manual_seed(0)
    grouped = _notes_groups(monkeypatch)
    yield
    if grouped:  # the destructor of a process group hangs in the child of a later test that forks
        gc.collect()
    os.environ.clear()
    os.environ.update(before)
    _check_log_levels()


def _notes_groups(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Is filled when a test starts a process group in this process."""
    found: list[bool] = []
    start = torch.distributed.init_process_group

    def noted(*args: Any, **kwargs: Any) -> None:
        found.append(True)
        start(*args, **kwargs)

    monkeypatch.setattr(torch.distributed, "init_process_group", noted)
    return found


def _check_log_levels() -> None:
    """Fail a test that leaves Lightning's messages silenced; later tests read them."""
    lightning = logging.getLogger("lightning.pytorch")
    silenced = logging.root.manager.disable or lightning.level > logging.INFO
    logging.root.manager.disable = logging.NOTSET  # a test may have replaced logging.disable
    lightning.setLevel(logging.INFO)
    assert not silenced, "this test leaves log messages silenced: restore the levels that it sets"


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data(repository: Path) -> Path:
    """Real task data beside the checkout; not part of the project, so its absence skips."""
    folder = repository.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real task data is not on this machine")
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """Gives the URL of an empty schema of a real PostgreSQL, a new one each time."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
    import psycopg

    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no /usr/lib/postgresql/*/bin/initdb: apt-get install postgresql")
    schemas = count()
    with server(binaries) as url:

        def empty() -> str:
            schema = f"test{next(schemas)}"
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"CREATE SCHEMA {schema}")
            return f"{url}&options={quote(f'-csearch_path={schema}')}"

        yield empty
