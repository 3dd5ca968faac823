"""The ledger of a search: what it keeps whoever is killed, and what it refuses."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest

optuna = pytest.importorskip("optuna", reason="optuna is not installed: extra `search`")

import search_worker_process as child  # noqa: E402

from lightning_pelt.search import alive  # noqa: E402
from lightning_pelt.search.cell import Outcome  # noqa: E402
from lightning_pelt.search.ledger import TRIES, Claim, Counts, Ledger  # noqa: E402
from lightning_pelt.search.storage import _Lock  # noqa: E402
from lightning_pelt.search.worker import work, work_one  # noqa: E402

DEADLINE = 120.0
CELLS = child.cells(4)


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of each kind that nothing is in yet."""
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
    """A process of its own that need not import everything again."""
    context = get_context("forkserver")
    slow = ["pytest", "sqlite3", "psycopg", "sqlalchemy.dialects.postgresql.psycopg"]  # to import
    context.set_forkserver_preload(["search_worker_process", *slow])
    process = context.Process(target=target, args=args)
    process.start()
    return process


def ended(process: ForkServerProcess) -> int | None:
    process.join(DEADLINE)
    return process.exitcode


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"in {DEADLINE} s: not {what}"
        time.sleep(0.005)


def at_once(act: Callable[[Any], Any], ledgers: Sequence[Any]) -> list[Any]:
    """What ``act`` gives for each, called at the same moment."""
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
    """How often each cell is finished, as Optuna itself sees it."""
    if "://" in storage:
        place: Any = storage.replace("postgresql:", "postgresql+psycopg:")
    else:
        backend = optuna.storages.journal.JournalFileBackend(storage)
        place = optuna.storages.JournalStorage(backend)
    trials = optuna.load_study(study_name="search", storage=place).get_trials(
        states=(optuna.trial.TrialState.COMPLETE,)
    )
    return Counter(trial.user_attrs["key"] for trial in trials)


def test_cells_are_taken_in_order_and_finished_once(storage: str) -> None:
    one, other = opened(storage), opened(storage)
    assert one.claim() is None
    assert one.enqueue(CELLS) == 4
    assert one.enqueue([*CELLS, *CELLS]) == other.enqueue(CELLS) == 0
    claims = [taken(one), taken(other), taken(one)]
    assert [claim.cell for claim in claims] == CELLS[:3]
    assert [claim.cell.label for claim in claims] == ["cell 0", "cell 1", "cell 2"]
    assert other.counts() == Counts(waiting=1, running=3, finished=0, workers=1)

    assert one.finish(claims[0], Outcome(70.5, 2.0, {"accuracy": 0.705}))
    assert other.finish(claims[1], Outcome(None, metrics={"loss": float("inf")}))
    one.release(claims[2])
    assert one.enqueue(CELLS) == 0
    assert one.counts() == other.counts() == Counts(2, 0, 2, 0)
    for ledger in (one, other, opened(storage)):
        found = ledger.outcomes()
        assert found == {
            CELLS[0].key: Outcome(70.5, 2.0, {"accuracy": 0.705}),
            CELLS[1].key: Outcome(None, metrics={"loss": float("inf")}),
        }
    assert [taken(other).cell, taken(one).cell] == [CELLS[3], CELLS[2]]
    assert one.claim() is None
    assert completed(storage) == {CELLS[0].key: 1, CELLS[1].key: 1}


def test_a_search_is_over_for_everybody_and_its_study_holds_nothing_made_up(storage: str) -> None:
    one, other = opened(storage), opened(storage)
    one.enqueue(CELLS)
    assert not other.finished
    assert work(one, child.outcome_of, idle=lambda: False) == 4
    assert one.claim() is None
    one.finished = True
    assert other.finished
    assert work(other, child.outcome_of) == 0
    assert sum(completed(storage).values()) == len(one._trials()) == 4
    one.finished = False
    assert not other.finished


