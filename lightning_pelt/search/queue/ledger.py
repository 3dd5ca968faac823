"""The ledger of a search: which jobs are waiting, running and finished, stored by Optuna.

Every attempt at a job is an Optuna *trial*. The ledger relies on three guarantees of Optuna: a
waiting trial starts once, a trial ends once, and trials are numbered in the order in which they
were added. An attempt that ends without an outcome is followed by another one, whose ``attempt`` is
higher by one. Any process that finds the next attempt missing adds it; if several do, only the
first one counts. So no job is lost, whichever process is killed between any two steps, and no job
is finished twice.
"""

from __future__ import annotations

import json
import logging
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from lightning_pelt.search.config_diff import differences
from lightning_pelt.search.queue.heartbeat import (
    TIMEOUT,
    Heartbeat,
    Witness,
    is_alive,
    process_stamp,
)
from lightning_pelt.search.queue.job import Job, JobCounts, Outcome
from lightning_pelt.search.queue.records import (
    ATTEMPT,
    ERROR,
    ERRORS,
    JOB,
    KEY,
    LABEL,
    LEADER,
    OUTCOME,
    OWNER,
    check_records,
    has_run,
    is_lost,
    job_of,
    outcome_of,
    outcome_record,
    process_of,
    value_of,
)
from lightning_pelt.search.queue.storage import damage_reported, open_storage
from lightning_pelt.utils.urls import masked

MAX_ERRORS = 2  # attempts at a job that may end with an exception

# Attributes of a study. The names are part of the file format.
_ABOUT = "lightning_pelt"  # {"settings": ...}
_FINISHED = "finished"
_ID = "id"
_RUNNING = (TrialState.RUNNING,)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """A job that this process runs; :meth:`Ledger.hold` keeps the claim alive."""

    job: Job
    trial: int


