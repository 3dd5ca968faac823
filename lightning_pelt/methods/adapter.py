"""Bottleneck adapters: a small two-layer network after, or beside, a sublayer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt.anatomy import Anatomy, PostNorm, Site, Source
from lightning_pelt.errors import unknown
from lightning_pelt.gate import Gate, GateView
from lightning_pelt.method import Method, Part, Place
from lightning_pelt.submodule import Removable, Submodule, add_product, argument, first

Placement = Literal["auto", "unipelt", "sequential", "parallel"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Adapter(Method):
    r"""Bottleneck adapter, :math:`z = f + g \, W_{up}\,\phi(W_{down} h + b_{down}) + g \, b_{up}`
    (Houlsby et al., 2019; https://arxiv.org/abs/1902.00751).

    With ``f`` the sublayer's output before the residual sum, the placements differ in ``h``:

    - ``sequential``: ``h = f``.
    - ``parallel``: ``h`` is the sublayer's input (He et al., 2022; https://arxiv.org/abs/2110.04366).
    - ``unipelt``: ``h = LN(f + a)`` with the block's own norm and residual ``a``, which then runs a
      second time over ``z + a``, as in the code of Pfeiffer et al. and of UniPELT. For blocks that
      normalise after the sum: BERT, RoBERTa, DeBERTa, DistilBERT, BART, ...
    - ``auto``: ``unipelt`` where the block allows it, else ``sequential``.

    Args:
        bottleneck: its width; by default ``reduction`` times smaller than the model's.
        sites: ``ffn``, ``attention``, ``cross_attention``.
        activation: ``relu``, ``gelu``, ``silu`` or ``tanh``.
        init_std: of both projections; biases start at 0.
        gate: None is ungated. It reads ``h``.
        name: of its parameter group, gates and log lines.
    """

    bottleneck: int | None = None
    reduction: int = 16
    sites: Sequence[str] = ("ffn",)
    placement: Placement = "auto"
    activation: str = "relu"
    init_std: float = 0.02
    gate: Gate | None = None
    name: str = "adapter"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise unknown("activation of an adapter", self.activation, ACTIVATIONS)
        if self.placement not in get_args(Placement):
            raise unknown("placement of an adapter", self.placement, get_args(Placement))
        if (self.bottleneck is not None and self.bottleneck < 1) or self.reduction < 1:
            raise ValueError(
                f"Adapter has bottleneck={self.bottleneck}, reduction={self.reduction}: "
                "both must be at least 1"
            )

    def where(self, anatomy: Anatomy) -> list[Site]:
        for name in self.sites:
            if name not in ("ffn", "attention", "cross_attention"):
                raise unknown("site of an adapter", name, ["ffn", "attention", "cross_attention"])
        whole = anatomy.select(self.sites)
        outputs = {
            (s.stack, s.block, s.role): s for s in anatomy.sites if s.role.endswith(".output")
        }
        found = []
        for site in whole:
            output = outputs.get((site.stack, site.block, f"{site.role}.output"))
            if site.role == "ffn":
                found.append(site)
            elif site.role in self.sites and output is not None:
                inside = replace(output, role=site.role, source=site.source, d_in=site.d_in)
                found.append(inside)
        if self.placement == "unipelt" and any(site.post_norm is None for site in found):
            raise ValueError(
                f"placement 'unipelt' needs a norm over the sum of sublayer and residual, and "
                f"{anatomy.model_type} has none there: use placement='sequential' or 'parallel'"
            )
        return found

    def gate_width(self, site: Site) -> int:
        return site.source.width if self.placement == "parallel" else site.d_out

    def build(self, place: Place) -> list[Part]:
        parts = []
        for site, gate in zip(place.sites, place.gates, strict=True):
            key = f"{self.name}_{site.role}"
            if site.post_norm is not None and self.placement in ("auto", "unipelt"):
                twice = TwiceNormed(self, site, gate, site.post_norm)
                parts.append(Part(site.post_norm.output, key, twice))
            elif self.placement == "parallel":
                parts.append(Part(site.path, key, Parallel(self, site, gate)))
            else:
                parts.append(Part(site.path, key, Sequential(self, site, gate)))
        return parts


class Bottleneck(Submodule):
    """Down-projection, activation, gated up-projection, added to what it is given."""

    def __init__(self, method: Adapter, site: Site, gate: GateView | None, d_in: int) -> None:
        super().__init__()
        width = method.bottleneck or max(1, site.d_out // method.reduction)
        self.path, self.gate, self.method = site.path, gate, method
        self.down = nn.Parameter(torch.empty(width, d_in))
        self.down_bias = nn.Parameter(torch.zeros(width))
        self.up = nn.Parameter(torch.empty(site.d_out, width))
        self.up_bias = nn.Parameter(torch.zeros(site.d_out))
        nn.init.normal_(self.down, std=method.init_std)
        nn.init.normal_(self.up, std=method.init_std)

    def forward(self, output: Tensor, h: Tensor) -> Tensor:
        """output (B, T, d), h (B, T, d_in) -> (B, T, d)."""
        inner = F.linear(h.to(self.down.dtype), self.down, self.down_bias)
        inner = ACTIVATIONS[self.method.activation](inner)
        # The bias rides along as one more column, so that the gate scales it and nothing is added
        # to (B, T, d) but one product.
        inner = F.pad(inner, (0, 1), value=1.0)
        if self.gate is not None:
            self.gate.layer(h)
            inner = inner * self.gate.read().to(inner.dtype)
        return add_product(output, inner, torch.cat([self.up, self.up_bias[:, None]], 1).T)


class Sequential(Bottleneck):
    """After a sublayer: reads and extends its output."""

    def __init__(self, method: Adapter, site: Site, gate: GateView | None) -> None:
        super().__init__(method, site, gate, site.d_out)

    def install(self, model: nn.Module) -> list[Removable]:
        return [model.get_submodule(self.path).register_forward_hook(self._add)]

    def _add(self, module: nn.Module, args: tuple, output: Any) -> Any:
        return first(output, lambda f: self(f, f))


class Parallel(Bottleneck):
    """Beside a sublayer: reads its input, extends its output."""

    transient = ("input",)

    def __init__(self, method: Adapter, site: Site, gate: GateView | None) -> None:
        super().__init__(method, site, gate, site.source.width)
        self.source: Source = site.source
        self.input: Tensor | None = None

    def install(self, model: nn.Module) -> list[Removable]:
        source = model.get_submodule(self.source.path)
        return [
            source.register_forward_pre_hook(self._read, with_kwargs=True),
            model.get_submodule(self.path).register_forward_hook(self._add),
        ]

    def _read(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.input = argument(args, kwargs, self.source.argument)

    def _add(self, module: nn.Module, args: tuple, output: Any) -> Any:
        assert self.input is not None
        read, self.input = self.input, None
        return first(output, lambda f: self(f, read))


class TwiceNormed(Bottleneck):
    """In front of a norm of sublayer plus residual, reading what that norm would have given."""

    transient = ("residual",)

    def __init__(
        self, method: Adapter, site: Site, gate: GateView | None, post_norm: PostNorm
    ) -> None:
        super().__init__(method, site, gate, site.d_out)
        self.post_norm = post_norm
        self.residual: Tensor | None = None

    def install(self, model: nn.Module) -> list[Removable]:
        self.__dict__["norm"] = model.get_submodule(self.post_norm.norm)
        read = model.get_submodule(self.post_norm.residual.path)
        return [
            read.register_forward_pre_hook(self._keep, with_kwargs=True),
            model.get_submodule(self.post_norm.output).register_forward_hook(self._add),
        ]

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.residual = argument(args, kwargs, self.post_norm.residual.argument)

    def _add(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        assert self.residual is not None
        residual, self.residual = self.residual, None
        norm: nn.Module = self.__dict__["norm"]
        return self(output, norm(output + residual))
