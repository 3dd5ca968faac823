"""A live view of a search: two lines on a terminal, now and then a line where there is none."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from math import isfinite
from statistics import fmean
from types import TracebackType
from typing import NamedTuple, Protocol, TextIO

from tqdm import tqdm

from lightning_pelt.search.cell import Outcome
from lightning_pelt.search.chapters import question
from lightning_pelt.search.course import Walk
from lightning_pelt.search.pictures import minutes
from lightning_pelt.search.summary import FINAL, GATED, compared, estimate

Outcomes = Mapping[str, Outcome]
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} fits [{elapsed}]"


class Counts(Protocol):
    """Cells of the ledger by where they are, and the processes that hold one."""

    @property
    def waiting(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def finished(self) -> int: ...
    @property
    def workers(self) -> int: ...


class Status(NamedTuple):
    """Where a search stands.

    Attributes:
        stage: what it is at, for people.
        done: fits of the stage that are done.
        asked: fits of the stage that were asked for so far, done ones included.
        rest: everything else, in parts for people.
    """

    stage: str
    done: int
    asked: int
    rest: tuple[str, ...]


def status(walk: Walk, outcomes: Outcomes, counts: Counts) -> Status:
    """Where a search stands, in words and numbers.

    Args:
        walk: as far as it has come.
        outcomes: by the key of their cell.
        counts: of the ledger.
    """
    stage, keys = _stage(walk)
    done = [outcomes[key].seconds for key in keys if key in outcomes]
    known = done or [outcome.seconds for outcome in outcomes.values()]
    crew = f"{counts.workers} worker{'' if counts.workers == 1 else 's'}"
    work = f"{counts.running} running on {crew}, {counts.waiting} waiting"
    total = f"{counts.finished} done in all"
    parts = (_survivors(walk), _best(walk, outcomes), work, total, _left(walk, known, counts))
    return Status(stage, len(done), len(keys), tuple(filter(None, parts)))


class Progress:
    """Shows a search while it goes on.

    On a terminal these are a bar for the fits of the stage and a line for the rest, drawn anew each
    time. Elsewhere, in a file or a log, it is one line when a stage begins, when all is over, and
    every ``every`` seconds.

    Args:
        name: of the search.
        file: where to; by default stderr.
        every: seconds between two lines where there is no terminal.
        clock: tells the seconds.
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
        self._live = self.file.isatty()
        self._bars: tuple[tqdm[None], tqdm[None]] | None = None
        self._said: tuple[str, float] | None = None

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

    def show(self, walk: Walk, outcomes: Outcomes, counts: Counts) -> None:
        """Where the search stands now."""
        now = status(walk, outcomes, counts)
        if self._live:
            self._draw(now)
        else:
            self._say(now)

    def _draw(self, now: Status) -> None:
        bar, line = self._bars or self._begin()
        title = f"{self.name}, {now.stage}"
        if bar.desc != title:
            bar.reset()
            bar.set_description_str(title, refresh=False)
        bar.total, bar.n = now.asked, now.done
        bar.refresh()
        room = shutil.get_terminal_size().columns - 1
        line.set_description_str("; ".join(now.rest)[:room])

    def _begin(self) -> tuple[tqdm[None], tqdm[None]]:
        bar: tqdm[None] = tqdm(
            total=0, file=self.file, bar_format=BAR, dynamic_ncols=True, position=0, leave=True
        )
        line: tqdm[None] = tqdm(
            total=0, file=self.file, bar_format="{desc}", position=1, leave=True
        )
        self._bars = bar, line
        return self._bars

    def _say(self, now: Status) -> None:
        seconds = self.clock()
        if self._said is not None:
            stage, last = self._said
            if stage == now.stage and seconds - last < self.every:
                return
        self._said = now.stage, seconds
        fits = f"{now.done} of {now.asked} fits"
        print(
            f"{self.name}, {now.stage}: {'; '.join([fits, *now.rest])}", file=self.file, flush=True
        )


def _stage(walk: Walk) -> tuple[str, list[str]]:
    """What a search is at, and the keys of the cells it has asked for there."""
    if walk.finals is not None:
        name = "Over" if walk.over else FINAL.capitalize()
        return name, [cell.key for cell in walk.finals.cells]
    if walk.records:
        return question(walk.records[-1].stage.name), [*walk.records[-1].cells]
    return GATED.capitalize(), [cell.key for cell in walk.gated]


def _survivors(walk: Walk) -> str:
    if walk.finals is not None or not walk.records:
        return ""
    record = walk.records[-1]
    if record.fresh is not None and not record.fresh.over:
        return f"{' against '.join(record.fresh.arms)} on fresh blocks"
    alive = sum(standing.alive for standing in record.contest.standings())
    arms = len(record.contest.arms)
    return f"{alive} of {arms} options left" if arms > 1 else ""


def _best(walk: Walk, outcomes: Outcomes) -> str:
    """The best arm so far by its mean, among those that are left."""
    if walk.finals is not None:
        plans = compared(walk.finals, outcomes)
        means = {plan.title: estimate(plan.overall).mean for plan in plans}
    elif walk.records:
        record = walk.records[-1]
        contest = record.fresh or record.contest
        means = {s.arm: s.mean for s in contest.standings() if s.alive}
    else:
        means = {}
    known = {name: mean for name, mean in means.items() if isfinite(mean)}
    if not known:
        return ""
    name = max(known, key=lambda name: known[name])
    return f"best{'' if walk.over else ' so far'}: {name} ({known[name]:.1f})"


def _left(walk: Walk, seconds: list[float], counts: Counts) -> str:
    """A lower bound: what is asked for now; what will be asked for later nobody knows.

    Of the fits that are running, half is taken to be done.
    """
    if not walk.wanted:
        return ""
    if not counts.workers:
        return "no worker is at work"
    if not seconds:
        return ""
    fits = len(walk.wanted) - min(counts.running, len(walk.wanted)) / 2
    return f"at least {minutes(fits * fmean(seconds) / counts.workers)} left"
