"""Fixtures for every test: quiet libraries, a fixed seed, an unchanged environment."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from urllib.parse import quote

import forked
import pytest
import torch
from postgres import find_binaries, server

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
# Tiny models gain nothing from threads, and two that share a core spend it waiting for each other.
# A forked process would wait forever for threads of OpenMP that stayed in its parent; without the
# variable, Lightning gives each rank a thread per core.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
forked.prepare()
# They have the mechanisms that others combine: hooks of layers, of sublayers, of attentions and of
# the model, and tensors that blocks share.
COMPILED = {
    *("TestGatedLoRA", "TestGatedAdapter", "TestGatedPrefix", "TestPrompt", "TestXPEFT"),
    "TestCompacter",
}
# Files with few long tests start first, so that no process waits for another at the end.
LONG = ("distributed", "serving", "cli", "search", "benchmark", "profiles")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, and say which cases of a test run when.

    The inner loop runs the first case of each test that is not slow, and CI runs all cases, except
    those that repeat a mechanism: of these it runs every fourth, or every n-th of a test that is
    marked ``sample(n)``. The others are nightly. Compiling is tested for one method per mechanism.
    """
    ranks = {name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: min(ranks.get(p, len(LONG)) for p in item.path.parts))
    numbers: Counter[str] = Counter()
    kept: set[str] = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        every = _sampled(item)
        if every > 1:
            item.add_marker("slow")
            like = _like(item)
            if numbers[like] % every:
                item.add_marker("nightly")
            numbers[like] += 1
        elif item.name.startswith("test_compiles") and _class(item) not in COMPILED:
            item.add_marker("nightly")
        if item.get_closest_marker("nightly"):
            item.add_marker("slow")  # `-m "not slow"` alone selects the inner loop
        elif test in kept and not item.get_closest_marker("slow"):
            item.add_marker("slow")
        elif not item.get_closest_marker("slow"):
            kept.add(test)


def _class(item: pytest.Item) -> str:
    parent = item.getparent(pytest.Class)
    return parent.name if parent else ""


def _like(item: pytest.Item) -> str:
    """What the cases share of which some are taken: a test, or one of all methods on a model."""
    values = getattr(item, "callspec", None)
    if values and "model" in values.params and _class(item):
        return f"{getattr(item, 'originalname', '')}[{values.params['model']}]"
    return item.nodeid.partition("[")[0]


def _sampled(item: pytest.Item) -> int:
    """CI runs every how many-th case of those like ``item``."""
    marker = item.get_closest_marker("sample")
    values = getattr(item, "callspec", None)
    params = values.params if values else {}
    if item.path.name == "test_families.py":  # has a sample of its families
        return 1
    if marker is not None:
        return marker.args[0]
    from zoo import REPRESENTATIVE, ZOO  # not needed by the process that only hands out tests

    repeats = set(ZOO) - REPRESENTATIVE
    repeats &= {value for value in params.values() if isinstance(value, str)}
    model = params.get("model")  # of MethodConformance
    if _class(item) and model in ("gpt2", "llama") and item.name.startswith("test_compiles"):
        return 16
    return 4 if repeats or (_class(item) and model == "llama") else 1


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Seed torch, and give back the environment and the working folder as they were."""
    before, grouped = dict(os.environ), torch.distributed.is_initialized()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-pelt"])
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(before)
    # Lightning leaves it. Processes forked later would take it for theirs, without its threads, and
    # wait for each other forever.
    if torch.distributed.is_initialized() and not grouped:
        torch.distributed.destroy_process_group()
    _check_log_levels()


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
