"""What an attached plan comes to, block by block: counted on the submodules that are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.attach import Attachment
from lightning_pelt.attachment import NORM
from lightning_pelt.design_space import Allotment, Block, Design, Solution
from lightning_pelt.forge import Forge, shape_key
from lightning_pelt.method import Method
from lightning_pelt.methods import LoRA, Prefix, Prompt
from lightning_pelt.profiles.masks import Masks


@dataclass(frozen=True)
class Cell:
    """A method in a block: its size, ``r=7``, empty where it has none; and its parameters."""

    size: str
    parameters: int


@dataclass(frozen=True)
class Row:
    """What one block gets.

    Attributes:
        block: its stack and number.
        group: its group in the plan, from 1; ``1+3`` of groups that overlap, ``-`` of none.
        cells: by the methods' names.
        share: the parameters that a design means for the block; None without a design.
        under_budget: whether its methods cannot fill that share.
    """

    block: Block
    group: str
    cells: Mapping[str, Cell]
    share: int | None = None
    under_budget: bool = False

    @property
    def total(self) -> int:
        """Parameters of all methods."""
        return sum(cell.parameters for cell in self.cells.values())

    @property
    def filled(self) -> float | None:
        """The total as a part of the share; None without a share."""
        return self.total / self.share if self.share else None


@dataclass(frozen=True)
class Breakdown:
    """A plan on a model, in numbers of parameters that are trained.

    Attributes:
        rows: one per block, from the input on.
        methods: names, in the plan's order.
        outside: what no single block has, by method: a rule or an MLP that blocks share.
        deployed: what of a method remains after training, gates aside.
        gates: of a method's gates.
        norms, head, backbone: of the base's norms if they are trained, of the head, of the base.
        base_trained: whether the base is trained along.
        solution: how a design came to its sizes.
    """

    rows: tuple[Row, ...]
    methods: tuple[str, ...]
    outside: Mapping[str, int]
    deployed: Mapping[str, int]
    gates: Mapping[str, int]
    norms: int
    head: int
    backbone: int
    base_trained: bool = False
    solution: Solution | None = None

    @property
    def totals(self) -> dict[str, int]:
        """Trained parameters by method, without gates."""
        return {
            name: self.outside.get(name, 0)
            + sum(row.cells[name].parameters for row in self.rows if name in row.cells)
            for name in self.methods
        }

    @property
    def groups(self) -> dict[str, list[Row]]:
        """The rows of every group, in the order of the network."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.group, []).append(row)
        return found


def break_down(attachment: Attachment) -> Breakdown:
    """Count an attached plan block by block."""
    plan, anatomy = attachment.plan, attachment.anatomy
    solution = None
    if isinstance(plan, Design):
        solution = plan.solution(anatomy)
        plan = solution.plan(plan.gate)
    allotted = {each.block: each for each in solution.blocks} if solution else {}
    counted, outside = _counted(attachment)
    sizes: dict[Block, dict[str, str]] = {}
    groups: dict[Block, list[int]] = {}
    for number, method, sites in plan.place(anatomy):
        for site in sites:
            if site.block is not None:
                block = Block(site.stack, site.block)
                sizes.setdefault(block, {}).setdefault(method.name, size_of(method, site))
                groups.setdefault(block, []).append(number + 1)
    counts = {name: c for name, c in attachment.counts.items() if name != NORM}
    return Breakdown(
        rows=tuple(
            Row(
                block,
                _group(allotted.get(block), groups.get(block, [])),
                {n: Cell(size, counted[block, n]) for n, size in sizes.get(block, {}).items()},
                allotted[block].share if block in allotted else None,
                block in allotted and allotted[block].under_budget,
            )
            for block in _blocks(anatomy)
        ),
        methods=tuple(counts),
        outside=outside,
        deployed={name: count.deployed for name, count in counts.items()},
        gates={name: count.gates for name, count in counts.items()},
        norms=attachment.counts[NORM].trained if NORM in attachment.counts else 0,
        head=attachment.head_size,
        backbone=attachment.backbone_size,
        base_trained=plan.train_base,
        solution=solution,
    )


def size_of(method: Method, site: Site) -> str:
    """Rank ``r``, length ``l`` or bottleneck ``m``; empty for a method without a size."""
    if isinstance(method, LoRA):
        return f"r={method.r}"
    if isinstance(method, (Prefix, Prompt)):
        return f"l={method.length}"
    made: Any = method
    if hasattr(method, "shape"):
        return f"m={made.shape(site).width}"
    if hasattr(method, "reduction_factor"):
        return f"m={made.bottleneck or max(1, site.d_out // made.reduction_factor)}"
    return ""


def _blocks(anatomy: Anatomy) -> Iterator[Block]:
    return (Block(s.name, number) for s in anatomy.stacks for number in range(len(s.blocks)))


def _group(allotment: Allotment | None, numbers: Iterable[int]) -> str:
    if allotment is not None:
        return str(allotment.group + 1)
    return "+".join(map(str, sorted(set(numbers)))) or "-"


def _counted(attachment: Attachment) -> tuple[Counter[tuple[Block, str]], Counter[str]]:
    """Parameters by block and method, and those of a method that lie in no single block."""
    anatomy = attachment.anatomy
    homes = {
        path: Block(s.name, number) for s in anatomy.stacks for number, path in enumerate(s.blocks)
    }
    inside: dict[nn.Module, Block] = {}
    for name, module in attachment.model.named_modules():
        for path, block in homes.items():
            if name.startswith(f"{path}."):
                inside[module] = block
    blocks: Counter[tuple[Block, str]] = Counter()
    outside: Counter[str] = Counter()
    for name, modules in attachment.submodules.items():
        for module in dict.fromkeys(modules):
            whole = sum(parameter.numel() for parameter in module.parameters())
            if module in inside:
                blocks[inside[module], name] += whole
                continue
            for site, count in _by_site(module):
                if site.block is not None:
                    blocks[Block(site.stack, site.block), name] += count
                    whole -= count
            outside[name] += whole
    return blocks, outside


def _by_site(module: nn.Module) -> Iterator[tuple[Site, int]]:
    """What each site has of tensors that hold the weights of many sites, one row for each."""
    for name, parameter in module.named_parameters():
        sites: list[Site] = []
        if isinstance(module, Masks):
            sites = list(module.sites)
        elif isinstance(module, Forge):
            key = name.partition(".")[0].rpartition("_")[2]
            shaped = zip(module.sites, module.shapes, strict=True)
            sites = [site for site, shape in shaped if shape_key(shape) == key]
        for site in sites:
            yield site, parameter.numel() // len(sites)
