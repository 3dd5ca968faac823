"""The factors of LoRA on linear layers: one product down, and one up for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt.anatomy import Site
from lightning_pelt.methods._kept import KeepingSubmodule
from lightning_pelt.methods._ops import add_product, argument, cast, linear_output, match_dtype
from lightning_pelt.methods._principal import principal_factors
from lightning_pelt.methods._rows import Rows
from lightning_pelt.methods.current import Current
from lightning_pelt.methods.gate import GateView, passes_by
from lightning_pelt.methods.submodule import OutputRows, Removable, Submodule, WeightUpdate, refer

if TYPE_CHECKING:
    from lightning_pelt.methods.lora import LoRA


class LoRADown(Submodule):
    """The down-projections A of all sites that read one tensor, as one matrix product."""

    def __init__(self, method: LoRA, sites: Sequence[Site]) -> None:
        super().__init__()
        self.source = sites[0].source
        self.A = nn.Parameter(torch.empty(len(sites) * method.r, self.source.width))
        self.dropout = nn.Dropout(method.dropout) if method.dropout else None
        self.rank, self.count = method.r, len(sites)
        self.A0: Tensor | None
        self.register_buffer("A0", self.A.detach().clone() if method.init == "pissa" else None)
        # x, and A x by site.
        self.low: Current[tuple[Tensor, tuple[Tensor, ...]]] = Current(f"A x of {self.source.path}")
        nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def install(self, model: nn.Module) -> list[Removable]:
        host = model.get_submodule(self.source.path)
        return [host.register_forward_pre_hook(self._read, with_kwargs=True)]

    def _read(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        x = argument(args, kwargs, self.source.argument)
        self.low.set((x, self._by_site(x)))

    def of(self, x: Tensor) -> tuple[Tensor, ...]:
        """A x of each site, for the input ``x`` (B, T, d_in) of its layer."""
        read, low = self.low.get()
        if read is x:
            return low
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
        A = self.weight()
        return F.linear(match_dtype(x, A), A)

    def weight(self) -> Tensor:
        """A of every site; from PiSSA's start, A and A - A_0 of every site, (sites x 2 r, d_in)."""
        A = self.A  # a look-up among the parameters
        if self.A0 is None:
            return A
        both = torch.stack([A, A - self.A0]).unflatten(1, (self.count, -1))
        return both.transpose(0, 1).flatten(0, 2)

    @torch.no_grad()
    def start(self, index: int, A: Tensor) -> None:
        """Set A and A_0 of one site to the principal factor ``A`` (r, d_in)."""
        for whole in (self.A, self.A0):
            if whole is not None:
                whole.unflatten(0, (self.count, -1))[index].copy_(A)

    def by_rows(self, others: Sequence[LoRADown], rows: Rows) -> None:
        self.mixed_rows, self.stacked = rows, rows.stack([o.weight().mT for o in others])


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
            if method.init == "pissa":
                self.register_buffer(f"B0_{key}", torch.zeros(site.d_out, method.r))
        self.principal = method.init == "pissa"

    def install(self, model: nn.Module) -> list[Removable]:
        host = model.get_submodule(self.path)
        for index, site, key in zip(self.indices, self.sites, self.keys, strict=True):
            if self.principal:
                A, B = principal_factors(host, site, self.rank)
                root = abs(self.scale) ** -0.5
                self.down.start(index, root * A)
                self._start(key, root * B)
        return [host.register_forward_hook(self._add)]

    @torch.no_grad()
    def _start(self, key: str, B: Tensor) -> None:
        for name in (f"B_{key}", f"B0_{key}"):
            getattr(self, name).copy_(B)

    def _add(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if self.site.repeated and any(passes_by(g, self.site, args[0]) for g in self.gates):
            return output
        if isinstance(output, Tensor):
            return self(output, args[0])
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
            self._tensors(),
            lambda: cast(self.weight(width).T, dtype).contiguous(),
            also=(width, dtype),
        )

    def _tensors(self) -> list[Tensor]:
        """B of every site, then B_0 of every site."""
        here = [*self._parameters.values()]  # in their order, and faster than by name
        if len(here) != len(self.keys):
            here = [getattr(self, f"B_{key}") for key in self.keys]
        starts = [getattr(self, f"B0_{key}") for key in self.keys] if self.principal else []
        return [*here, *starts]

    def _weights(self) -> list[Tensor]:
        """What multiplies ``down`` of every site: B; from PiSSA's start, B - B_0 and B_0.

        B A - B_0 A_0 = (B - B_0) A + B_0 (A - A_0), which is exactly zero at the start, and whose
        terms half precision rounds by their own size, not by that of the principal part.
        """
        tensors = self._tensors()
        if not self.principal:
            return tensors
        pairs = zip(tensors[: len(self.keys)], tensors[len(self.keys) :], strict=True)
        return [torch.cat([B - B0, B0], 1) for B, B0 in pairs]

    def weight(self, width: int) -> Tensor:
        """(width, sites x r): each B in its rows of a fused projection."""
        columns = [
            rows(B, width) for B, rows in zip(self._weights(), self.output_rows, strict=True)
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
        downs = self.down.weight().unflatten(0, (self.down.count, -1))
        ups = [self.scale * B for B in self._weights()]
        parts = zip(self.sites, ups, self.indices, self.gates, strict=True)
        return [WeightUpdate(s, delta=up @ downs[i], gate=gate) for s, up, i, gate in parts]

    @torch.no_grad()
    def factors(self, key: str) -> tuple[Tensor, Tensor]:
        """A (R, d_in) and B (d_out, R) of one site as one LoRA; R is 2 r from PiSSA's start."""
        index, B = self.indices[self.keys.index(key)], getattr(self, f"B_{key}").detach()
        A = self.down.A.detach().unflatten(0, (self.down.count, -1))[index]
        if self.down.A0 is None:
            return A, B
        A0 = self.down.A0.unflatten(0, (self.down.count, -1))[index]
        return torch.cat([A, A0]), torch.cat([B, -getattr(self, f"B0_{key}")], 1)

    @torch.no_grad()
    def set_factors(self, key: str, A: Tensor, B: Tensor) -> None:
        """Overwrite what :meth:`factors` gives.

        Raises:
            RuntimeError: another shape.
        """
        index, down = self.indices[self.keys.index(key)], self.down
        (As, Bs) = ([A], [B]) if down.A0 is None else (A.chunk(2), B.chunk(2, 1))
        for whole, part in zip([down.A, down.A0], As, strict=False):
            if whole is not None:
                whole.unflatten(0, (down.count, -1))[index].copy_(part)
        for name, sign, part in zip((f"B_{key}", f"B0_{key}"), (1, -1), Bs, strict=False):
            getattr(self, name).copy_(sign * part)
