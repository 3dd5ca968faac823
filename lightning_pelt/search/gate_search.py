"""Search by gates: one gated run with every method in every group; its gates select the methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from lightning_pelt.methods.gate import Gate
from lightning_pelt.plans.design_space import Design, layout
from lightning_pelt.plans.design_space.strategies import template
from lightning_pelt.search.final_comparison import FinalComparison
from lightning_pelt.search.queue.job import Job, Outcome, Outcomes
from lightning_pelt.search.search_state import SearchState
from lightning_pelt.search.space import Space

GATE = "gate"  # prefix of the metrics that hold gates: ``gate/<stack>.<block>/<method>``


def gate_metric(stack: str, block: int, method: str) -> str:
    """Name of the metric that holds a method's mean gate in a block, over the held-out rows."""
    return f"{GATE}/{stack}.{block}/{method}"


@dataclass
class GateSearch:
    """Search with two fits per task instead of thousands.

    The first fit has every method, gated, in every group, and all share the budget. Its gates are
    averaged over the held-out rows. Each group keeps the methods whose mean gate is ``keep`` or
    more, and at least the one with the largest. The budget is solved again for these methods,
    ungated, and the found design is trained in the final comparison. The groups have equal numbers
    of blocks and the blocks have equal shares: gates select methods, not groupings.

    Args:
        space: the search space; methods that are in none of its subsets are left out.
        tasks: names of the tasks; gates are averaged over them.
        compare: makes the final comparison from the found design.
        keep: lowest mean gate of a method that is kept. Gates start at 0.5, so by default methods
            are kept unless training closed their gates.
        block: the search block whose seed the gated run has.

    Example::

        search = GateSearch(space, ["sst2"], compare=compare)
        outcomes = {}
        while not (state := search.replay(outcomes)).finished:
            outcomes |= {job.key: run(job) for job in state.wanted}
    """

    space: Space
    tasks: Sequence[str]
    compare: Callable[[Design], FinalComparison]
    keep: float = 0.5
    block: int = 0

    def replay(self, outcomes: Outcomes) -> SearchState:
        """The state of the search after ``outcomes``.

        Args:
            outcomes: by the key of the job.

        Raises:
            ValueError: the gated run diverged, or no methods that are kept can meet the budget.
        """
        state = SearchState(settled=self._components, gated_jobs=self._gated_jobs())
        state.wanted = [job for job in state.gated_jobs if job.key not in outcomes]
        if state.wanted:
            return state
        state.gate_means = self._gate_means([outcomes[job.key] for job in state.gated_jobs])
        state.settled |= {name: self._kept(gates) for name, gates in state.gate_means.items()}
        state.found = self._affordable(state)
        state.comparison = self.compare(state.found)
        state.wanted = [job for job in state.comparison.jobs if job.key not in outcomes]
        return state

    @property
    def _components(self) -> dict[str, str]:
        numbers = range(1, self.space.groups + 1)
        return {
            "grouping": "uniform",
            "allocation": "uniform",
            "groups": "+".join(map(str, numbers)),
        }

    @property
    def _full_design(self) -> Design:
        """Every method in every group, gated."""
        letters = "".join(sorted(set(chain(*self.space.sets))))
        every = {f"group {i + 1}": letters for i in range(self.space.groups)}
        design = self.space.design({**self._components, **every})
        return Design(**{**design.init_args(), "gate": Gate()})

    def _gated_jobs(self) -> list[Job]:
        solution = self._full_design.solution(self.space.anatomy)
        plan, seed = solution.plan(Gate()).to_config(), self.space.block_seed(self.block)
        return [
            Job(
                plan,
                task,
                seed,
                "holdout",
                parameters=solution.total,
                label="gates: every method in every group",
            )
            for task in self.tasks
        ]

    def _gate_means(self, outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
        """The mean gate of each group and letter, over blocks and tasks."""
        if any(outcome.diverged for outcome in outcomes):
            raise ValueError(
                "the gated run diverged, so there are no gates to read: lower `fit.lr` or `fit.lrs`"
            )
        design = self._full_design
        depths = {stack.name: len(stack.blocks) for stack in self.space.anatomy.stacks}
        groups = layout(design.pattern, depths, self.space.groups, stacks=design.stacks)
        found: dict[str, dict[str, float]] = {}
        for i, blocks in enumerate(groups):
            found[f"group {i + 1}"] = {
                letter: fmean(
                    outcome.metrics[gate_metric(stack, number, template(letter).name)]
                    for outcome in outcomes
                    for stack, number in blocks
                )
                for letter in design.strategies[i]
            }
        return found

    def _kept(self, gates: Mapping[str, float]) -> str:
        largest = max(gates.values())
        return "".join(k for k, mean in gates.items() if mean >= min(self.keep, largest))

    def _affordable(self, state: SearchState) -> Design:
        """The design of the kept methods, with more methods where these cannot fill a share.

        BitFit alone cannot fill a share: the method with the next largest gate is added to it.
        """
        design = self.space.design(state.settled)
        while (reason := self.space.misfit(design)) is not None:
            candidates = {
                (gates[letter], name, letter)
                for name, gates in state.gate_means.items()
                for letter in gates
                if letter not in state.settled[name] and state.settled[name] == "B"
            }
            if not candidates:
                raise ValueError(
                    f"no design of the methods whose gates stay open meets the budget ({reason}): "
                    "give another search_budget"
                )
            _, name, letter = max(candidates)
            state.settled[name] = "".join(k for k in state.gate_means[name] if k in ("B", letter))
            design = self.space.design(state.settled)
        return design
