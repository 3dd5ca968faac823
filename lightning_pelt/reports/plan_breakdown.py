"""The parameters of an attached plan by block and method, counted on the attached submodules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.attach import NORM, Attachment
from lightning_pelt.plans import Plan
from lightning_pelt.plans.design_space import Allotment, Block, Design, Solution
from lightning_pelt.reports.base_bytes import bytes_of_base


@dataclass(frozen=True)
class MethodInBlock:
    """A method in one block.

    Attributes:
        size: such as ``r=7``; empty for a method without a size.
        parameters: number of trained parameters in the block.
    """

    size: str
    parameters: int


@dataclass(frozen=True)
class BlockRow:
    """The methods of one block.

    Attributes:
        block: its stack and number.
        group: number of its group in the plan, from 1; ``1+3`` if groups overlap, ``-`` if none.
        methods: by name.
        share: the parameters that a design allots to the block; None without a design.
        under_budget: whether the methods cannot use the whole share.
    """

    block: Block
    group: str
    methods: Mapping[str, MethodInBlock]
    share: int | None = None
    under_budget: bool = False

    @property
    def total(self) -> int:
        """Parameters of all methods."""
        return sum(method.parameters for method in self.methods.values())

    @property
    def filled(self) -> float | None:
        """The total divided by the share; None without a share."""
        return self.total / self.share if self.share else None


@dataclass(frozen=True)
class Breakdown:
    """The trained parameters of a plan on a model.

    Attributes:
        rows: one per block, input first.
        methods: names in the order of the plan.
        outside: by method, parameters that several blocks share, such as a rule or an MLP.
        deployed: by method, parameters that remain after training, without gates.
        gates: by method, parameters of its gates.
        norms: parameters of the base's norms, 0 if they are frozen.
        head: parameters of the head.
        backbone: parameters of the base.
        base_trained: whether the base is trained, as in full fine-tuning.
        solution: the solved sizes of a design; None for other plans.
        quantised: how the base is quantised, and its bytes before and after; empty if it is not.
    """

    rows: tuple[BlockRow, ...]
    methods: tuple[str, ...]
    outside: Mapping[str, int]
    deployed: Mapping[str, int]
    gates: Mapping[str, int]
    norms: int
    head: int
    backbone: int
    base_trained: bool = False
    solution: Solution | None = None
    quantised: str = ""

    @property
    def totals(self) -> dict[str, int]:
        """Trained parameters by method, without gates."""
        return {
            name: self.outside.get(name, 0)
            + sum(row.methods[name].parameters for row in self.rows if name in row.methods)
            for name in self.methods
        }

    @property
    def groups(self) -> dict[str, list[BlockRow]]:
        """The rows of every group, in the order of the network."""
        found: dict[str, list[BlockRow]] = {}
        for row in self.rows:
            found.setdefault(row.group, []).append(row)
        return found


def break_down(attachment: Attachment) -> Breakdown:
    """Count the parameters of an attached plan by block and method.

    Example:
        >>> from lightning_pelt import LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> found = break_down(attach(tiny_bert(), Plan.uniform(LoRA(r=2))))
        >>> [(row.block.number, row.methods["lora"].size, row.total) for row in found.rows]
        [(0, 'r=2', 256), (1, 'r=2', 256)]
    """
    plan, anatomy = attachment.plan, attachment.anatomy
    solution = None
    if isinstance(plan, Design):
        solution = plan.solution(anatomy)
        plan = solution.plan(plan.gate)
    allotted = {each.block: each for each in solution.blocks} if solution else {}
    parameters, outside = _count(attachment)
    sizes, groups = _sizes_and_groups(plan, anatomy)
    counts = {name: c for name, c in attachment.counts.items() if name != NORM}
    rows, base = [], bytes_of_base(attachment)
    for block in _blocks(anatomy):
        methods = {
            name: MethodInBlock(size, parameters[block, name])
            for name, size in sizes.get(block, {}).items()
        }
        allotment = allotted.get(block)
        group = _group_name(allotment, groups.get(block, []))
        share = allotment.share if allotment else None
        under_budget = allotment is not None and allotment.under_budget
        rows.append(BlockRow(block, group, methods, share, under_budget))
    return Breakdown(
        rows=tuple(rows),
        methods=tuple(counts),
        outside=outside,
        deployed={name: count.deployed for name, count in counts.items()},
        gates={name: count.gates for name, count in counts.items()},
        norms=attachment.counts[NORM].trained if NORM in attachment.counts else 0,
        head=attachment.head_size,
        backbone=attachment.backbone_size,
        base_trained=plan.train_base,
        solution=solution,
        quantised=str(base) if base.kinds else "",
    )


def _sizes_and_groups(
    plan: Plan, anatomy: Anatomy
) -> tuple[dict[Block, dict[str, str]], dict[Block, list[int]]]:
    """By block: the sizes of its methods, and the numbers of its groups from 1."""
    sizes: dict[Block, dict[str, str]] = {}
    groups: dict[Block, list[int]] = {}
    for number, method, sites in plan.place(anatomy):
        for site in sites:
            if site.block is not None:
                block = Block(site.stack, site.block)
                sizes.setdefault(block, {}).setdefault(method.name, method.size(site))
                groups.setdefault(block, []).append(number + 1)
    return sizes, groups


def _blocks(anatomy: Anatomy) -> Iterator[Block]:
    return (Block(s.name, number) for s in anatomy.stacks for number in range(len(s.blocks)))


def _group_name(allotment: Allotment | None, numbers: Iterable[int]) -> str:
    if allotment is not None:
        return str(allotment.group + 1)
    return "+".join(map(str, sorted(set(numbers)))) or "-"


def _count(attachment: Attachment) -> tuple[Counter[tuple[Block, str]], Counter[str]]:
    """Parameters by block and method, and by method those that belong to no single block."""
    block_of = _block_of_each_module(attachment)
    blocks: Counter[tuple[Block, str]] = Counter()
    outside: Counter[str] = Counter()
    for name, modules in attachment.submodules.items():
        for module in dict.fromkeys(modules):
            remaining = sum(parameter.numel() for parameter in module.parameters())
            if module in block_of:
                blocks[block_of[module], name] += remaining
                continue
            for site, count in module.parameters_by_site().items():
                if site.block is not None:
                    blocks[Block(site.stack, site.block), name] += count
                    remaining -= count
            outside[name] += remaining
    return blocks, outside


def _block_of_each_module(attachment: Attachment) -> dict[nn.Module, Block]:
    """The block that each module is inside of; modules outside of the blocks are left out."""
    paths = {
        path: Block(stack.name, number)
        for stack in attachment.anatomy.stacks
        for number, path in enumerate(stack.blocks)
    }
    found: dict[nn.Module, Block] = {}
    for name, module in attachment.model.named_modules():
        for path, block in paths.items():
            if name.startswith(f"{path}."):
                found[module] = block
    return found
