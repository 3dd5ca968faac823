"""``lightning-pelt search``: one process leads, any number of workers fit the cells it asks for."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from lightning_pelt.anatomy import Anatomy, examine
from lightning_pelt.design_space import Design
from lightning_pelt.search.brute_force import BruteForce
from lightning_pelt.search.course import Course, Walk
from lightning_pelt.search.finals import Finals
from lightning_pelt.search.fitting import Fitter
from lightning_pelt.search.gates import GatesCourse
from lightning_pelt.search.ledger import Ledger
from lightning_pelt.search.progress import Progress
from lightning_pelt.search.racing import Race
from lightning_pelt.search.recipe import write_recipes
from lightning_pelt.search.report import write_report
from lightning_pelt.search.sample import Sample
from lightning_pelt.search.settings import Settings, parse
from lightning_pelt.search.space import Space
from lightning_pelt.search.tracking import Tracker
from lightning_pelt.search.undisturbed import undisturbed
from lightning_pelt.search.worker import stoppable, work

PROG = "lightning-pelt search"
MISTAKES = (ValueError, OSError, RuntimeError, ModuleNotFoundError)
POLL = 0.5  # seconds between two looks at the ledger
DEATHS = 3  # of a worker's processes, one after the other without a finished cell


def main(args: Sequence[str]) -> None:
    """Lead a search, or work for one; what the user can mend is said, with exit status 2.

    Args:
        args: see :func:`lightning_pelt.search.settings.parse`.
    """
    settings, worker = parse(args)
    try:
        if worker:
            work(ledger_of(settings), Fitter(settings))
        else:
            lead(settings, [sys.executable, "-m", "lightning_pelt", "search", *args])
    except KeyboardInterrupt:
        print(f"{PROG}: stopped; the same command goes on where it was", file=sys.stderr)
        raise SystemExit(130) from None
    except MISTAKES as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def ledger_of(settings: Settings) -> Ledger:
    """The ledger that ``settings`` name.

    Raises:
        ValueError: another search owns it, or this one was begun with other settings.
    """
    return Ledger(settings.storage, settings.name, settings.cells_depend_on())


def lead(settings: Settings, command: Sequence[str]) -> Walk:
    """Walk a search to its end, with workers on this machine, and write down what was found.

    Args:
        settings: of the search.
        command: that starts this search, to which workers add ``--worker``.

    Returns:
        The whole walk.

    Raises:
        ValueError: no design can meet the budget; see also :func:`ledger_of`.
        RuntimeError: somebody else leads the search; a fit raised an error, twice; or workers die
            without finishing anything.
    """
    ledger, course = ledger_of(settings), course_of(settings)
    with ExitStack() as stack:
        stack.enter_context(stoppable())
        stack.enter_context(ledger.lead())
        ledger.finished = False
        crew = stack.enter_context(crew_of(settings.workers, [*command, "--worker"]))
        progress = stack.enter_context(Progress(settings.name))
        about = settings.cells_depend_on()
        tracker = stack.enter_context(
            Tracker(settings.wandb, settings.folder, settings.name, config=about)
        )
        settled = -1
        while True:
            outcomes = ledger.outcomes()
            walk = course.walk(outcomes)
            tracker.log(walk, outcomes)
            progress.show(walk, outcomes, ledger.counts())
            if walk.over:
                break
            if len(walk.settled) > settled:
                settled = len(walk.settled)
                write_report(settings.folder, walk, outcomes, settings=settings, space=course.space)
            if ledger.enqueue(walk.wanted) == 0:
                _trouble(ledger)
                ledger.reap()
                crew.look_after(len(outcomes))
                time.sleep(POLL)
        ledger.finished = True
        report = write_report(
            settings.folder, walk, outcomes, settings=settings, space=course.space
        )
        tracker.end(walk, outcomes, report)
    recipes = write_recipes(settings, walk)
    print(f"found: {walk.found!r}\nreport: {report}")
    print("\n".join(f"recipe: {recipe}" for recipe in recipes))
    return walk


def course_of(settings: Settings) -> Course | GatesCourse:
    """How a search goes, by its settings.

    Args:
        settings: of the search; its backbone is loaded to see where its sites are.

    Raises:
        ValueError: the space makes no sense on this backbone.
    """
    anatomy = _anatomy(settings)
    space = Space(
        anatomy,
        budget=settings.search_budget,
        groups=settings.groups,
        stacks=settings.stacks,
        over=settings.over,
        patterns=settings.patterns,
        subsets=settings.subsets,
        seed=settings.seed,
    )

    def finals(found: Design) -> Finals:
        return Finals(
            found,
            anatomy,
            budget=settings.last_budget,
            tasks=[*settings.tasks],
            seeds=settings.final_seeds,
            compare=settings.compare,
        )

    if settings.method == "gates":
        return GatesCourse(space, [*settings.tasks], finals)
    race = partial(Race, rules=settings.racing)
    return Course(
        space,
        [*settings.tasks],
        race if settings.method == "racing" else partial(BruteForce, designs=settings.designs),
        partial(Sample, blocks=settings.fresh),
        finals,
        fresh=settings.fresh,
        alpha=settings.racing.alpha,
    )


def _anatomy(settings: Settings) -> Anatomy:
    task = next(iter(settings.tasks))
    with undisturbed(None):
        labels = settings.data(task).labels
        return examine(settings.task(task).task.load(settings.backbone, labels=labels))


def _trouble(ledger: Ledger) -> None:
    """Raise what made a fit fail each time it was tried."""
    for key, error in ledger.errors().items():
        raise RuntimeError(f"the cell {key} failed each time it was tried, lastly with\n{error}")


@dataclass
class Crew:
    """Worker processes on this machine; one that was killed is followed by another.

    Args:
        size: their number.
        command: that starts one.
    """

    size: int
    command: Sequence[str]
    _workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _deaths: int = 0
    _done: int = 0

    def look_after(self, done: int) -> None:
        """Start those that are missing.

        Args:
            done: number of finished cells.

        Raises:
            RuntimeError: they die again and again, and nothing gets done.
        """
        alive = [worker for worker in self._workers if worker.poll() is None]
        if done > self._done:
            self._done, self._deaths = done, 0
        self._deaths += len(self._workers) - len(alive)
        if self._deaths > DEATHS * self.size:
            raise RuntimeError(
                f"{self._deaths} workers have died one after the other without finishing a cell: "
                f"start one by hand to see why, {' '.join(self.command)}"
            )
        self._workers = alive
        while len(self._workers) < self.size:
            self._workers.append(subprocess.Popen(self.command, stdin=subprocess.DEVNULL))

    def leave(self, patience: float = 60.0) -> None:
        """Ask all to give back what they do and to end; kill those that do not."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            try:
                worker.wait(patience)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


@contextmanager
def crew_of(size: int, command: Sequence[str]) -> Iterator[Crew]:
    """Workers for the time of a ``with`` block; ``size`` may be 0 where others do the work."""
    crew = Crew(size, command)
    try:
        yield crew
    finally:
        crew.leave()