def test_an_error_gets_one_more_try_and_a_new_leader_two(storage: str) -> None:
    ledger = opened(storage)
    ledger.enqueue(CELLS[:2])

    def fails(cell: Any) -> Outcome:
        if cell == CELLS[0]:
            raise ArithmeticError("no such thing")
        return Outcome(1.0)

    for tries in (3, 0):
        assert work(ledger, fails, idle=lambda: False) == tries
        assert list(ledger.errors()) == [CELLS[0].key]
        assert "ArithmeticError: no such thing" in ledger.errors()[CELLS[0].key]
        assert ledger.enqueue(CELLS[:2]) == ledger.reap(0.0) == 0
    with ledger.lead():
        assert ledger.errors() == {}
        assert work(ledger, fails, idle=lambda: False) == 2
        assert len(ledger.errors()) == 1
    with ledger.lead():
        assert work(ledger, child.outcome_of, idle=lambda: False) == 1
    assert ledger.errors() == {} and len(ledger.outcomes()) == 2


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused(journal: str, score: float) -> None:
    ledger = opened(journal)
    ledger.enqueue(CELLS)
    claim = taken(ledger)
    with pytest.raises(ValueError, match=r"'cell 0' is (nan|inf).* None if the fit diverged"):
        ledger.finish(claim, Outcome(score))
    assert ledger.outcomes() == {}


def test_another_configuration_is_refused_with_everything_that_differs(storage: str) -> None:
    opened(storage, seed=3)
    changed = [{"name": "rte", "rows": 200}]
    with pytest.raises(ValueError, match="begun with other settings") as error:
        Ledger(storage, "search", {"model": "tiny", "tasks": changed, "budget": 0.5})
    said = str(error.value).splitlines()
    assert said[1:4] == [
        "  tasks.0.rows: 100 -> 200",
        "  seed: 3 -> (absent)",
        "  budget: (absent) -> 0.5",
    ]
    assert "old configuration" in said[4] and "another name or storage" in said[4]
    opened(storage, seed=3)
    Ledger(storage, "another", {"model": "other"})


def test_a_storage_that_holds_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
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
    with pytest.raises(ValueError, match="'search' that is no search of lightning-pelt"):
        opened(foreign)
    with pytest.raises(ConnectionError, match="cannot reach postgresql"):
        opened(f"postgresql://me:secret@/db?host={tmp_path}")


def test_a_line_broken_in_the_middle_of_a_journal_is_named_as_damage(journal: str) -> None:
    opened(journal).enqueue(CELLS)
    text = Path(journal).read_text().splitlines(keepends=True)
    Path(journal).write_text("".join([*text[:3], text[3][:40] + "\n", *text[4:]]))
    with pytest.raises(ValueError, match=r"search\.journal is damaged"):
        opened(journal)


def test_cells_that_many_add_and_take_back_at_once_are_there_once(storage: str) -> None:
    cells = child.cells(8)
    ledgers = at_once(lambda _: opened(storage), range(4))
    at_once(lambda ledger: ledger.enqueue(cells), ledgers)
    found = at_once(lambda ledger: [taken(ledger) for _ in range(2)], ledgers)
    claims = [claim for some in found for claim in some]
    assert {claim.cell.key for claim in claims} == {cell.key for cell in cells}
    assert ledgers[0].claim() is None

    for claim in claims:
        sign_as(ledgers[0], claim.trial, pid=_gone())
    assert sum(at_once(lambda ledger: ledger.reap(1e9), ledgers)) == 8
    assert ledgers[0].counts() == Counts(8, 0, 0, 0)
    again = at_once(lambda ledger: [taken(ledger) for _ in range(2)], ledgers)
    assert {claim.cell.key for some in again for claim in some} == {cell.key for cell in cells}
    assert ledgers[0].claim() is None
    assert not ledgers[0].finish(claims[0], Outcome(1.0))
    assert ledgers[0].outcomes() == {}


