"""The ledger of a search: it survives killed processes and refuses other contents."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from filelock import FileLock
from processes import context

optuna = pytest.importorskip("optuna", reason="optuna is not installed: extra `search`")

from search import worker_process as child  # noqa: E402

from lightning_pelt.search.queue import heartbeat  # noqa: E402
from lightning_pelt.search.queue.job import Job, JobCounts, Outcome  # noqa: E402
from lightning_pelt.search.queue.ledger import MAX_ERRORS, Claim, Ledger  # noqa: E402
from lightning_pelt.search.queue.storage import _JournalLock  # noqa: E402
from lightning_pelt.search.queue.worker import work, work_one  # noqa: E402

DEADLINE = 120.0
JOBS = child.jobs(4)


@pytest.fixture(params=["journal", "sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty storage of each kind."""
    if request.param == "journal":
        return str(tmp_path / "new folder" / "search.journal")
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new folder/search.db"
    return request.getfixturevalue("postgres")()


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return str(tmp_path / "search.journal")


def opened(storage: str, **settings: Any) -> Ledger:
    return Ledger(storage, "search", {**child.SETTINGS, **settings})


def taken(ledger: Ledger) -> Claim:
    claim = ledger.claim()
    assert claim is not None
    return claim


def started(target: Callable[..., None], *args: Any) -> ForkServerProcess:
    """Start a process that has imported everything already: a fork of a server that has."""
    process = context().Process(target=target, args=args)
    process.start()
    return process


def ended(process: ForkServerProcess) -> int | None:
    process.join(DEADLINE)
    return process.exitcode


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {what}"
        time.sleep(0.005)


