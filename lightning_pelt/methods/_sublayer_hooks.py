"""Where a bottleneck reads and where it writes: hooks on the sublayers of a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import Tensor, nn

from lightning_pelt.anatomy import Anatomy, PostNorm, Site
from lightning_pelt.methods._ops import argument, first
from lightning_pelt.methods.current import Current
from lightning_pelt.methods.submodule import Removable, Submodule, refer
from lightning_pelt.utils.errors import unknown

Placement = Literal["auto", "unipelt", "sequential", "parallel"]
SUBLAYERS = ("ffn", "attention", "cross_attention")


def check_placement(placement: str) -> None:
    """Raise a ``ValueError`` unless ``placement`` is one of :data:`Placement`."""
    if placement not in get_args(Placement):
        raise unknown("placement", placement, get_args(Placement))


def sublayers(anatomy: Anatomy, sites: Sequence[str], placement: Placement) -> list[Site]:
    """Sublayers (``ffn``, ``attention``, ...) as sites whose path gives the sublayer's output.

    Raises:
        ValueError: the site is not a sublayer, the model lacks it, or the placement is ``unipelt``
            and no norm follows the sum of sublayer and residual.
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
            f"{anatomy.model_type} has no such norm: use placement='sequential' or 'parallel'"
        )
    return found


def hook_sublayer(net: nn.Module, site: Site, placement: Placement) -> SublayerHooks:
    """Hooks that apply ``net(f, h) -> z`` to a sublayer, with ``h`` as ``placement`` defines it."""
    if site.post_norm is not None and placement in ("auto", "unipelt"):
        return TwiceNormed(net, site, site.post_norm)
    return Parallel(net, site) if placement == "parallel" else Sequential(net, site)


class SublayerHooks(Submodule):
    """Hooks on a sublayer that apply ``net(f, h) -> z`` to its output f.

    Attributes:
        host: path of the module that owns it.
    """

    def __init__(self, net: nn.Module, site: Site) -> None:
        super().__init__()
        self.net, self.site, self.host = net, site, site.path

    def forward(self, output: Tensor, h: Tensor) -> Tensor:
        """output (B, T, d), h (B, T, d_in) -> (B, T, d)."""
        return self.net(output, h)


class Sequential(SublayerHooks):
    """After a sublayer: reads its output and adds to it."""

    def install(self, model: nn.Module) -> list[Removable]:
        return [model.get_submodule(self.host).register_forward_hook(self._add)]

    def _add(self, module: nn.Module, args: tuple, output: Any) -> Any:
        return first(output, lambda f: self(f, f))


class Parallel(SublayerHooks):
    """Parallel to a sublayer: reads its input and adds to its output."""

    def __init__(self, net: nn.Module, site: Site) -> None:
        super().__init__(net, site)
        self.input: Current[Tensor] = Current(f"the input of {site.source.path}")

    def install(self, model: nn.Module) -> list[Removable]:
        source = model.get_submodule(self.site.source.path)
        return [
            source.register_forward_pre_hook(self._read, with_kwargs=True),
            model.get_submodule(self.host).register_forward_hook(self._add),
        ]

    def _read(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.input.set(argument(args, kwargs, self.site.source.argument))

    def _add(self, module: nn.Module, args: tuple, output: Any) -> Any:
        read = self.input.take()
        return first(output, lambda f: self(f, read))


class TwiceNormed(SublayerHooks):
    """In front of the norm over sublayer plus residual; reads that norm's output for ``z = f``."""

    norm: nn.Module

    def __init__(self, net: nn.Module, site: Site, post_norm: PostNorm) -> None:
        super().__init__(net, site)
        self.post_norm, self.host = post_norm, post_norm.output
        self.residual: Current[Tensor] = Current(f"the residual of {self.host}")

    def install(self, model: nn.Module) -> list[Removable]:
        refer(self, norm=model.get_submodule(self.post_norm.norm))
        read = model.get_submodule(self.post_norm.residual.path)
        return [
            read.register_forward_pre_hook(self._keep, with_kwargs=True),
            model.get_submodule(self.host).register_forward_hook(self._add),
        ]

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.residual.set(argument(args, kwargs, self.post_norm.residual.argument))

    def _add(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self(output, self.norm(output + self.residual.take()))