def test_of_copies_that_were_added_at_once_only_the_first_is_run(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = opened(storage), opened(storage)
    claims: list[Claim] = []
    for add in (lambda ledger: ledger.enqueue(CELLS[:2]), lambda ledger: ledger.reap(1e9)):
        for claim in claims:
            one._end(claim.trial)  # as if it was killed before it could give the cell back
        before = other._latest()
        add(one)
        claims = [taken(one), taken(one)]
        with monkeypatch.context() as stale:
            stale.setattr(other, "_latest", lambda before=before: before)
            add(other)
        assert other.counts() == Counts(0, 2, 0, 1)
        assert other.claim() is None
    assert len(one._trials()) == 8  # two cells, two turns, two of each
    assert [one.finish(claim, Outcome(1.0)) for claim in claims] == [True, True]
    assert other.claim() is None
    assert completed(storage) == {CELLS[0].key: 1, CELLS[1].key: 1}


def test_writers_of_a_journal_take_turns(journal: str) -> None:
    opened(journal)
    first, second, order = _Lock(Path(journal)), _Lock(Path(journal)), []
    first.acquire()
    waits = Thread(target=lambda: second.acquire() and order.append("second"))
    waits.start()
    waits.join(0.1)
    order.append("first")
    first.release()
    waits.join()
    assert order == ["first", "second"]


def sign_as(ledger: Ledger, trial: int, **changes: Any) -> None:
    sign = {**alive.sign_of_life(), **changes}
    ledger._storage.set_trial_user_attr(trial, "owner", sign)


def _gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("changes", "dead"),
    [
        ({}, False),
        ({"time": 0.0}, False),  # of this host: silent, but there
        ({"born": 1}, True),  # another process with the same number
        ({"host": "elsewhere", "pid": 0}, False),
        ({"host": "elsewhere", "time": 0.0}, True),
        ({"where": "another container", "born": 1}, False),
    ],
)
def test_who_is_alive(journal: str, changes: dict[str, Any], dead: bool) -> None:
    ledger = opened(journal)
    ledger.enqueue(CELLS[:1])
    claim = taken(ledger)
    sign_as(ledger, claim.trial, **changes)
    assert ledger.counts(60.0).workers == (not dead)
    assert ledger.reap(60.0) == dead
    assert ledger.reap(60.0) == 0
    assert ledger.counts() == (Counts(1, 0, 0, 0) if dead else Counts(0, 1, 0, int(not dead)))
    assert ledger.finish(claim, Outcome(1.0)) is not dead


def test_an_ended_process_whose_parent_has_not_looked_is_dead() -> None:
    process = subprocess.Popen(["true"])
    sign = {**alive.sign_of_life(), "pid": process.pid, "born": alive._born(process.pid)}
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert Path(f"/proc/{process.pid}").exists()
    assert alive._born(process.pid) is None
    assert sign["born"] is None or not alive.is_alive(sign, 1e9)
    process.wait()


def test_signs_of_life_go_on_while_a_cell_runs(
    journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alive, "BEAT", 0.01)
    ledger, other = opened(journal), opened(journal)
    ledger.enqueue(CELLS[:1])
    claim = taken(ledger)

    def time_of_sign() -> float:
        return float(other._trials()[0].user_attrs["owner"]["time"])

    first = time_of_sign()
    with ledger.held(claim) as pulse:
        wait_for(lambda: time_of_sign() > first, "another sign of life")
        assert not pulse.lost
        sign_as(other, claim.trial, host="elsewhere", time=0.0)
        wait_for(lambda: time_of_sign() > first, "a sign of life of ours again")
        other._end(claim.trial)
        wait_for(lambda: pulse.lost, "noticed that the cell was taken away")


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
    with other.lead() as pulse:
        mine = other._trials((optuna.trial.TrialState.RUNNING,))[0]
        sign_as(other, mine._trial_id, host="elsewhere", time=0.0)
        with ledger.lead():
            assert other._storage.get_trial(mine._trial_id).state.is_finished()
    assert not pulse.lost
    assert ledger.counts() == Counts(0, 0, 0, 0)


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