def at_once(act: Callable[[Any], Any], ledgers: Sequence[Any]) -> list[Any]:
    """The results of ``act`` for each ledger, called at the same time."""
    barrier, given = Barrier(len(ledgers)), []

    def run(ledger: Any) -> None:
        barrier.wait()
        given.append(act(ledger))

    threads = [Thread(target=run, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) == len(ledgers)
    return given


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def completed(storage: str) -> Counter[str]:
    """How often each job is finished, read by Optuna."""
    if "://" in storage:
        place: Any = storage.replace("postgresql:", "postgresql+psycopg:")
    else:
        backend = optuna.storages.journal.JournalFileBackend(storage)
        place = optuna.storages.JournalStorage(backend)
    trials = optuna.load_study(study_name="search", storage=place).get_trials(
        states=(optuna.trial.TrialState.COMPLETE,)
    )
    return Counter(trial.user_attrs["key"] for trial in trials)


@pytest.mark.slow
def test_jobs_are_taken_in_order_and_finished_once(storage: str) -> None:
    one, other = opened(storage), opened(storage)
    assert one.claim() is None
    assert one.enqueue(JOBS) == 4
    assert one.enqueue([*JOBS, *JOBS]) == other.enqueue(JOBS) == 0
    claims = [taken(one), taken(other), taken(one)]
    assert [claim.job for claim in claims] == JOBS[:3]
    assert [claim.job.label for claim in claims] == ["job 0", "job 1", "job 2"]
    assert other.counts() == JobCounts(waiting=1, running=3, finished=0, workers=1)

    assert one.finish(claims[0], Outcome(70.5, 2.0, {"accuracy": 0.705}))
    assert other.finish(claims[1], Outcome(None, metrics={"loss": float("inf")}))
    one.release(claims[2])
    assert one.enqueue(JOBS) == 0
    assert one.counts() == other.counts() == JobCounts(2, 0, 2, 0)
    for ledger in (one, other, opened(storage)):
        found = ledger.outcomes()
        assert found == {
            JOBS[0].key: Outcome(70.5, 2.0, {"accuracy": 0.705}),
            JOBS[1].key: Outcome(None, metrics={"loss": float("inf")}),
        }
    assert [taken(other).job, taken(one).job] == [JOBS[3], JOBS[2]]
    assert one.claim() is None
    assert completed(storage) == {JOBS[0].key: 1, JOBS[1].key: 1}


def test_all_processes_see_that_a_search_is_finished(storage: str) -> None:
    one, other = opened(storage), opened(storage)
    one.enqueue(JOBS)
    assert not other.finished
    assert work(one, child.outcome_of, idle=lambda: False) == 4
    assert one.claim() is None
    one.finished = True
    assert other.finished
    assert work(other, child.outcome_of) == 0
    assert sum(completed(storage).values()) == len(one._trials()) == 4
    one.finished = False
    assert not other.finished


def test_a_job_that_fails_is_tried_twice_and_twice_more_by_a_new_controller(storage: str) -> None:
    ledger = opened(storage)
    ledger.enqueue(JOBS[:2])

    def fails(job: Any) -> Outcome:
        if job == JOBS[0]:
            raise ArithmeticError("no such thing")
        return Outcome(1.0)

    for tries in (3, 0):
        assert work(ledger, fails, idle=lambda: False) == tries
        assert list(ledger.errors()) == [JOBS[0].key]
        assert "ArithmeticError: no such thing" in ledger.errors()[JOBS[0].key]
        assert ledger.enqueue(JOBS[:2]) == ledger.reap(0.0) == 0
    with ledger.lead():
        assert ledger.errors() == {}
        assert work(ledger, fails, idle=lambda: False) == 2
        assert len(ledger.errors()) == 1
    with ledger.lead():
        assert work(ledger, child.outcome_of, idle=lambda: False) == 1
    assert ledger.errors() == {} and len(ledger.outcomes()) == 2


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused(journal: str, score: float) -> None:
    ledger = opened(journal)
    ledger.enqueue(JOBS)
    claim = taken(ledger)
    with pytest.raises(ValueError, match=r"'job 0' is (nan|inf).* None if the fit diverged"):
        ledger.finish(claim, Outcome(score))
    assert ledger.outcomes() == {}


def test_another_configuration_is_refused_with_all_differences(storage: str) -> None:
    opened(storage, seed=3)
    changed = [{"name": "rte", "rows": 200}]
    with pytest.raises(ValueError, match="started with other settings") as error:
        Ledger(storage, "search", {"model": "tiny", "tasks": changed, "budget": 0.5})
    message = str(error.value).splitlines()
    assert message[1:4] == [
        "  tasks.0.rows: 100 -> 200",
        "  seed: 3 -> (absent)",
        "  budget: (absent) -> 0.5",
    ]
    assert "old configuration" in message[4] and "another name or storage" in message[4]
    opened(storage, seed=3)
    Ledger(storage, "another", {"model": "other"})


@pytest.mark.slow
def test_a_storage_that_holds_something_else_is_refused_and_unchanged(tmp_path: Path) -> None:
    for text in ("a: 1\n", "no end of line", '{"op": 1}\n'):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        for place in (str(path), f"sqlite:///{path}"):
            with pytest.raises(ValueError, match=r"recipe\.yaml is not a"):
                opened(place)
        assert path.read_text() == text
    with pytest.raises(ValueError, match="is a folder"):
        opened(str(tmp_path))
    with pytest.raises(ValueError, match="unknown kind of storage 'postgresq': did you mean"):
        opened("postgresq://host/db")
    foreign = f"sqlite:///{tmp_path}/optuna.db"
    optuna.create_study(storage=foreign, study_name="search").add_trial(
        optuna.trial.create_trial(value=1.0)
    )
    with pytest.raises(ValueError, match="'search' that is not a search of lightning-pelt"):
        opened(foreign)
    with pytest.raises(ConnectionError, match="cannot reach postgresql"):
        opened(f"postgresql://me:secret@/db?host={tmp_path}")


def test_a_journal_with_a_broken_line_is_reported_as_damaged(journal: str) -> None:
    opened(journal).enqueue(JOBS)
    text = Path(journal).read_text().splitlines(keepends=True)
    Path(journal).write_text("".join([*text[:3], text[3][:40] + "\n", *text[4:]]))
    with pytest.raises(ValueError, match=r"search\.journal is damaged"):
        opened(journal)


@pytest.mark.slow
def test_jobs_added_and_taken_back_at_once_are_not_duplicated(
    storage: str,
) -> None:
    jobs = child.jobs(8)
    ledgers = at_once(lambda _: opened(storage), range(4))
    at_once(lambda ledger: ledger.enqueue(jobs), ledgers)
    found = at_once(lambda ledger: [taken(ledger) for _ in range(2)], ledgers)
    claims = [claim for some in found for claim in some]
    assert {claim.job.key for claim in claims} == {job.key for job in jobs}
    assert ledgers[0].claim() is None

    for claim in claims:
        stamp_as(ledgers[0], claim.trial, pid=_gone())
    assert sum(at_once(lambda ledger: ledger.reap(1e9), ledgers)) == 8
    assert ledgers[0].counts() == JobCounts(8, 0, 0, 0)
    again = at_once(lambda ledger: [taken(ledger) for _ in range(2)], ledgers)
    assert {claim.job.key for some in again for claim in some} == {job.key for job in jobs}
    assert ledgers[0].claim() is None
    assert not ledgers[0].finish(claims[0], Outcome(1.0))
    assert ledgers[0].outcomes() == {}


def test_only_the_first_of_several_copies_of_a_job_runs(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = opened(storage), opened(storage)
    claims: list[Claim] = []
    for add in (lambda ledger: ledger.enqueue(JOBS[:2]), lambda ledger: ledger.reap(1e9)):
        for claim in claims:
            one._end(claim.trial)  # as if killed before it could return the job
        before = other._latest()
        add(one)
        claims = [taken(one), taken(one)]
        with monkeypatch.context() as stale:
            stale.setattr(other, "_latest", lambda before=before: before)
            add(other)
        assert other.counts() == JobCounts(0, 2, 0, 1)
        assert other.claim() is None
    assert len(one._trials()) == 8  # two jobs, two attempts, two copies of each
    assert [one.finish(claim, Outcome(1.0)) for claim in claims] == [True, True]
    assert other.claim() is None
    assert completed(storage) == {JOBS[0].key: 1, JOBS[1].key: 1}


def test_a_ledger_of_version_0_1_is_continued(tmp_path: Path) -> None:
    """It holds a finished, a diverged, an abandoned and a waiting job."""
    journal = tmp_path / "search.journal"
    journal.write_bytes(Path(__file__).with_name("ledger_0_1.journal").read_bytes())
    ledger = opened(str(journal))
    plans = [{"blocks": {"0": ["lora", i]}} for i in range(4)]
    splits: Any = ("holdout", "dev", "holdout", "holdout")
    jobs = [Job(plans[i], "rte", i, splits[i], 64, f"cell {i}") for i in range(4)]
    assert ledger.enqueue(jobs) == 0
    assert ledger.outcomes() == {
        jobs[0].key: Outcome(70.5, 2.0, {"accuracy": 0.705}),
        jobs[1].key: Outcome(None, 1.0),
    }
    assert ledger.counts() == JobCounts(waiting=1, running=1, finished=2, workers=0)
    assert ledger.reap() == 1
    assert [taken(ledger).job for _ in range(2)] == [jobs[3], jobs[2]]


def test_writers_of_a_journal_wait_for_the_lock(journal: str) -> None:
    opened(journal)
    first, second, order = _JournalLock(Path(journal)), _JournalLock(Path(journal)), []
    first.acquire()
    waits = Thread(target=lambda: second.acquire() and order.append("second"))
    waits.start()
    waits.join(0.1)
    order.append("first")
    first.release()
    waits.join()
    assert order == ["first", "second"]


def stamp_as(ledger: Ledger, trial: int, **changes: Any) -> None:
    stamp = {**heartbeat.process_stamp(), **changes}
    ledger._storage.set_trial_user_attr(trial, "owner", stamp)


def _gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("changes", "dead"),
    [
        ({}, False),
        ({"time": 0.0}, False),  # on this host: without heartbeats, but running
        ({"born": 1}, True),  # another process with the same id
        ({"host": "elsewhere", "pid": 0}, False),
        ({"host": "elsewhere", "time": 0.0}, True),
        ({"where": "another container", "born": 1}, False),
    ],
)
def test_which_processes_are_alive(journal: str, changes: dict[str, Any], dead: bool) -> None:
    ledger = opened(journal)
    ledger.enqueue(JOBS[:1])
    claim = taken(ledger)
    stamp_as(ledger, claim.trial, **changes)
    assert ledger.counts(60.0).workers == (not dead)
    assert ledger.reap(60.0) == dead
    assert ledger.reap(60.0) == 0
    assert ledger.counts() == (JobCounts(1, 0, 0, 0) if dead else JobCounts(0, 1, 0, int(not dead)))
    assert ledger.finish(claim, Outcome(1.0)) is not dead


def test_start_times_are_ticks_since_boot() -> None:
    """As ledgers of version 0.1 have them: field 22 of ``/proc/<pid>/stat``."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        pytest.skip("there is no /proc/self/stat")
    fields = stat.read_text().rpartition(")")[2].split()
    assert heartbeat._start_time(os.getpid()) == int(fields[19])
    assert heartbeat._start_time(_gone()) is None


def test_a_zombie_process_is_dead() -> None:
    process = subprocess.Popen(["true"])
    born = heartbeat._start_time(process.pid)
    stamp = {**heartbeat.process_stamp(), "pid": process.pid, "born": born}
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # stays a zombie until wait()
    assert Path(f"/proc/{process.pid}").exists()
    assert heartbeat._start_time(process.pid) is None
    assert born is None or not heartbeat.is_alive(stamp, 1e9)
    process.wait()


def test_heartbeats_continue_while_a_job_runs(
    journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.01)
    ledger, other = opened(journal), opened(journal)
    ledger.enqueue(JOBS[:1])
    claim = taken(ledger)

    def last_beat() -> float:
        return float(other._trials()[0].user_attrs["owner"]["time"])

    first = last_beat()
    with ledger.hold(claim) as beats:
        wait_for(lambda: last_beat() > first, "another heartbeat")
        assert not beats.lost
        stamp_as(other, claim.trial, host="elsewhere", time=0.0)
        wait_for(lambda: last_beat() > first, "a heartbeat of this process again")
        other._end(claim.trial)
        wait_for(lambda: beats.lost, "the loss of the job was noticed")


def test_a_search_has_one_controller(storage: str) -> None:
    ledger, other = opened(storage), opened(storage)
    for _ in range(2):
        with ledger.lead():
            with (
                pytest.raises(RuntimeError, match="has a controller already") as error,
                other.lead(),
            ):
                pass
            assert f"process {os.getpid()} on {socket.gethostname()}" in str(error.value)
            assert "--worker" in str(error.value)
    with other.lead() as beats:
        mine = other._trials((optuna.trial.TrialState.RUNNING,))[0]
        stamp_as(other, mine._trial_id, host="elsewhere", time=0.0)
        with ledger.lead():
            assert other._storage.get_trial(mine._trial_id).state.is_finished()
    assert not beats.lost
    assert ledger.counts() == JobCounts(0, 0, 0, 0)


def test_of_controllers_that_start_at_once_at_most_one_leads(journal: str) -> None:
    ledgers, done = [opened(journal) for _ in range(4)], Barrier(4)

    def lead(ledger: Ledger) -> bool:
        try:
            with ledger.lead():
                done.wait()  # until the others have tried
                return True
        except RuntimeError:
            done.wait()
            return False

    assert sum(at_once(lead, ledgers)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["in", *(pytest.param(how, marks=pytest.mark.slow) for how in ("before", "after"))]
)
@pytest.mark.parametrize(
    ("act", "writes"), [("work", 4), ("release", 4), ("enqueue", 2), ("lead", 2)]
)
def test_a_kill_at_any_write_loses_nothing(
    journal: str, tmp_path: Path, act: str, writes: int, how: str
) -> None:
    log, jobs = tmp_path / "log", child.jobs(3)
    ledger = opened(journal)
    if act != "enqueue":
        ledger.enqueue(jobs)
    for number in range(1, writes + 1):
        process = started(child.die_at_write, journal, str(log), act, number, how)
        assert ended(process) == -signal.SIGKILL
        with FileLock(f"{journal}.flock", timeout=0):  # the kernel has released the lock
            assert not Path(f"{journal}.lock").exists()
        for reader in (ledger, opened(journal)):  # the journal is readable
            reader.counts()
        ledger.reap(0.0)
        ledger.reap(0.0)  # without a heartbeat, the age counts from the first reap
        counts = ledger.counts()
        with ledger.lead(0.0):  # the role of a killed controller is free
            pass
        added = 3 if act != "enqueue" else counts.waiting  # those that it has added
        assert counts.running == 0 and counts.waiting + counts.finished == added
    ledger.enqueue(jobs)
    before, runs = len(ledger.outcomes()), len(lines(log))
    assert work(ledger, child.outcome_of, idle=lambda: False) == 3 - before
    assert completed(journal) == {job.key: 1 for job in jobs}
    assert ledger.outcomes() == {job.key: child.outcome_of(job) for job in jobs}
    # The writes: started, heartbeat, outcome, finished. The fit is between the second and third.
    if act == "work":
        assert (runs, before) == (2, 2 if how == "after" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_stopped_returns_its_job(
    journal: str, tmp_path: Path, number: int
) -> None:
    ledger, log = opened(journal), tmp_path / "log"
    ledger.enqueue(JOBS)
    process = started(child.run_until_stopped, journal, str(log))
    wait_for(lambda: lines(log), "a fit has started")
    assert ledger.counts() == JobCounts(3, 1, 0, 1)
    os.kill(process.pid or 0, number)
    assert ended(process) == (143 if number == signal.SIGTERM else 1)
    assert ledger.counts() == JobCounts(4, 0, 0, 0)
    assert ledger.reap(0.0) == 0


@pytest.mark.slow
def test_workers_stop_trying_a_job_that_raises(journal: str, tmp_path: Path) -> None:
    ledger, log = opened(journal), str(tmp_path / "log")
    ledger.enqueue(JOBS[:1])
    workers = [started(child.run_until_stopped, journal, log, False) for _ in range(2)]
    wait_for(ledger.errors, "an error that ends the search")
    assert "ArithmeticError: a bug in job 0" in ledger.errors()[JOBS[0].key]
    ledger.finished = True
    assert [ended(process) for process in workers] == [0, 0]
    assert len(ledger._trials()) == MAX_ERRORS == 2


def test_an_interrupted_controller_returns_its_job(
    journal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = opened(journal)
    ledger.enqueue(JOBS[:1])

    def interrupt(job: Any) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_one(ledger, interrupt)
    assert ledger.counts() == JobCounts(1, 0, 0, 0)
    assert "job 0 is back in the queue" in capsys.readouterr().err
    assert work_one(ledger, child.outcome_of)
    assert not work_one(ledger, child.outcome_of)


@pytest.mark.slow
def test_killed_processes_neither_lose_nor_repeat_a_finished_job(
    storage: str, tmp_path: Path
) -> None:
    count, kills = (60, 20) if "://" not in storage else (12, 5)
    log, enough, rng = tmp_path / "log", tmp_path / "enough", random.Random(7)
    roles = [(child.run_controller, (storage, str(log), str(enough)))]
    roles += [(child.run_worker, (storage, str(log)))] * 3
    running = [started(target, *args) for target, args in roles]

    def kill(places: range) -> None:
        for place in places:
            running[place].kill()
        assert {ended(running[place]) for place in places} == {-signal.SIGKILL}
        for place in places:
            target, args = roles[place]
            running[place] = started(target, *args)

    try:
        for turn in range(kills):
            begun = len(lines(log))
            wait_for(lambda b=begun: len(lines(log)) >= b + 2, "two more fits have started")
            victim = rng.randrange(4)
            running[victim].join(rng.uniform(0.0, 0.05))  # a random moment
            kill(range(4) if turn == kills // 2 else range(victim, victim + 1))
        wait_for(lambda: len(set(lines(log))) >= count, f"{count} jobs have started")
        enough.touch()
        assert [ended(process) for process in running] == [0] * 4
    finally:
        for process in running:
            process.kill()
    jobs = child.jobs(len(set(lines(log))))
    assert len(jobs) >= count  # part of the last step is missing if its controller was killed
    assert completed(storage) == {job.key: 1 for job in jobs}
    found = opened(storage)
    scores = {key: outcome.score for key, outcome in found.outcomes().items()}
    assert scores == {job.key: child.outcome_of(job).score for job in jobs}
    assert found.counts() == JobCounts(0, 0, len(jobs), 0)
    # A kill repeats at most the fit that it interrupts; one of the kills ended four processes.
    assert len(jobs) <= len(lines(log)) <= len(jobs) + kills + 3
