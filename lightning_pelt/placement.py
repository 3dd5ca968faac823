"""Where a bottleneck reads and where it writes, whatever it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import Tensor, nn

from lightning_pelt.anatomy import Anatomy, PostNorm, Site
from lightning_pelt.errors import unknown
from lightning_pelt.submodule import Removable, Submodule, argument, first

Placement = Literal["auto", "unipelt", "sequential", "parallel"]
SUBLAYERS = ("ffn", "attention", "cross_attention")


def check(placement: str) -> None:
    """Raise a ``ValueError`` unless ``placement`` is one of :data:`Placement`."""
    if placement not in get_args(Placement):
        raise unknown("placement", placement, get_args(Placement))


def sublayers(anatomy: Anatomy, sites: Sequence[str], placement: Placement) -> list[Site]:
    """Sublayers (``ffn``, ``attention``, ...) as sites whose path gives the sublayer's output.

    Raises:
        ValueError: another site, one that the model lacks, or ``unipelt`` where no norm takes the
            sum of sublayer and residual.
    """
    for name in sites:
        if name not in SUBLAYERS:
            raise unknown("site of a bottleneck", name, SUBLAYERS)
    outputs = {(s.stack, s.block, s.role): s for s in anatomy.sites if s.role.endswith(".output")}
    found = []
    for site in anatomy.select(sites):
        output = outputs.get((site.stack, site.block, f"{site.role}.output"))
        if site.role == "ffn":
            found.append(site)
        elif site.role in sites and output is not None:
            found.append(replace(output, role=site.role, source=site.source, d_in=site.d_in))
    if placement == "unipelt" and any(site.post_norm is None for site in found):
        raise ValueError(
            f"placement 'unipelt' needs a norm over the sum of sublayer and residual, and "
            f"{anatomy.model_type} has none there: use placement='sequential' or 'parallel'"
        )
    return found


def reads(site: Site, placement: Placement) -> int:
    """Width of what a bottleneck at ``site`` reads."""
    return site.source.width if placement == "parallel" else site.d_out


def place(net: nn.Module, site: Site, placement: Placement) -> Placed:
    """Put ``net(f, h) -> z`` at a sublayer, with the ``h`` that ``placement`` says."""
    if site.post_norm is not None and placement in ("auto", "unipelt"):
        return TwiceNormed(net, site, site.post_norm)
    return Parallel(net, site) if placement == "parallel" else Sequential(net, site)


class Placed(Submodule):
    """A bottleneck in its place: hooks on the sublayer around ``net(f, h) -> z``.

    Attributes:
        host: path of the module that it belongs to.
    """

    def __init__(self, net: nn.Module, site: Site) -> None:
        super().__init__()
        self.net, self.site, self.host = net, site, site.path

    def forward(self, output: Tensor, h: Tensor) -> Tensor:
        """output (B, T, d), h (B, T, d_in) -> (B, T, d)."""
        return self.net(output, h)


class Sequential(Placed):
    """After a sublayer: reads and extends its output."""

    def install(self, model: nn.Module) -> list[Removable]:
        return [model.get_submodule(self.host).register_forward_hook(self._add)]

    def _add(self, module: nn.Module, args: tuple, output: Any) -> Any:
        return first(output, lambda f: self(f, f))


class Parallel(Placed):
    """Beside a sublayer: reads its input, extends its output."""

    transient = ("input",)

    def __init__(self, net: nn.Module, site: Site) -> None:
        super().__init__(net, site)
        self.input: Tensor | None = None

    def install(self, model: nn.Module) -> list[Removable]:
        source = model.get_submodule(self.site.source.path)
        return [
            source.register_forward_pre_hook(self._read, with_kwargs=True),
            model.get_submodule(self.host).register_forward_hook(self._add),
        ]

    def _read(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.input = argument(args, kwargs, self.site.source.argument)

    def _add(self, module: nn.Module, args: tuple, output: Any) -> Any:
        assert self.input is not None
        read, self.input = self.input, None
        return first(output, lambda f: self(f, read))


class TwiceNormed(Placed):
    """In front of a norm of sublayer plus residual, reading what that norm would have given."""

    transient = ("residual",)

    def __init__(self, net: nn.Module, site: Site, post_norm: PostNorm) -> None:
        super().__init__(net, site)
        self.post_norm, self.host = post_norm, post_norm.output
        self.residual: Tensor | None = None

    def install(self, model: nn.Module) -> list[Removable]:
        self.__dict__["norm"] = model.get_submodule(self.post_norm.norm)
        read = model.get_submodule(self.post_norm.residual.path)
        return [
            read.register_forward_pre_hook(self._keep, with_kwargs=True),
            model.get_submodule(self.host).register_forward_hook(self._add),
        ]

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.residual = argument(args, kwargs, self.post_norm.residual.argument)

    def _add(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        assert self.residual is not None
        residual, self.residual = self.residual, None
        norm: nn.Module = self.__dict__["norm"]
        return self(output, norm(output + residual))
