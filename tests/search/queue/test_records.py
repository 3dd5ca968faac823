"""A journal with lost, repeated, swapped and changed lines: no job gets another's score."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="optuna is not installed: extra `search`")

from search import worker_process as child

from lightning_pelt.search.queue import heartbeat
from lightning_pelt.search.queue.job import Job, Outcome
from lightning_pelt.search.queue.ledger import Ledger
from lightning_pelt.search.queue.storage import DamagedLedger

JOBS = child.jobs(6)
VALUES = (b"1", b"[]", b"null", b"{}", b'{"op_code":99}', b'{"op_code":4}', b"\xff", b"[" * 99_999)


def opened(path: Path) -> Ledger:
    return Ledger(str(path), "search", child.SETTINGS)


def outcome(job: Job) -> Outcome:
    """Different for all jobs; one diverges."""
    score = None if job.seed == 3 else 50.0 + job.seed
    return Outcome(score, 1.0 + job.seed, {"accuracy": job.seed / 10})


TRUE = {job.key: outcome(job) for job in JOBS}


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The journal of two processes that lead, run, return, fail and finish jobs."""
    path = tmp_path_factory.mktemp("journal") / "whole.journal"
    one, other = opened(path), opened(path)
    with one.lead():
        one.enqueue(JOBS[:4])
        claims = [one.claim(), other.claim(), one.claim()]
        first, second, third = [claim for claim in claims if claim is not None]
        one.finish(second, outcome(second.job))
        other.finish(first, outcome(first.job))
        one.release(third)
        other.enqueue(JOBS)
        failing = one.claim()
        assert failing is not None
        one.fail(failing, "an error")
        while (claim := other.claim()) is not None:
            other.finish(claim, outcome(claim.job))
    assert opened(path).outcomes() == TRUE
    return path.read_bytes().splitlines(keepends=True)


def check(path: Path, content: list[bytes]) -> str:
    """Continue the search of a journal: it is refused by name, or every score is right."""
    path.write_bytes(b"".join(content))
    try:
        ledger = opened(path)
        found = ledger.outcomes()
        ledger.counts()
        ledger.errors()
        ledger.enqueue(JOBS)
        ledger.reap()
        while (claim := ledger.claim()) is not None:
            ledger.finish(claim, outcome(claim.job))
        last = ledger.outcomes()
    except ValueError as error:
        assert path.name in str(error)
        return "refused"
    assert {**found, **last}.items() <= TRUE.items()
    return "continued"


