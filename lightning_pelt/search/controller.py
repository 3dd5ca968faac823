"""The controller: one process leads a search, and any number of workers run its jobs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from lightning_pelt.anatomy import Anatomy, examine
from lightning_pelt.plans.design_space import Design
from lightning_pelt.search.final_comparison import FinalComparison
from lightning_pelt.search.fit_job import Fitter
from lightning_pelt.search.gate_search import GateSearch
from lightning_pelt.search.greedy_search import GreedySearch
from lightning_pelt.search.isolation import isolated
from lightning_pelt.search.queue.job import JobCounts
from lightning_pelt.search.queue.ledger import Ledger
from lightning_pelt.search.queue.worker import exit_on_sigterm, work
from lightning_pelt.search.queue.worker_pool import WorkerPool
from lightning_pelt.search.report.progress import Progress
from lightning_pelt.search.report.report import write_report
from lightning_pelt.search.report.wandb import Tracker
from lightning_pelt.search.report.winning_recipe import write_recipes
from lightning_pelt.search.search_state import SearchState
from lightning_pelt.search.selection.baseline import Baseline
from lightning_pelt.search.selection.brute_force import BruteForce
from lightning_pelt.search.selection.racing import Race
from lightning_pelt.search.settings import Settings
from lightning_pelt.search.space import Space

POLL = 0.5  # seconds between two reads of the ledger


def run(settings: Settings, *, worker: bool, command: Sequence[str]) -> None:
    """Lead a search to its end, or only run its jobs.

    Args:
        settings: of the search.
        worker: whether this process only runs jobs.
        command: starts this search; with ``--worker`` appended, it starts a worker.

    Raises:
        ValueError, RuntimeError, OSError: see :func:`lead` and :func:`open_ledger`.
    """
    if worker:
        ledger = open_ledger(settings)
        work(ledger, Fitter(settings, lambda: ledger.group))
    else:
        lead(settings, command)


def open_ledger(settings: Settings) -> Ledger:
    """Open the ledger that ``settings`` name.

    Raises:
        ValueError: the storage holds something else, or the search was started with other settings.
    """
    return Ledger(settings.storage, settings.name, settings.fingerprint())


def lead(settings: Settings, command: Sequence[str]) -> SearchState:
    """Lead a search to its end, with workers on this machine, and write its report and recipes.

    Args:
        settings: of the search.
        command: starts this search; with ``--worker`` appended, it starts a worker.

    Returns:
        The final state.

    Raises:
        ValueError: no design can meet the budget; see also :func:`open_ledger`.
        RuntimeError: another process leads the search or has taken over its lead, every attempt at
            a job raised an error, or workers die without finishing a job.
    """
    ledger, search = open_ledger(settings), make_search(settings)
    report = partial(write_report, settings.folder, settings=settings, space=search.space)
    with ExitStack() as stack:
        stack.enter_context(exit_on_sigterm())
        lead = stack.enter_context(ledger.lead())
        ledger.finished = False
        workers = stack.enter_context(WorkerPool(settings.workers, [*command, "--worker"]))
        progress = stack.enter_context(Progress(settings.name))
        config = settings.fingerprint()
        tracker = stack.enter_context(
            Tracker(
                settings.wandb, settings.folder, settings.name, config=config, group=ledger.group
            )
        )
        settled = -1
        while True:
            if lead.lost:
                raise RuntimeError(
                    f"another process leads the search {settings.name!r} now: the heartbeats of "
                    "this process came too late. Start it again with --worker, so that it only "
                    "runs jobs"
                )
            outcomes = ledger.outcomes()
            state = search.replay(outcomes)
            tracker.log(state, outcomes)
            added = 0
            if not state.finished:
                added = ledger.enqueue(state.wanted)
                workers.refill(len(outcomes))
            progress.show(state, outcomes, _counts(ledger, workers))
            if state.finished:
                break
            if len(state.settled) > settled:
                settled = len(state.settled)
                report(state, outcomes)
            if added == 0:
                _raise_errors(ledger)
                ledger.reap()
                time.sleep(POLL)
        ledger.finished = True
        page = report(state, outcomes)
        tracker.end(state, outcomes, page)
    recipes = write_recipes(settings, state, outcomes)
    print(f"found: {state.found!r}\nreport: {page}")
    print("\n".join(f"recipe: {recipe}" for recipe in recipes))
    return state


def make_search(settings: Settings) -> GreedySearch | GateSearch:
    """The search that ``settings`` describe.

    Args:
        settings: of the search; its backbone is loaded to find the sites.

    Raises:
        ValueError: the search space is invalid for this backbone.
    """
    anatomy, tasks = _anatomy(settings), [*settings.tasks]
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

    def compare(found: Design) -> FinalComparison:
        return FinalComparison(
            found,
            anatomy,
            budget=settings.comparison_budget,
            tasks=tasks,
            seeds=settings.final_seeds,
            compare=settings.compare,
        )

    if settings.method == "gates":
        return GateSearch(space, tasks, compare)
    race = partial(Race, rules=settings.racing)
    brute_force = partial(BruteForce, designs=settings.designs)
    return GreedySearch(
        space,
        tasks,
        select=race if settings.method == "racing" else brute_force,
        baseline=partial(Baseline, blocks=settings.fresh),
        compare=compare,
        fresh=settings.fresh,
        alpha=settings.racing.alpha,
    )


def _anatomy(settings: Settings) -> Anatomy:
    task = next(iter(settings.tasks))
    with isolated(None):
        labels = settings.data(task).labels
        return examine(settings.task(task).task.load(settings.backbone, labels=labels))


def _counts(ledger: Ledger, workers: WorkerPool) -> JobCounts:
    """The counts of a ledger, with the workers of this controller that have taken no job yet."""
    counts = ledger.counts()
    return replace(counts, idle=max(counts.idle, workers.alive - counts.workers))


def _raise_errors(ledger: Ledger) -> None:
    """Raise the error of a job for which every attempt failed."""
    for key, error in ledger.errors().items():
        raise RuntimeError(f"every attempt at job {key} failed, the last one with\n{error}")
