"""Gates as the searcher: one run in which every group has every method, and the gates say which."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

from lightning_pelt.design_space import Design, layout
from lightning_pelt.design_space.costs import template
from lightning_pelt.gate import Gate
from lightning_pelt.search.cell import Cell, Outcome
from lightning_pelt.search.course import Walk
from lightning_pelt.search.finals import Finals
from lightning_pelt.search.space import Space

GATE = "gate"  # metrics of a gated fit are called ``gate/<stack>.<block>/<method>``


def gate_metric(stack: str, block: int, method: str) -> str:
    """Name of the mean gate of a method in a block, over held-out rows, among a cell's metrics."""
    return f"{GATE}/{stack}.{block}/{method}"


@dataclass
class GatesCourse:
    """Two runs for each task in the place of thousands.

    All methods are laid into every group, gated, and share the budget. Trained once, their gates
    are read off held-out rows. A group keeps the methods whose mean gate is ``keep`` or more, and
    at least the most open one; the budget is solved anew for those, ungated, and the found design
    is trained once more, in the comparison at the end. The groups are of equal size, and blocks
    have equal shares: gates choose methods, not groupings.

    Args:
        space: of what may be chosen; methods in none of its subsets do not take part.
        tasks: names of the tasks; gates are averaged over them.
        finals: makes the comparison at the end from the found design.
        keep: from which mean gate on a method stays. A gate begins at 0.5, so by default those stay
            that training has not begun to close.
        block: whose seeds the run has.
    """

    space: Space
    tasks: Sequence[str]
    finals: Callable[[Design], Finals]
    keep: float = 0.5
    block: int = 0

    def walk(self, outcomes: Mapping[str, Outcome]) -> Walk:
        """As far as ``outcomes`` carry it.

        Raises:
            ValueError: the gated run diverged, or no methods that stay can meet the budget.
        """
        walk = Walk(settled=self._components, gated=self._cells())
        walk.wanted = [cell for cell in walk.gated if cell.key not in outcomes]
        if walk.wanted:
            return walk
        walk.readings = self._read([outcomes[cell.key] for cell in walk.gated])
        walk.settled |= {name: self._kept(gates) for name, gates in walk.readings.items()}
        walk.found = self._affordable(walk)
        walk.finals = self.finals(walk.found)
        walk.wanted = [cell for cell in walk.finals.cells if cell.key not in outcomes]
        return walk

    @property
    def _components(self) -> dict[str, str]:
        numbers = range(1, self.space.groups + 1)
        return {
            "grouping": "uniform",
            "allocation": "uniform",
            "groups": "+".join(map(str, numbers)),
        }

    @property
    def _everything(self) -> Design:
        letters = "".join(sorted(set(chain(*self.space.sets))))
        every = {f"group {i + 1}": letters for i in range(self.space.groups)}
        design = self.space.made({**self._components, **every})
        return Design(**{**design.init_args(), "gate": Gate()})

    def _cells(self) -> list[Cell]:
        solution = self._everything.solution(self.space.anatomy)
        plan, seed = solution.plan(Gate()).to_config(), self.space.block_seed(self.block)
        return [
            Cell(plan, task, seed, "holdout", solution.total, "gates: every method in every group")
            for task in self.tasks
        ]

    def _read(self, outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
        """The mean gate of each group and letter, over blocks and tasks."""
        if any(outcome.diverged for outcome in outcomes):
            raise ValueError(
                "the gated run diverged, so there are no gates to read: lower `fit.lr` or `fit.lrs`"
            )
        design = self._everything
        depths = {stack.name: len(stack.blocks) for stack in self.space.anatomy.stacks}
        groups = layout(design.pattern, depths, self.space.groups, design.stacks)
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
        most = max(gates.values())
        return "".join(k for k, openness in gates.items() if openness >= min(self.keep, most))

    def _affordable(self, walk: Walk) -> Design:
        """The design of the methods that stay, with more of them where those cannot fill a share.

        A group that kept BitFit alone cannot spend its share: it gets its next most open method.
        """
        design = self.space.made(walk.settled)
        while (reason := self.space.reason(design)) is not None:
            closed = {
                (gates[letter], name, letter)
                for name, gates in walk.readings.items()
                for letter in gates
                if letter not in walk.settled[name] and walk.settled[name] == "B"
            }
            if not closed:
                raise ValueError(
                    f"the methods whose gates stay open come to no design: it {reason}; take "
                    "another search_budget"
                )
            _, name, letter = max(closed)
            walk.settled[name] = "".join(k for k in walk.readings[name] if k in ("B", letter))
            design = self.space.made(walk.settled)
        return design
