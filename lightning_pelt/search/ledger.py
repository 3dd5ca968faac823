"""The ledger of a search: which cells wait, run and are finished, kept by Optuna.

A cell's turn is a *trial* of Optuna, and what is never undone there carries everything here: a
waiting trial starts once, a trial ends once, and trials are numbered in the order in which they
were added. A turn that ends without an outcome is followed by another, whose ``attempt`` is one
higher. Whoever sees that it is missing adds it; of several with the same number only the first
counts. So nothing is lost whichever process is killed between any two steps, and no cell is
finished twice.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from lightning_pelt.search.alive import STALE, Pulse, is_alive, sign_of_life
from lightning_pelt.search.cell import Cell, Outcome
from lightning_pelt.search.differences import differences
from lightning_pelt.search.storage import open_storage

TRIES = 2  # that a cell gets whose fit raises an error

_ABOUT = "lightning_pelt"  # of a study: {"settings": ...}
_FINISHED = "finished"
# Of a trial: what it is about, ...
_KEY, _CELL, _LABEL, _ATTEMPT, _ERRORS = "key", "cell", "label", "attempt", "errors"
_LEADER = "leader"
# ... who has it, and what it came to.
_OWNER, _OUTCOME, _ERROR = "owner", "outcome", "error"
_RUNNING = (TrialState.RUNNING,)


@dataclass(frozen=True)
class Claim:
    """A cell that this process runs. Within :meth:`Ledger.held` others see that it is alive."""

    cell: Cell
    trial: int


@dataclass(frozen=True)
class Counts:
    """Cells by where they are, and the living processes that hold one."""

    waiting: int
    running: int
    finished: int
    workers: int


class Ledger:
    """The cells of one search, shared by any number of processes.

    Args:
        storage: path of a journal (for one host, or a file system that hosts share), or URL of a
            database: ``"postgresql://..."`` or ``"sqlite:///..."``.
        name: of the search; a storage holds several.
        settings: everything that determines the cells, as plain nested data.

    Raises:
        ValueError: the search was begun with other settings, or the storage holds something else.
        ConnectionError: the database's server cannot be reached.
    """

    def __init__(self, storage: str, name: str, settings: Mapping[str, Any]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name = name
        self._storage = open_storage(storage)
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=name,
            direction="maximize",
            sampler=RandomSampler(),  # samples nothing, and unlike others looks at no trial
            load_if_exists=True,
        )
        self._agree(storage, json.loads(json.dumps(settings)))
        self._outcomes: dict[str, Outcome] = {}
        self._unsigned: dict[int, float] = {}  # trials without a sign of life: since when

    def _agree(self, storage: str, settings: dict[str, Any]) -> None:
        if _ABOUT not in (attributes := self._study.user_attrs):
            if attributes or self._trials():
                raise ValueError(
                    f"{storage} holds a study {self.name!r} that is no search of lightning-pelt: "
                    "give the search another name or storage"
                )
            self._study.set_user_attr(_ABOUT, {"settings": settings})
        kept = self._study.user_attrs[_ABOUT]["settings"]
        if changes := list(differences(kept, settings)):
            raise ValueError(
                f"the search {self.name!r} in {storage} was begun with other settings:\n  "
                + "\n  ".join(changes)
                + "\nGo on with the old configuration, or give the new one another name or storage"
            )

    def _trials(self, states: tuple[TrialState, ...] | None = None) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)

    def _latest(self) -> dict[str, FrozenTrial]:
        """The turn of each cell that counts: the first one of the last attempt, by number."""
        latest: dict[str, FrozenTrial] = {}
        for trial in self._trials():
            key = trial.user_attrs.get(_KEY)
            if key is None:
                continue
            before = latest.get(key)
            if before is None or trial.user_attrs[_ATTEMPT] > before.user_attrs[_ATTEMPT]:
                latest.pop(key, None)  # so that the order is that of the numbers
                latest[key] = trial
        return latest

    def enqueue(self, cells: Iterable[Cell]) -> int:
        """Add cells to the queue that are not in the ledger yet, waiting, running or finished.

        Returns:
            How many were added.
        """
        latest, added = self._latest(), 0
        for cell in {cell.key: cell for cell in cells}.values():
            if cell.key not in latest:
                about = {_KEY: cell.key, _CELL: cell.to_json(), _LABEL: cell.label}
                self._study.enqueue_trial({}, {**about, _ATTEMPT: 0, _ERRORS: 0})
                added += 1
            else:
                added += self._follow(latest[cell.key])
        return added

    def _follow(self, trial: FrozenTrial, afresh: bool = False) -> bool:
        """Give a cell another turn if this one, its last, has failed; not after errors."""
        errors = 0 if afresh else _errors(trial)
        if trial.state != TrialState.FAIL or errors >= TRIES:
            return False
        about = {name: trial.user_attrs[name] for name in (_KEY, _CELL, _LABEL)}
        attempt = trial.user_attrs[_ATTEMPT] + 1
        self._study.enqueue_trial({}, {**about, _ATTEMPT: attempt, _ERRORS: errors})
        return True

    def claim(self) -> Claim | None:
        """Take the cell that waits for longest, which nobody else gets; None if none waits."""
        # Optuna's ask() makes up a trial when none waits: this is what it does where one does.
        for trial in self._latest().values():
            if trial.state == TrialState.WAITING and self._start(trial._trial_id):
                self._sign(trial._trial_id)
                return Claim(Cell.from_json(trial.user_attrs[_CELL]), trial._trial_id)
        return None

    def _start(self, trial: int) -> bool:
        try:
            return self._storage.set_trial_state_values(trial, TrialState.RUNNING)
        except UpdateFinishedTrialError:  # started and ended since we looked
            return False

    def _sign(self, trial: int) -> None:
        self._storage.set_trial_user_attr(trial, _OWNER, sign_of_life())

    def held(self, claim: Claim) -> Pulse:
        """A ``with`` block in which a thread shows others that the claim's process is alive."""
        return Pulse(lambda: self._sign(claim.trial))

    def finish(self, claim: Claim, outcome: Outcome) -> bool:
        """Keep what a cell came to; a diverged fit is finished too, and is not run again.

        Returns:
            False if the claim was taken away meanwhile (:meth:`reap`), and the outcome is not kept.

        Raises:
            ValueError: the score is not a finite number; that of a diverged fit is None.
        """
        if outcome.score is not None and not math.isfinite(outcome.score):
            raise ValueError(
                f"the score of {claim.cell.label or claim.cell.key!r} is {outcome.score}: it must "
                "be a finite number of points, or None if the fit diverged"
            )
        try:
            self._storage.set_trial_user_attr(claim.trial, _OUTCOME, asdict(outcome))
        except UpdateFinishedTrialError:
            return False
        self._end(claim.trial)
        return self._storage.get_trial(claim.trial).state == TrialState.COMPLETE

    def release(self, claim: Claim) -> None:
        """Give a cell back unfinished: it goes to the end of the queue."""
        self._end(claim.trial)
        self.enqueue([claim.cell])

    def fail(self, claim: Claim, error: str) -> None:
        """Give back a cell whose fit raised ``error``. It gets one more try; see :meth:`errors`."""
        try:
            self._storage.set_trial_user_attr(claim.trial, _ERROR, error)
        except UpdateFinishedTrialError:  # it was taken away: another process has the next try
            return
        self.release(claim)

    def _end(self, trial: int) -> bool:
        """End a running trial; whether it was this call that did, and without an outcome."""
        outcome = self._storage.get_trial(trial).user_attrs.get(_OUTCOME)
        try:
            if outcome is None:
                self._storage.set_trial_state_values(trial, TrialState.FAIL)
                return True
            # Optuna wants a number, and this one is lower than any score.
            value = -math.inf if outcome["score"] is None else outcome["score"]
            self._storage.set_trial_state_values(trial, TrialState.COMPLETE, [value])
        except UpdateFinishedTrialError:
            pass
        return False

    def reap(self, older_than: float = STALE) -> int:
        """Put the running cells of dead processes back into the queue.

        A process of this host is dead once it is gone, one of another host once its last sign of
        life is ``older_than`` seconds old. Any number of processes may do this at once.

        Returns:
            How many cells this call took back.
        """
        latest, back = self._latest(), 0
        for trial in latest.values():
            if trial.state == TrialState.RUNNING and self._is_abandoned(trial, older_than):
                back += self._end(trial._trial_id)
        # Also those of a process that was killed after it had ended the turn.
        for trial in (self._latest() if back else latest).values():
            self._follow(trial)
        return back

    def _is_abandoned(self, trial: FrozenTrial, older_than: float) -> bool:
        if sign := trial.user_attrs.get(_OWNER):
            return not is_alive(sign, older_than)
        # Taken by a process that has not signed yet, or was killed before it could.
        now = time.monotonic()
        return now - self._unsigned.setdefault(trial._trial_id, now) > older_than

    def outcomes(self) -> dict[str, Outcome]:
        """What the finished cells came to, by the cells' keys."""
        for trial in self._trials((TrialState.COMPLETE,)):
            key = trial.user_attrs.get(_KEY)
            if key is not None and key not in self._outcomes:
                self._outcomes[key] = Outcome(**trial.user_attrs[_OUTCOME])
        return dict(self._outcomes)

    def errors(self) -> dict[str, str]:
        """The errors that end a search: of cells whose fit raised one each time, by key."""
        return {
            key: trial.user_attrs[_ERROR]
            for key, trial in self._latest().items()
            if trial.state == TrialState.FAIL and _errors(trial) >= TRIES
        }

    def counts(self, older_than: float = STALE) -> Counts:
        """How many cells wait, run and are finished, and how many living processes run one."""
        latest = self._latest().values()
        states = [trial.state for trial in latest]
        running = [trial.user_attrs for trial in latest if trial.state == TrialState.RUNNING]
        signs = [attributes[_OWNER] for attributes in running if _OWNER in attributes]
        alive = {(s["host"], s["where"], s["pid"]) for s in signs if is_alive(s, older_than)}
        return Counts(
            waiting=states.count(TrialState.WAITING),
            running=states.count(TrialState.RUNNING),
            finished=states.count(TrialState.COMPLETE),
            workers=len(alive),
        )

    @property
    def finished(self) -> bool:
        """Whether the search is over, so that its workers leave."""
        return bool(self._study.user_attrs.get(_FINISHED, False))

    @finished.setter
    def finished(self, finished: bool) -> None:
        self._study.set_user_attr(_FINISHED, finished)

    @contextmanager
    def lead(self, older_than: float = STALE) -> Iterator[Pulse]:
        """Be the one controller of the search in a ``with`` block.

        Cells that ended an earlier run with an error get new tries.

        Raises:
            RuntimeError: it has a controller that is alive, by the rule of :meth:`reap`.
        """
        # The place is a trial as well: of all that ask for it, the first that is alive has it.
        name = uuid.uuid4().hex
        attributes = {_LEADER: name, _OWNER: sign_of_life()}
        self._study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs=attributes))
        for trial in self._trials(_RUNNING):
            if trial.user_attrs.get(_LEADER) == name:
                break
            if _LEADER not in trial.user_attrs:
                continue
            if not self._is_abandoned(trial, older_than):
                self._end(self._own(name))
                raise RuntimeError(_refusal(self.name, trial.user_attrs[_OWNER], older_than))
            self._end(trial._trial_id)
        mine = self._own(name)
        try:
            for trial in self._latest().values():
                self._follow(trial, afresh=True)
            with Pulse(lambda: self._sign(mine)) as pulse:
                yield pulse
        finally:
            self._end(mine)

    def _own(self, name: str) -> int:
        trials = self._trials(_RUNNING)
        return next(t._trial_id for t in trials if t.user_attrs.get(_LEADER) == name)


def _errors(trial: FrozenTrial) -> int:
    """How many tries of the cell have ended in an error, this one included."""
    return int(trial.user_attrs[_ERRORS]) + (_ERROR in trial.user_attrs)


def _refusal(name: str, owner: Mapping[str, Any], older_than: float) -> str:
    return (
        f"the search {name!r} has a controller already: process {owner['pid']} on {owner['host']}. "
        "Start this process with --worker, so that it only runs cells. If that host has failed, "
        f"its place is free {older_than:g} s after its last sign of life"
    )