class Ledger:
    """The jobs of one search, shared by any number of processes.

    Args:
        storage: path of a journal (for one host, or a file system that hosts share), or URL of a
            database: ``"postgresql://..."`` or ``"sqlite:///..."``.
        name: name of the search; a storage holds several searches.
        settings: everything that determines the jobs, as plain nested data.

    Raises:
        ValueError: the search was started with other settings, or the storage holds something else.
        DamagedLedger: a record of the ledger is lost, repeated or changed, so that an outcome would
            count for another job. Every method may raise it.
        ConnectionError: the database server cannot be reached.

    Example::

        ledger = Ledger("runs/search/ledger.journal", "search", {"backbone": "bert-base-uncased"})
        ledger.enqueue([job])
        claim = ledger.claim()
        with ledger.hold(claim):
            outcome = run(claim.job)
        ledger.finish(claim, outcome)
    """

    def __init__(self, storage: str, name: str, settings: Mapping[str, Any]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name, self.where = name, masked(storage)
        self._storage = open_storage(storage)
        with damage_reported(storage):
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                direction="maximize",
                sampler=RandomSampler(),  # never samples; other samplers read the trials
                load_if_exists=True,
            )
        self._outcomes: dict[str, Outcome] = {}
        self._lost: set[str] = set()  # keys of jobs whose outcome is lost
        self._witness = Witness()
        self._check_settings(json.loads(json.dumps(settings)))
        self._trials()  # raises if the ledger is damaged

    def _check_settings(self, settings: dict[str, Any]) -> None:
        if _ABOUT not in (attributes := self._study.user_attrs):
            if attributes or self._trials():
                raise ValueError(
                    f"{self.where} holds a study {self.name!r} that is not a search of "
                    "lightning-pelt: give the search another name or storage"
                )
            self._study.set_user_attr(_ABOUT, {"settings": settings})
        about = self._study.user_attrs[_ABOUT]
        stored = about.get("settings") if isinstance(about, dict) else about
        if changes := list(differences(stored, settings)):
            raise ValueError(
                f"the search {self.name!r} in {self.where} was started with other settings:\n  "
                + "\n  ".join(changes)
                + "\nContinue with the old configuration, or give the new one another name or "
                "storage"
            )

    def _trials(self, states: tuple[TrialState, ...] | None = None) -> list[FrozenTrial]:
        with damage_reported(self.where):
            found = self._study.get_trials(deepcopy=False, states=states)
        for trial in found:
            check_records(trial, self.where)
        return found

    def _latest(self) -> dict[str, FrozenTrial]:
        """The trial of each job that counts: the first one of the last attempt, by number."""
        latest: dict[str, FrozenTrial] = {}
        for trial in self._trials():
            key = trial.user_attrs.get(KEY)
            if key is None:
                continue
            before = latest.get(key)
            if before is None or trial.user_attrs[ATTEMPT] > before.user_attrs[ATTEMPT]:
                latest.pop(key, None)  # keeps the order by number
                latest[key] = trial
        return latest

    def enqueue(self, jobs: Iterable[Job]) -> int:
        """Add jobs to the queue, except those that the ledger already holds in any state.

        Returns:
            Number of jobs that were added.
        """
        latest, added = self._latest(), 0
        for job in {job.key: job for job in jobs}.values():
            if job.key not in latest:
                about = {KEY: job.key, JOB: job.to_json(), LABEL: job.label}
                self._study.enqueue_trial({}, {**about, ATTEMPT: 0, ERRORS: 0})
                added += 1
            else:
                added += self._retry(latest[job.key])
        return added

    def _retry(self, trial: FrozenTrial, *, forget_errors: bool = False) -> bool:
        """Queue another attempt if this one, the job's last, failed; not after too many errors."""
        errors = 0 if forget_errors else _errors(trial)
        failed = trial.state == TrialState.FAIL or is_lost(trial)
        if not failed or errors >= MAX_ERRORS:
            return False
        about = {name: trial.user_attrs[name] for name in (KEY, JOB, LABEL)}
        attempt = trial.user_attrs[ATTEMPT] + 1
        self._study.enqueue_trial({}, {**about, ATTEMPT: attempt, ERRORS: errors})
        return True

    def claim(self) -> Claim | None:
        """Take the job that has waited longest; None if no job waits."""
        # Like Optuna's ask(), except that ask() creates a trial when none waits.
        for trial in self._latest().values():
            if trial.state == TrialState.WAITING and self._start(trial._trial_id):
                job = job_of(trial, self.where)
                self._write_heartbeat(trial._trial_id, job.key)
                return Claim(job, trial._trial_id)
        return None

    def _start(self, trial: int) -> bool:
        try:
            return self._storage.set_trial_state_values(trial, TrialState.RUNNING)
        except UpdateFinishedTrialError:  # started and ended since it was read
            return False

    def _write_heartbeat(self, trial: int, key: str) -> None:
        self._storage.set_trial_user_attr(trial, OWNER, {**process_stamp(), KEY: key})

    def hold(self, claim: Claim) -> Heartbeat:
        """A ``with`` block during which a thread writes heartbeats for the claim."""
        return Heartbeat(lambda: self._write_heartbeat(claim.trial, claim.job.key))

    def finish(self, claim: Claim, outcome: Outcome) -> bool:
        """Store the outcome of a job. A diverged fit is finished too and is not run again.

        Returns:
            False if the claim was taken away in the meantime (:meth:`reap`); the outcome is then
            not stored.

        Raises:
            ValueError: the score is NaN or infinite. The score of a diverged fit is None.
        """
        if outcome.score is not None and not math.isfinite(outcome.score):
            raise ValueError(
                f"the score of {claim.job.label or claim.job.key!r} is {outcome.score}: it must "
                "be a finite number of points, or None if the fit diverged"
            )
        try:
            record = outcome_record(claim.job, outcome)
            self._storage.set_trial_user_attr(claim.trial, OUTCOME, record)
        except UpdateFinishedTrialError:
            return False
        self._end(claim.trial)
        return self._storage.get_trial(claim.trial).state == TrialState.COMPLETE

    def release(self, claim: Claim) -> None:
        """Return an unfinished job to the end of the queue."""
        self._end(claim.trial)
        self.enqueue([claim.job])

    def fail(self, claim: Claim, error: str) -> None:
        """Return a job whose fit raised ``error``; it is tried once more. See :meth:`errors`."""
        try:
            self._storage.set_trial_user_attr(claim.trial, ERROR, error)
        except UpdateFinishedTrialError:  # taken away: another process has the next attempt
            return
        self.release(claim)

    def _end(self, trial: int) -> bool:
        """End a running trial. True if this call ended it and it has no outcome."""
        outcome = self._storage.get_trial(trial).user_attrs.get(OUTCOME)
        try:
            if outcome is None:
                self._storage.set_trial_state_values(trial, TrialState.FAIL)
                return True
            value = value_of(outcome["score"])
            self._storage.set_trial_state_values(trial, TrialState.COMPLETE, [value])
        except UpdateFinishedTrialError:
            pass
        return False

    def reap(self, timeout: float = TIMEOUT) -> int:
        """Return the running jobs of dead processes to the queue.

        A process of this host is dead if it no longer exists. For a process of another host, see
        :class:`Witness`. Any number of processes may call this at the same time.

        Returns:
            Number of jobs that this call took back.
        """
        latest, taken = self._latest(), 0
        for trial in latest.values():
            if trial.state == TrialState.RUNNING and self._is_abandoned(trial, timeout):
                taken += self._end(trial._trial_id)
        # Includes the jobs of a process that was killed after it had ended the trial.
        for trial in (self._latest() if taken else latest).values():
            self._retry(trial)
        return taken

    def _is_abandoned(self, trial: FrozenTrial, timeout: float) -> bool:
        return self._witness.is_silent(trial._trial_id, trial.user_attrs.get(OWNER), timeout)

    def outcomes(self) -> dict[str, Outcome]:
        """Outcomes of the finished jobs, by the jobs' keys."""
        for trial in self._trials((TrialState.COMPLETE,)):
            key = trial.user_attrs.get(KEY)
            if key is None or key in self._outcomes:
                continue
            if (outcome := outcome_of(trial, self.where)) is not None:
                self._outcomes[key] = outcome
            elif key not in self._lost:
                self._lost.add(key)
                name = trial.user_attrs[LABEL] or key
                _logger.warning(
                    "%s has lost the outcome of %s, which is run again", self.where, name
                )
        return dict(self._outcomes)

    def errors(self) -> dict[str, str]:
        """Errors that end the search, by the jobs' keys: every attempt at the job raised one."""
        return {
            key: trial.user_attrs[ERROR]
            for key, trial in self._latest().items()
            if trial.state == TrialState.FAIL and _errors(trial) >= MAX_ERRORS
        }

    def counts(self, timeout: float = TIMEOUT) -> JobCounts:
        """Number of jobs in each state, and of live processes that run one or have run one."""
        latest = self._latest().values()
        states = [trial.state for trial in latest]
        running = [trial for trial in latest if trial.state == TrialState.RUNNING]
        busy = {
            process_of(trial)
            for trial in running
            if OWNER in trial.user_attrs and not self._is_abandoned(trial, timeout)
        }
        others = {process_of(trial): trial for trial in self._trials() if has_run(trial)}
        idle = [
            trial
            for process, trial in others.items()
            if process not in busy and is_alive(trial.user_attrs[OWNER], timeout)
        ]
        return JobCounts(
            waiting=states.count(TrialState.WAITING),
            running=len(running),
            finished=states.count(TrialState.COMPLETE),
            workers=len(busy),
            idle=len(idle),
        )

    @property
    def finished(self) -> bool:
        """Whether the search is finished; its workers then exit."""
        return bool(self._study.user_attrs.get(_FINISHED, False))

    @finished.setter
    def finished(self, finished: bool) -> None:
        self._study.set_user_attr(_FINISHED, finished)

    @property
    def group(self) -> str:
        """Names the search among others: its name, and an identifier that its first leader drew."""
        identifier = self._study.user_attrs.get(_ID)
        return self.name if identifier is None else f"{self.name}-{identifier}"

    @contextmanager
    def lead(self, timeout: float = TIMEOUT) -> Iterator[Heartbeat]:
        """Act as the only controller of the search for a ``with`` block.

        Jobs that ended an earlier run with an error get new attempts.

        Raises:
            RuntimeError: a live process is already the controller: on this host, it exists; on
                another one, its last heartbeat is at most ``timeout`` seconds old.
        """
        # The role is a trial, too: of all processes that ask for it, the first live one has it.
        name = uuid.uuid4().hex
        attributes = {LEADER: name, OWNER: {**process_stamp(), KEY: name}}
        self._study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs=attributes))
        for trial in self._trials(_RUNNING):
            if trial.user_attrs.get(LEADER) == name:
                break
            if LEADER not in trial.user_attrs:
                continue
            if self._leads(trial, timeout):
                self._end(self._leader_trial(name))
                raise RuntimeError(_refusal(self.name, trial.user_attrs[OWNER], timeout))
            self._end(trial._trial_id)
        own = self._leader_trial(name)
        try:
            if _ID not in self._study.user_attrs:
                self._study.set_user_attr(_ID, uuid.uuid4().hex[:8])
            for trial in self._latest().values():
                self._retry(trial, forget_errors=True)
            with Heartbeat(lambda: self._write_heartbeat(own, name)) as heartbeat:
                yield heartbeat
        finally:
            self._end(own)

    def _leads(self, trial: FrozenTrial, timeout: float) -> bool:
        """Whether the process of a controller's trial lives, by its last heartbeat alone."""
        stamp = trial.user_attrs.get(OWNER)
        return not self._is_abandoned(trial, timeout) if stamp is None else is_alive(stamp, timeout)

    def _leader_trial(self, name: str) -> int:
        trials = self._trials(_RUNNING)
        return next(t._trial_id for t in trials if t.user_attrs.get(LEADER) == name)


def _errors(trial: FrozenTrial) -> int:
    """Number of attempts at the job that ended with an error, this one included."""
    return int(trial.user_attrs[ERRORS]) + (ERROR in trial.user_attrs)


def _refusal(name: str, owner: Mapping[str, Any], timeout: float) -> str:
    return (
        f"the search {name!r} has a controller already: process {owner['pid']} on {owner['host']}. "
        "Start this process with --worker, so that it only runs jobs. If that host has failed, "
        f"another controller can start {timeout:g} s after its last heartbeat"
    )
