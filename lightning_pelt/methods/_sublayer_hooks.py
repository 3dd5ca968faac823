"""Where a bottleneck reads and where it writes: hooks on the sublayers of a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import Tensor, nn

from lightning_pelt.anatomy import Anatomy, Residual, Site, Source
from lightning_pelt.methods._ops import argument, first
from lightning_pelt.methods._rows import Rows
from lightning_pelt.methods.current import Current
from lightning_pelt.methods.submodule import Removable, Submodule, refer
from lightning_pelt.utils.errors import unknown

Placement = Literal["auto", "unipelt", "sequential", "parallel", "pfeiffer", "he"]
SUBLAYERS = ("ffn", "attention", "cross_attention")
ON_THE_STREAM = ("pfeiffer", "he")  # read the residual stream


def check_placement(placement: str) -> None:
    """Raise a ``ValueError`` unless ``placement`` is one of :data:`Placement`."""
    if placement not in get_args(Placement):
        raise unknown("placement", placement, get_args(Placement))


def resolve(placement: Placement, site: Site) -> Placement:
    """The placement that ``auto`` and ``unipelt`` are at a sublayer; others are themselves."""
    if placement == "auto":
        return "sequential" if site.post_norm is None else "pfeiffer"
    return "pfeiffer" if placement == "unipelt" else placement


def sublayers(anatomy: Anatomy, sites: Sequence[str], placement: Placement) -> list[Site]:
    """Sublayers (``ffn``, ``attention``, ...) as sites whose path gives the sublayer's output.

    Raises:
        ValueError: the site is not a sublayer, the model lacks it, the placement is ``unipelt`` and
            no norm follows the sum of sublayer and residual, or the placement reads the residual
            stream and the block does not add the sublayer's output to it.
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
    _refuse_misfit(anatomy, found, placement)
    return found


def _refuse_misfit(anatomy: Anatomy, sites: Sequence[Site], placement: Placement) -> None:
    if placement == "unipelt" and any(site.post_norm is None for site in sites):
        raise ValueError(
            f"placement 'unipelt' needs a norm over the sum of sublayer and residual, and "
            f"{anatomy.model_type} has no such norm: use placement='sequential', 'parallel' or "
            "'pfeiffer'"
        )
    apart = [site for site in sites if _stream(site) is None]
    if placement in ON_THE_STREAM and apart:
        raise ValueError(
            f"placement {placement!r} needs blocks that add the output of a sublayer to the "
            f"residual stream as it is, and {anatomy.model_type} does not do so after "
            f"{apart[0].role} in block {apart[0].block} of the {apart[0].stack}, such as where a "
            "norm or a factor comes before the sum: use placement='sequential' or 'parallel'"
        )


def hook_sublayer(net: nn.Module, site: Site, placement: Placement) -> SublayerHooks:
    """Hooks that apply ``net(f, h) -> z`` to a sublayer, with ``h`` as ``placement`` defines it."""
    resolved = resolve(placement, site)
    if resolved == "parallel":
        return Parallel(net, Residual(site.path, site.source))
    if resolved == "sequential":
        return AfterSublayer(net, site.path)
    residual, norm = _stream(site), None if site.post_norm is None else site.post_norm.norm
    assert residual is not None  # or sublayers() has refused
    return Parallel(net, residual) if resolved == "he" else AfterSum(net, residual, norm)


def _stream(site: Site) -> Residual | None:
    """The residual stream before a sublayer, and the module that returns what is added."""
    if site.post_norm is not None:
        return Residual(site.post_norm.output, site.post_norm.residual)
    return site.residual


class SublayerHooks(Submodule):
    """Hooks on a sublayer that apply ``net(f, h) -> z`` to its output f.

    Attributes:
        host: path of the module that owns it.
    """

    def __init__(self, net: nn.Module, host: str) -> None:
        super().__init__()
        self.net, self.host = net, host

    def forward(self, output: Tensor, h: Tensor) -> Tensor:
        """output (B, T, d), h (B, T, d_in) -> (B, T, d)."""
        return self.net(output, h)

    def by_rows(self, others: Sequence[Any], rows: Rows) -> None:
        if not hasattr(self.net, "by_rows"):
            super().by_rows(others, rows)
        self.net.by_rows([other.net for other in others], rows)  # type: ignore[operator]


class AfterSublayer(SublayerHooks):
    """After a sublayer: reads its output and adds to it."""

    def install(self, model: nn.Module) -> list[Removable]:
        return [model.get_submodule(self.host).register_forward_hook(self._add)]

    def _add(self, module: nn.Module, args: tuple, output: Any) -> Any:
        return first(output, lambda f: self(f, f))


class Parallel(SublayerHooks):
    """Parallel to a sublayer: reads a tensor before it and adds to its output."""

    def __init__(self, net: nn.Module, ends: Residual) -> None:
        super().__init__(net, ends.output)
        self.source: Source = ends.source
        self.read: Current[Tensor] = Current(f"the input of {ends.source.path}")

    def install(self, model: nn.Module) -> list[Removable]:
        source = model.get_submodule(self.source.path)
        return [
            source.register_forward_pre_hook(self._read, with_kwargs=True),
            model.get_submodule(self.host).register_forward_hook(self._add),
        ]

    def _read(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.read.set(argument(args, kwargs, self.source.argument))

    def _add(self, module: nn.Module, args: tuple, output: Any) -> Any:
        read = self.read.take()
        return first(output, lambda f: self(f, self.reads(f, read)))

    def reads(self, output: Tensor, read: Tensor) -> Tensor:
        """``h`` from ``f`` and the tensor before the sublayer."""
        return read


class AfterSum(Parallel):
    """Reads the residual stream after a sublayer, ``f + a`` or ``norm(f + a)``, for ``z = f``.

    Where there is a norm, it runs a second time, over ``z + a``.
    """

    norm: nn.Module | None

    def __init__(self, net: nn.Module, residual: Residual, norm: str | None) -> None:
        super().__init__(net, residual)
        self.norm_path = norm

    def install(self, model: nn.Module) -> list[Removable]:
        refer(self, norm=None if self.norm_path is None else model.get_submodule(self.norm_path))
        return super().install(model)

    def reads(self, output: Tensor, read: Tensor) -> Tensor:
        total = output + read
        return total if self.norm is None else self.norm(total)
