"""LoRA: a low-rank update of a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt.anatomy import Site
from lightning_pelt.methods._kept import KeepingSubmodule
from lightning_pelt.methods._ops import add_product, argument, cast, linear_output, match_dtype
from lightning_pelt.methods._rows import Rows
from lightning_pelt.methods.base import Cost, Part, Place
from lightning_pelt.methods.current import Current
from lightning_pelt.methods.gate import Gate, GateView, passes_by
from lightning_pelt.methods.linear import LinearMethod
from lightning_pelt.methods.submodule import OutputRows, Removable, Submodule, WeightUpdate, refer


@dataclass(frozen=True)
class LoRA(LinearMethod):
    r"""Low-rank adaptation, :math:`y = W x + s \, B A x` (Hu et al., 2022;
    https://arxiv.org/abs/2106.09685).

    The scale ``s`` is ``alpha / r``, or ``alpha / sqrt(r)`` with ``rslora`` (Kalajdzievski, 2023;
    https://arxiv.org/abs/2312.03732). A gate replaces it, as in UniPELT.

    Args:
        r: rank of the update.
        alpha: numerator of the scale; ignored when gated.
        dropout: probability of dropout on the input of A.
        rslora: divide ``alpha`` by the square root of the rank.
        sites: roles to extend: ``query``, ``key``, ``value``, ``output``, ``ffn.in``, ``ffn.out``,
            or a glob such as ``*attention.*``.
        gate: None for ungated.
        name: of its parameter group, gates and log lines.

    Raises:
        ValueError: a rank below 1, or a dropout outside [0, 1).

    Example:
        >>> from lightning_pelt import LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attach(tiny_bert(), Plan.uniform(LoRA(r=4))).counts["lora"].trained
        1024
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    sites: Sequence[str] = ("query", "value")
    gate: Gate | None = None
    name: str = "lora"

    mergeable = True

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"LoRA has rank r={self.r}: it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA has dropout={self.dropout}: it must lie in [0, 1)")

    @property
    def scale(self) -> float:
        """The factor of B A: 1 when gated, since the gate replaces it."""
        if self.gate is not None:
            return 1.0
        return self.alpha / (self.r**0.5 if self.rslora else self.r)

    def size(self, site: Site) -> str:
        return f"r={self.r}"

    def cost(self, sites: Sequence[Site]) -> Cost:
        return Cost(0, sum(site.source.width + site.d_out for site in sites))

    def sized(self, size: int) -> LoRA:
        """With rank ``size``, and ``alpha`` so that the scale equals that of the defaults."""
        return replace(self, r=size, alpha=LoRA.alpha / LoRA.r * size)

    def build(self, place: Place) -> list[Part]:
        down = LoRADown(self, place.sites)
        parts = [Part(place.sites[0].source.path, f"{self.name}_down", down)]
        paths = dict.fromkeys(site.path for site in place.sites)
        for path in paths:
            here = [i for i, site in enumerate(place.sites) if site.path == path]
            sites, gates = [place.sites[i] for i in here], [place.gates[i] for i in here]
            up = LoRAUp(self, down, here, sites=sites, gates=gates)
            parts.append(Part(path, f"{self.name}_up", up))
        return parts


class LoRADown(Submodule):
    """The down-projections A of all sites that read one tensor, as one matrix product."""

    def __init__(self, method: LoRA, sites: Sequence[Site]) -> None:
        super().__init__()
        self.source = sites[0].source
        self.A = nn.Parameter(torch.empty(len(sites) * method.r, self.source.width))
        self.dropout = nn.Dropout(method.dropout) if method.dropout else None
        self.rank, self.count = method.r, len(sites)
        self.low: Current[tuple[Tensor, ...]] = Current(f"A x of {self.source.path}")  # by site
        self.read: Current[Tensor] = Current(self.source.path)
        nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def install(self, model: nn.Module) -> list[Removable]:
        host = model.get_submodule(self.source.path)
        return [host.register_forward_pre_hook(self._read, with_kwargs=True)]

    def _read(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        x = argument(args, kwargs, self.source.argument)
        self.low.set(self._by_site(x))
        self.read.set(x)

    def of(self, x: Tensor) -> tuple[Tensor, ...]:
        """A x of each site, for the input ``x`` (B, T, d_in) of its layer."""
        if self.read.get() is x:
            return self.low.get()
        # The layer runs on another tensor too: DeBERTa's on positions, LUKE's on entities.
        return self._by_site(x)

    def _by_site(self, x: Tensor) -> tuple[Tensor, ...]:
        low = self(x)
        return (low,) if self.count == 1 else low.chunk(self.count, -1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d_in) -> (B, T, sites x r)."""
        if self.dropout is not None:
            x = self.dropout(x)
        if self.mixed_rows is not None:
            return self.mixed_rows.product(x, self.stacked)
        return F.linear(match_dtype(x, self.A), self.A)

    def by_rows(self, others: Sequence[LoRADown], rows: Rows) -> None:
        self.mixed_rows, self.stacked = rows, rows.stack([other.A.mT for other in others])


class LoRAUp(KeepingSubmodule):
    """The up-projections B of the sites in one linear layer, added to its output."""

    down: LoRADown

    def __init__(
        self,
        method: LoRA,
        down: LoRADown,
        indices: Sequence[int],
        *,
        sites: Sequence[Site],
        gates: Sequence[GateView | None],
    ) -> None:
        super().__init__()
        self.rank, self.scale, self.path = method.r, method.scale, sites[0].path
        self.indices, self.gates = list(indices), list(gates)
        self.site, self.sites = sites[0], list(sites)
        self.keys = [site.label.replace(".", "_") for site in sites]
        self.output_rows = nn.ModuleList(OutputRows(site.channels) for site in sites)
        refer(self, down=down)
        for key, site in zip(self.keys, sites, strict=True):
            self.register_parameter(f"B_{key}", nn.Parameter(torch.zeros(site.d_out, method.r)))

    def install(self, model: nn.Module) -> list[Removable]:
        return [model.get_submodule(self.path).register_forward_hook(self._add)]

    def _add(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if self.site.repeated and any(passes_by(g, self.site, args[0]) for g in self.gates):
            return output
        return linear_output(output, lambda y: self(y, args[0]))

    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """output (B, T, d_out), x (B, T, d_in) -> (B, T, d_out)."""
        low = self.down.of(x)
        if self.mixed_rows is None and len(self.gates) == 1 and (gate := self.gates[0]) is not None:
            number = gate.number()
            if number is not None:
                return add_product(output, low[self.indices[0]], self._right(output), scale=number)
        pairs = zip(self.indices, self.gates, strict=True)
        parts = [self._scaled(low[index], gate) for index, gate in pairs]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        if self.mixed_rows is not None:
            return self.mixed_rows.product(whole, self._stacked(output.shape[-1]), onto=output)
        return add_product(output, whole, self._right(output), scale=self.scale)

    def _scaled(self, low: Tensor, gate: GateView | None) -> Tensor:
        return low if gate is None else low * cast(gate.read(), low.dtype)

    def _right(self, output: Tensor) -> Tensor:
        """The weight in the form that multiplies fastest, (sites x r, d_out)."""
        width, dtype = output.shape[-1], output.dtype
        return self.kept.of(
            [getattr(self, f"B_{key}") for key in self.keys],
            lambda: cast(self.weight(width).T, dtype).contiguous(),
            also=(width, dtype),
        )

    def weight(self, width: int) -> Tensor:
        """(width, sites x r): each B in its rows of a fused projection."""
        columns = [
            rows(getattr(self, f"B_{key}"), width)
            for key, rows in zip(self.keys, self.output_rows, strict=True)
        ]
        return columns[0] if len(columns) == 1 else torch.cat(columns, 1)

    def by_rows(self, others: Sequence[LoRAUp], rows: Rows) -> None:
        self.mixed_rows, self.others = rows, tuple(others)
        self.stacked: dict[int, Tensor] = {}  # by the width of the layer, which a forward shows

    def _stacked(self, width: int) -> Tensor:
        """The scaled weights of all adapters, (adapters + 1, sites x r, width)."""
        if width not in self.stacked:
            assert self.mixed_rows is not None
            weights = [self.scale * other.weight(width).T for other in self.others]
            self.stacked[width] = self.mixed_rows.stack(weights)
        return self.stacked[width]

    def weight_updates(self) -> list[WeightUpdate]:
        """s B A of every site."""
        downs = self.down.A.unflatten(0, (-1, self.rank))
        ups = [self.scale * getattr(self, f"B_{key}") for key in self.keys]
        parts = zip(self.sites, ups, self.indices, self.gates, strict=True)
        return [WeightUpdate(s, delta=up @ downs[i], gate=gate) for s, up, i, gate in parts]