def variants(lines: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    for i, line in enumerate(lines):
        yield "lost", [*lines[:i], *lines[i + 1 :]]
        yield "twice", [*lines[: i + 1], *lines[i:]]
        yield "swapped", [*lines[:i], *reversed(lines[i : i + 2]), *lines[i + 2 :]]
        yield "repeated at the end", [*lines, line]
        yield "of a copied file", [*lines, *lines[i:]]


@pytest.mark.slow
def test_a_lost_repeated_or_swapped_line_gives_no_job_anothers_score(
    lines: list[bytes], tmp_path: Path
) -> None:
    found: dict[str, set[str]] = {}
    for name, content in variants(lines):
        found.setdefault(name, set()).add(check(tmp_path / "damaged.journal", content))
    assert found["lost"] == found["twice"] == found["swapped"] == {"refused", "continued"}


def test_a_line_that_is_no_record_is_refused(lines: list[bytes], tmp_path: Path) -> None:
    for i in range(0, len(lines), 3):
        for value in VALUES:
            content = [*lines[:i], value + b"\n", *lines[i + 1 :]]
            assert check(tmp_path / "damaged.journal", content) == "refused"


@pytest.mark.parametrize(
    "count", [pytest.param(60, id="some"), pytest.param(1500, id="many", marks=pytest.mark.slow)]
)
def test_a_changed_byte_is_refused_or_changes_nothing(
    lines: list[bytes], tmp_path: Path, count: int
) -> None:
    found = []
    for seed in range(count):
        draw, content = random.Random(seed), bytearray(b"".join(lines))
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        found.append(check(tmp_path / "damaged.journal", [bytes(content)]))
    assert found.count("refused") > count / 3


def test_the_message_names_trial_job_and_remedy(lines: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "search.journal"
    first = next(i for i, line in enumerate(lines) if JOBS[0].key.encode() in line)
    path.write_bytes(b"".join([*lines[:first], *lines[first + 1 :]]))
    with pytest.raises(DamagedLedger) as caught:
        opened(path)
    message = str(caught.value)
    assert "search.journal is damaged at trial" in message
    assert "'job 1': its 'owner' belongs to another one" in message
    assert "Restore the storage from a backup" in message


def test_a_job_whose_outcome_is_lost_is_run_again_and_named(
    lines: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "search.journal"
    (at,) = [i for i, line in enumerate(lines) if b'"score":51.0' in line]
    path.write_bytes(b"".join([*lines[:at], *lines[at + 1 :]]))
    ledger = opened(path)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert ledger.outcomes() == {k: v for k, v in TRUE.items() if k != JOBS[1].key}
    (record,) = caplog.records
    assert "search.journal has lost the outcome of job 1, which is run again" in record.message
    assert ledger.enqueue(JOBS) == 1
    claim = ledger.claim()
    assert claim is not None and claim.job == JOBS[1]
    assert ledger.finish(claim, outcome(JOBS[1]))
    assert ledger.outcomes() == opened(path).outcomes() == TRUE


class Clock:
    """Replaces ``time`` in the module of heartbeats."""

    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.mark.parametrize("wrong", [-7200.0, 7200.0], ids=["behind", "ahead"])
def test_a_host_with_a_wrong_clock_keeps_its_job_until_its_heartbeats_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    clock = Clock()
    ledger = opened(tmp_path / "search.journal")
    ledger.enqueue(JOBS[:1])
    claim = ledger.claim()
    assert claim is not None
    monkeypatch.setattr(heartbeat, "time", clock)

    def beat() -> None:
        stamp = {**heartbeat.process_stamp(), "host": "elsewhere", "time": clock.now + wrong}
        ledger._storage.set_trial_user_attr(claim.trial, "owner", stamp)

    for _ in range(30):
        beat()
        assert ledger.reap() == 0
        assert ledger.counts().workers == 1
        clock.now += heartbeat.INTERVAL
    clock.now += 3 * heartbeat.INTERVAL
    assert ledger.reap() == 1


def test_a_process_that_waits_for_jobs_is_a_worker(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "search.journal")
    ledger.enqueue(JOBS[:1])
    assert (ledger.counts().workers, ledger.counts().idle) == (0, 0)
    claim = ledger.claim()
    assert claim is not None
    assert (ledger.counts().workers, ledger.counts().idle) == (1, 0)
    ledger.finish(claim, outcome(claim.job))
    assert (ledger.counts().workers, ledger.counts().idle) == (0, 1)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:sec@ret@host:port/db",
        "oracle://ann:secret@host/db?password=secret",
        "sqlite://ann:secret@/",
        "postgresql://ann:secret@/db?host=/nowhere&sslpassword=secret",
    ],
)
def test_the_password_of_a_storage_is_not_printed(url: str) -> None:
    with pytest.raises((ValueError, ConnectionError)) as caught:
        Ledger(url, "search", child.SETTINGS)
    shown = f"{caught.value}{caught.value.__cause__}"
    assert "secret" not in shown and "ret@" not in shown


@pytest.mark.slow
def test_other_settings_are_refused_without_the_password(postgres: Callable[[], str]) -> None:
    url = postgres().replace("postgres@", "postgres:secret@")
    Ledger(url, "search", child.SETTINGS)
    with pytest.raises(ValueError, match=r"started with other settings") as caught:
        Ledger(url, "search", {"model": "other"})
    assert "secret" not in str(caught.value) and ":***@" in str(caught.value)
