"""Base classes of methods that add an update to the output of linear layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods._ops import linear_output
from lightning_pelt.methods.base import Method
from lightning_pelt.methods.gate import GateView, passes_by
from lightning_pelt.methods.submodule import OutputRows, Removable, Submodule, WeightUpdate


class LinearMethod(Method):
    """A method whose sites are linear layers, fused projections included.

    Attributes:
        sites: roles or globs over them: ``query``, ``ffn.out``, ``*attention.*``.

    Example::

        @dataclass(frozen=True)
        class Mine(LinearMethod):
            sites: Sequence[str] = ("query", "value")
            gate: Gate | None = None
            name: str = "mine"

            def build(self, place: Place) -> list[Part]:
                pairs = zip(place.sites, place.gates, strict=True)
                return [Part(s.path, f"{self.name}_{s.label}", MyUpdate(s, g)) for s, g in pairs]
    """

    sites: Sequence[str]

    def where(self, anatomy: Anatomy) -> list[Site]:
        found = anatomy.select(self.sites)
        wrong = next((site.role for site in found if not self.extends(site)), None)
        if wrong is not None:
            name = type(self).__name__
            raise ValueError(
                f"{name} extends linear layers, and {wrong!r} is not one: use query, value, "
                f"ffn.in, ffn.out, ... in {name}(sites=...)"
            )
        return found

    def extends(self, site: Site) -> bool:
        """Whether the method has an update for a site: a linear layer, or more where it can."""
        return site.is_linear


class LinearUpdate(Submodule):
    r"""Adds :math:`g \, \Delta(x)` to the output of one linear layer.

    A child defines :meth:`update`, and :meth:`delta` if its method is mergeable. The base class
    hooks the layer, applies the gate, and puts the result into the site's channels.

    Args:
        site: a linear layer, or a slice of its output.
        gate: of the site; None for ungated.

    Example::

        class MyUpdate(LinearUpdate):  # a scaled copy of the input, for square layers
            def __init__(self, site: Site, gate: GateView | None) -> None:
                super().__init__(site, gate)
                self.scale = nn.Parameter(torch.zeros(site.d_out))

            def update(self, x: Tensor) -> Tensor:
                return self.scale * x
    """

    def __init__(self, site: Site, gate: GateView | None) -> None:
        super().__init__()
        self.site, self.gate, self.output_rows = site, gate, OutputRows(site.channels)

    @abstractmethod
    def update(self, x: Tensor) -> Tensor:
        """x (..., d_in) -> (..., d_out), without the gate."""

    def delta(self) -> Tensor:
        """The update as a matrix (d_out, d_in), without the gate, where it is linear in ``x``."""
        raise NotImplementedError(f"{type(self).__name__} is mergeable but defines no delta()")

    def install(self, model: nn.Module) -> list[Removable]:
        return [model.get_submodule(self.site.path).register_forward_hook(self._add)]

    def _add(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if passes_by(self.gate, self.site, args[0]):
            return output
        return linear_output(output, lambda y: self(y, args[0]))

    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """output (..., width), x (..., d_in) -> (..., width)."""
        update = self.update(x)
        if self.gate is not None:
            update = update * self.gate.read().to(update.dtype)
        update = update.to(output.dtype)
        if self.output_rows.rows is None:
            return output + update
        return output.index_add(-1, self.output_rows.rows, update)

    def weight_updates(self) -> list[WeightUpdate]:
        return [WeightUpdate(self.site, delta=self.delta(), gate=self.gate)]
