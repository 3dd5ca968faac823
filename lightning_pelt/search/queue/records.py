"""Records of a ledger: each names its job, so that a lost or repeated line is found.

A journal numbers its trials by counting lines. Without one line, or with one twice, the later
records of one job would count for the next.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from lightning_pelt.search.queue.job import Job, Outcome
from lightning_pelt.search.queue.storage import DamagedLedger

# Attributes of a trial: the job, ... The names are part of the file format.
KEY, JOB, LABEL, ATTEMPT, ERRORS = "key", "cell", "label", "attempt", "errors"
LEADER = "leader"
# ... the process that holds it, and its result.
OWNER, OUTCOME, ERROR = "owner", "outcome", "error"
_CHECKSUM = "checksum"  # of an outcome
_STAMP = {"host": str, "where": str, "pid": int, "born": int | None, "time": int | float}


def outcome_record(job: Job, outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain data, with the key of its job and a checksum."""
    record = {**asdict(outcome), KEY: job.key}
    return {**record, _CHECKSUM: _checksum(record)}


def _checksum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def value_of(score: float | None) -> float:
    """The value of a finished trial. Optuna requires one; that of None is below every score."""
    return -math.inf if score is None else score


def check_records(trial: FrozenTrial, storage: str) -> None:
    """Check that all records of a trial belong to its job, or to its controller.

    Raises:
        DamagedLedger: a record belongs to another one, or is not as it was written.
    """
    found = trial.user_attrs
    own = found.get(KEY, found.get(LEADER))
    for name in (OWNER, OUTCOME):
        record = found.get(name, {})
        # Ledgers of version 0.1 have no keys in these records.
        if not isinstance(record, dict) or record.get(KEY, own) != own:
            raise _damaged(trial, storage, f"its {name!r} belongs to another one")
    if OWNER in found and not _is_stamp(found[OWNER]):
        raise _damaged(trial, storage, "its heartbeat cannot be read")
    if KEY in found and not _is_complete(found):
        raise _damaged(trial, storage, "it has no job")


def outcome_of(trial: FrozenTrial, storage: str) -> Outcome | None:
    """The outcome of a finished trial; None if its line is lost, so that the job is run again.

    Raises:
        DamagedLedger: the outcome or the job is not as it was written.
    """
    record = dict(trial.user_attrs.get(OUTCOME, {}))
    if not record:
        return None
    job_of(trial, storage)
    checksum = record.pop(_CHECKSUM, None)  # ledgers of version 0.1 have none
    same = checksum is None or checksum == _checksum(record)
    record.pop(KEY, None)
    try:
        outcome = Outcome(**record)
        same = same and trial.values == [value_of(outcome.score)]
    except TypeError:
        same = False
    if not same:
        raise _damaged(trial, storage, f"its score is {record.get('score')} and {trial.values}")
    return outcome


def job_of(trial: FrozenTrial, storage: str) -> Job:
    """The job of a trial.

    Raises:
        DamagedLedger: the job has another key than the trial.
    """
    try:
        job = Job.from_json(trial.user_attrs[JOB])
        same = job.key == trial.user_attrs[KEY]
    except (LookupError, TypeError, ValueError):
        same = False
    if not same:
        raise _damaged(trial, storage, "its job has another key")
    return job


def is_lost(trial: FrozenTrial) -> bool:
    """Whether a job is finished, and the line with its outcome is lost."""
    return trial.state == TrialState.COMPLETE and OUTCOME not in trial.user_attrs


def has_run(trial: FrozenTrial) -> bool:
    """Whether a process has taken the job of a trial."""
    return KEY in trial.user_attrs and OWNER in trial.user_attrs


def process_of(trial: FrozenTrial) -> tuple[Any, ...]:
    """Identity of the process that took the job of a trial."""
    stamp = trial.user_attrs[OWNER]
    return stamp["host"], stamp["where"], stamp["pid"], stamp["born"]


def _is_stamp(record: Mapping[str, Any]) -> bool:
    return all(isinstance(record.get(name, ...), kind) for name, kind in _STAMP.items())


def _is_complete(found: Mapping[str, Any]) -> bool:
    numbers = (found.get(ATTEMPT), found.get(ERRORS))
    return JOB in found and LABEL in found and all(type(number) is int for number in numbers)


def _damaged(trial: FrozenTrial, storage: str, why: str) -> DamagedLedger:
    name = trial.user_attrs.get(LABEL) or trial.user_attrs.get(KEY) or "the controller"
    return DamagedLedger(
        f"{storage} is damaged at trial {trial.number}, {name!r}: {why}. A line was lost, repeated "
        "or changed. Restore the storage from a backup, or give the search another one"
    )
