"""Progress of a search: two lines on a terminal, or a log line from time to time."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from math import isfinite
from statistics import fmean
from types import TracebackType
from typing import NamedTuple, TextIO

from tqdm import tqdm

from lightning_pelt.search.queue.job import JobCounts, Outcomes
from lightning_pelt.search.report.sections import stage_title
from lightning_pelt.search.report.summary import FINAL, GATED, candidate_scores, estimate
from lightning_pelt.search.search_state import SearchState
from lightning_pelt.utils.text import readable_duration

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} fits [{elapsed}]"


class Status(NamedTuple):
    """Status of a search.

    Attributes:
        stage: title of the current stage.
        done: number of fits of the stage that are done.
        asked: number of fits that the stage has asked for so far, including those done.
        details: further facts, one text each.
    """

    stage: str
    done: int
    asked: int
    details: tuple[str, ...]


def status(state: SearchState, outcomes: Outcomes, counts: JobCounts) -> Status:
    """The status of a search as texts and numbers.

    Args:
        state: of the search.
        outcomes: by the key of the job.
        counts: of the ledger.
    """
    stage, keys = _stage(state)
    done = [outcomes[key].seconds for key in keys if key in outcomes]
    known = done or [outcome.seconds for outcome in outcomes.values()]
    number = counts.workers + counts.idle
    workers = f"{number} worker{'' if number == 1 else 's'}"
    queue = f"{counts.running} running on {workers}, {counts.waiting} waiting"
    total = f"{counts.finished} done in all"
    details = (_options(state), _best(state, outcomes), queue, total, _left(state, known, counts))
    return Status(stage, len(done), len(keys), tuple(filter(None, details)))


class Progress:
    """Shows the progress of a search.

    On a terminal it redraws a progress bar for the fits of the stage and a line of details.
    Otherwise, in a file or a log, it writes a line when a stage starts, when the search is
    finished, and every ``every`` seconds.

    Args:
        name: of the search.
        file: where to write; by default stderr.
        every: seconds between two lines without a terminal.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        file: TextIO | None = None,
        every: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.file = sys.stderr if file is None else file
        self.every, self.clock = every, clock
        self._terminal = self.file.isatty()
        self._bars: tuple[tqdm[None], tqdm[None]] | None = None
        self._last: tuple[str, float] | None = None  # stage and time of the last line

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            for bar in self._bars:
                bar.close()
            self._bars = None

    def show(self, state: SearchState, outcomes: Outcomes, counts: JobCounts) -> None:
        """Show the current status of the search."""
        now = status(state, outcomes, counts)
        if self._terminal:
            self._draw(now)
        else:
            self._log(now)

    def _draw(self, now: Status) -> None:
        bar, line = self._bars or self._open_bars()
        title = f"{self.name}, {now.stage}"
        if bar.desc != title:
            bar.reset()
            bar.set_description_str(title, refresh=False)
        bar.total, bar.n = now.asked, now.done
        bar.refresh()
        width = shutil.get_terminal_size().columns - 1
        line.set_description_str("; ".join(now.details)[:width])

    def _open_bars(self) -> tuple[tqdm[None], tqdm[None]]:
        bar: tqdm[None] = tqdm(
            total=0, file=self.file, bar_format=BAR, dynamic_ncols=True, position=0, leave=True
        )
        line: tqdm[None] = tqdm(
            total=0, file=self.file, bar_format="{desc}", position=1, leave=True
        )
        self._bars = bar, line
        return self._bars

    def _log(self, now: Status) -> None:
        seconds = self.clock()
        if self._last is not None:
            stage, last = self._last
            if stage == now.stage and seconds - last < self.every:
                return
        self._last = now.stage, seconds
        details = "; ".join([f"{now.done} of {now.asked} fits", *now.details])
        print(f"{self.name}, {now.stage}: {details}", file=self.file, flush=True)


def _stage(state: SearchState) -> tuple[str, list[str]]:
    """The title of the current stage, and the keys of the jobs that it has asked for."""
    if state.comparison is not None:
        name = "Finished" if state.finished else FINAL.capitalize()
        return name, [job.key for job in state.comparison.jobs]
    if state.records:
        return stage_title(state.records[-1].stage.name), [*state.records[-1].jobs]
    return GATED.capitalize(), [job.key for job in state.gated_jobs]


def _options(state: SearchState) -> str:
    if state.comparison is not None or not state.records:
        return ""
    record = state.records[-1]
    if record.confirmation is not None and not record.confirmation.finished:
        return f"{' against '.join(record.confirmation.arms)} on new replicates"
    active = sum(arm.active for arm in record.selection.stats())
    arms = len(record.selection.arms)
    return f"{active} of {arms} options left" if arms > 1 else ""


def _best(state: SearchState, outcomes: Outcomes) -> str:
    """The active option with the best mean so far."""
    if state.comparison is not None:
        plans = candidate_scores(state.comparison, outcomes)
        means = {plan.title: estimate(plan.overall).mean for plan in plans}
    elif state.records:
        record = state.records[-1]
        selection = record.confirmation or record.selection
        means = {arm.arm: arm.mean for arm in selection.stats() if arm.active}
    else:
        means = {}
    known = {name: mean for name, mean in means.items() if isfinite(mean)}
    if not known:
        return ""
    name = max(known, key=lambda name: known[name])
    return f"best{'' if state.finished else ' so far'}: {name} ({known[name]:.1f})"


def _left(state: SearchState, seconds: list[float], counts: JobCounts) -> str:
    """A lower bound of the remaining time: the jobs wanted now, later ones are unknown.

    Half of each running fit is assumed to be done.
    """
    if not state.wanted:
        return ""
    workers = counts.workers + counts.idle
    if not workers:
        return "no worker is running" if counts.finished else "no worker has started a fit yet"
    if not seconds:
        return "the time left is known after the first fit"
    fits = len(state.wanted) - min(counts.running, len(state.wanted)) / 2
    return f"at least {readable_duration(fits * fmean(seconds) / workers)} left"