@pytest.mark.parametrize("how", ["before", "in", "after"])
@pytest.mark.parametrize(
    ("act", "writes"), [("work", 4), ("release", 4), ("enqueue", 2), ("lead", 2)]
)
def test_a_kill_at_any_write_loses_nothing(
    journal: str, tmp_path: Path, act: str, writes: int, how: str
) -> None:
    log, cells = tmp_path / "log", child.cells(3)
    ledger = opened(journal)
    if act != "enqueue":
        ledger.enqueue(cells)
    for number in range(1, writes + 1):
        process = started(child.die_at_write, journal, str(log), act, number, how)
        assert ended(process) == -signal.SIGKILL
        at = time.monotonic()
        for reader in (ledger, opened(journal)):  # nothing that was read before is unreadable
            reader.counts()
        ledger.reap(0.0)
        ledger.reap(0.0)  # of whoever had no time to sign, the time since the first is known
        counts = ledger.counts()
        with ledger.lead(0.0):  # the place of a killed leader is free
            pass
        added = 3 if act != "enqueue" else counts.waiting  # of those, whichever it came to
        assert counts.running == 0 and counts.waiting + counts.finished == added
        assert time.monotonic() - at < 20  # and no lock has to be waited for
    ledger.enqueue(cells)
    before, runs = len(ledger.outcomes()), len(lines(log))
    assert work(ledger, child.outcome_of, idle=lambda: False) == 3 - before
    assert completed(journal) == {cell.key: 1 for cell in cells}
    assert ledger.outcomes() == {cell.key: child.outcome_of(cell) for cell in cells}
    # Its writes: begun, signed, what it came to, finished. The fit is between the second and third.
    if act == "work":
        assert (runs, before) == (2, 2 if how == "after" else 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_stop_gives_its_cell_back(
    journal: str, tmp_path: Path, number: int
) -> None:
    ledger, log = opened(journal), tmp_path / "log"
    ledger.enqueue(CELLS)
    process = started(child.run_until_told, journal, str(log))
    wait_for(lambda: lines(log), "a fit begun")
    assert ledger.counts() == Counts(3, 1, 0, 1)
    os.kill(process.pid or 0, number)
    assert ended(process) == (143 if number == signal.SIGTERM else 1)
    assert ledger.counts() == Counts(4, 0, 0, 0)
    assert ledger.reap(0.0) == 0


def test_workers_stop_trying_a_cell_that_raises(journal: str, tmp_path: Path) -> None:
    ledger, log = opened(journal), str(tmp_path / "log")
    ledger.enqueue(CELLS[:1])
    workers = [started(child.run_until_told, journal, log, False) for _ in range(2)]
    wait_for(ledger.errors, "an error that ends the search")
    assert "ArithmeticError: a bug in cell 0" in ledger.errors()[CELLS[0].key]
    ledger.finished = True
    assert [ended(process) for process in workers] == [0, 0]
    assert len(ledger._trials()) == TRIES == 2


def test_an_interrupt_of_a_controller_gives_its_cell_back(
    journal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = opened(journal)
    ledger.enqueue(CELLS[:1])

    def interrupt(cell: Any) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_one(ledger, interrupt)
    assert ledger.counts() == Counts(1, 0, 0, 0)
    assert "cell 0 is back in the queue" in capsys.readouterr().err
    assert work_one(ledger, child.outcome_of)
    assert not work_one(ledger, child.outcome_of)


@pytest.mark.slow
def test_killed_processes_neither_lose_nor_repeat_a_finished_cell(
    storage: str, tmp_path: Path
) -> None:
    count, kills = (60, 20) if "://" not in storage else (12, 5)
    log, enough, rng = tmp_path / "log", tmp_path / "enough", random.Random(7)
    roles = [(child.run_leader, (storage, str(log), str(enough)))]
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
            wait_for(lambda b=begun: len(lines(log)) >= b + 2, "two more fits begun")
            victim = rng.randrange(4)
            running[victim].join(rng.uniform(0.0, 0.05))  # a random moment
            kill(range(4) if turn == kills // 2 else range(victim, victim + 1))
        wait_for(lambda: len(set(lines(log))) >= count, f"{count} cells begun")
        enough.touch()
        assert [ended(process) for process in running] == [0] * 4
    finally:
        for process in running:
            process.kill()
    cells = child.cells(len(set(lines(log))))
    assert len(cells) >= count  # of the last step perhaps a part: its leader was killed asking
    assert completed(storage) == {cell.key: 1 for cell in cells}
    found = opened(storage)
    scores = {key: outcome.score for key, outcome in found.outcomes().items()}
    assert scores == {cell.key: child.outcome_of(cell).score for cell in cells}
    assert found.counts() == Counts(0, 0, len(cells), 0)
    # A kill costs at most the one fit that it interrupts, and one of them was of four processes.
    assert len(cells) <= len(lines(log)) <= len(cells) + kills + 3
