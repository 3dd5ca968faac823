"""All bottlenecks of a stack, with weights that are made from factors in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods._bottleneck import Dense, extend
from lightning_pelt.methods._kronecker import Factors, Rule
from lightning_pelt.methods._ops import add_product, match_dtype, refuse_reentrant
from lightning_pelt.methods._sublayer_hooks import Placement, hook_sublayer
from lightning_pelt.methods.base import Part, Place
from lightning_pelt.methods.current import Current
from lightning_pelt.methods.gate import GateView
from lightning_pelt.methods.submodule import Removable, Submodule, refer


class Thin(NamedTuple):
    """Projections in factors that are never multiplied out, see :class:`Factors`.

    Shapes: F (K, n r), G (n n r, m), bias (m,), P (m + 1, n, n r + n) and Q (n r + n, D). The last
    n rows of Q hold the output bias, one piece per row, and the last row of P selects the row of a
    piece.
    """

    F: Tensor
    G: Tensor
    bias: Tensor
    P: Tensor
    Q: Tensor

    def down(self, h: Tensor) -> Tensor:
        pieces = match_dtype(h, self.F).unflatten(-1, (-1, len(self.F))) @ self.F
        return pieces.flatten(-2) @ self.G + self.bias

    def add_up(self, output: Tensor, inner: Tensor) -> Tensor:
        pieces = (inner @ self.P.flatten(1)).unflatten(-1, self.P.shape[1:])
        whole = output.unflatten(-1, (len(self.P[0]), -1))
        return add_product(whole, pieces, self.Q).flatten(-2)


PARTS = ("down", "up", "bias", "out")  # of the bottlenecks of one shape


class Shape(NamedTuple):
    """Widths of a bottleneck: what it reads, its own, and what it writes."""

    d_in: int
    width: int
    d_out: int


class StackedBottlenecks(Submodule):
    """The weights of all bottlenecks of a stack, computed at once before its first block.

    Projections of one shape share one tensor, so that a forward needs two batched products for all
    of them, and the gradient of a shared rule is one reduction. On a CPU they stay in factors if
    that saves multiplications. Without gradients they are reused by the next forward, until a
    weight changes or moves.
    """

    rule: Rule | None

    def __init__(
        self,
        runner: str,
        sites: Sequence[Site],
        shapes: Sequence[Shape],
        rule: Rule | None,
        **kind: Any,
    ) -> None:
        super().__init__()
        self.runner, self.sites, self.shapes = runner, tuple(sites), list(shapes)
        refer(self, rule=rule)  # the root owns it
        self.made: Current[list[Dense | Thin]] = Current(
            f"the weights of the bottlenecks of {runner or 'the model'}", shared=True
        )
        self.kept: tuple[list[tuple[int, int]], list[Dense | Thin]] | None = None
        for shape in dict.fromkeys(shapes):
            count, key = shapes.count(shape), shape_key(shape)
            self.add_module(f"down_{key}", Factors(count, shape.d_in, shape.width, **kind))
            self.add_module(f"up_{key}", Factors(count, shape.width, shape.d_out, **kind))
            self.register_parameter(f"bias_{key}", nn.Parameter(torch.zeros(count, shape.width)))
            self.register_parameter(f"out_{key}", nn.Parameter(torch.zeros(count, shape.d_out)))
        self.register_load_state_dict_post_hook(_stackt)

    def install(self, model: nn.Module) -> list[Removable]:
        return [model.get_submodule(self.runner).register_forward_pre_hook(self._before)]

    def _before(self, module: nn.Module, args: tuple) -> None:
        # Before the first block, so outside of what activation checkpointing recomputes.
        self.refresh()

    def refresh(self) -> None:
        """Compute the weights for a forward, unless those of the last one are still valid."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            self.kept = None
            self.made.set(self())
            return
        current, kept = self._versions(), self.kept
        if kept is not None and kept[0] == current:
            self.made.set(kept[1])
            return
        # Detached, since a view of a parameter requires a gradient even without grad mode.
        made = [type(made)(*(tensor.detach() for tensor in made)) for made in self()]
        self.kept = None if current is None else (current, made)
        self.made.set(made)

    def _versions(self) -> list[tuple[int, int]] | None:
        shared = [] if self.rule is None else [self.rule.A]
        tensors = [*self.parameters(), *self.buffers(), *shared]
        if any(
            tensor.is_inference() for tensor in tensors
        ):  # inference tensors have no version counter
            return None
        return [(tensor.data_ptr(), tensor._version) for tensor in tensors]

    def train(self, mode: bool = True) -> StackedBottlenecks:
        self.kept = None
        return super().train(mode)

    def forward(self) -> list[Dense | Thin]:
        """The bottlenecks in the order of ``sites``."""
        made: dict[Shape, Iterator[Dense | Thin]] = {}
        for shape in dict.fromkeys(self.shapes):
            made[shape] = self._make(*(getattr(self, f"{k}_{shape_key(shape)}") for k in PARTS))
        return [next(made[shape]) for shape in self.shapes]

    def _make(
        self, down: Factors, up: Factors, bias: Tensor, out: Tensor
    ) -> Iterator[Dense | Thin]:
        A = bias.new_ones(1, 1, 1) if self.rule is None else self.rule.A
        make = in_factors if bias.device.type == "cpu" and down.thin and up.thin else whole
        with torch.autocast(bias.device.type, enabled=False):
            return make(down, up, A, bias.float(), out.float())

    def parameters_by_site(self) -> dict[Site, int]:
        counts = dict.fromkeys(self.sites, 0)
        for name, parameter in self.named_parameters():
            key = name.partition(".")[0].rpartition("_")[2]
            own = [i for i, shape in enumerate(self.shapes) if shape_key(shape) == key]
            for i in own:
                counts[self.sites[i]] += parameter.numel() // len(own)
        return counts

    def of(self, index: int) -> Dense | Thin:
        """Bottleneck number ``index`` in the current forward.

        Raises:
            RuntimeError: in reentrant activation checkpointing.
        """
        made = self.made.get()[index]
        refuse_reentrant(made[0], "weights of the stack")
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": None}


def whole(down: Factors, up: Factors, rule: Tensor, bias: Tensor, out: Tensor) -> Iterator[Dense]:
    """Bottlenecks with full matrices. Shapes: rule (n, n, n), bias (count, m), out (count, d)."""
    V = torch.cat([up.whole(rule), out[:, None]], 1)
    return map(Dense, down.whole(rule, transposed=True), bias, V)


def in_factors(
    down: Factors, up: Factors, rule: Tensor, bias: Tensor, out: Tensor
) -> Iterator[Thin]:
    """Bottlenecks in factors. Shapes: rule (n, n, n), bias (count, m), out (count, d)."""
    (F, G), (P, Q) = down.thin_in(rule), up.thin_out(rule)
    n, inner = P.shape[2:]
    P, pick = pad(P, (0, n)), pad(torch.eye(n, device=P.device), (inner, 0))
    P = torch.cat([P, pick.expand(len(P), 1, -1, -1)], 1)
    return map(Thin, F, G, bias, P, torch.cat([Q, out.unflatten(-1, (n, -1))], 1))


def shape_key(shape: Shape) -> str:
    """The suffix of the names of a shape's tensors, ``"768x48"``."""
    return "x".join(map(str, shape))


def _stackt(bottlenecks: StackedBottlenecks, incompatible: Any) -> None:
    bottlenecks.kept = None


class StackedBottleneck(nn.Module):
    """One bottleneck of a stack, which owns the weights."""

    bottlenecks: StackedBottlenecks

    def __init__(
        self, bottlenecks: StackedBottlenecks, index: int, activation: str, gate: GateView | None
    ) -> None:
        super().__init__()
        refer(self, bottlenecks=bottlenecks)
        self.index, self.activation, self.gate = index, activation, gate

    def forward(self, output: Tensor, h: Tensor) -> Tensor:
        """output (B, T, d), h (B, T, d_in) -> (B, T, d)."""
        weights = self.bottlenecks.of(self.index)
        return extend(output, h, weights, activation=self.activation, gate=self.gate)


def build_stacks(
    name: str,
    anatomy: Anatomy,
    sites: Sequence[Site],
    shape: Callable[[Site], Shape],
    **kind: Any,
) -> list[Part]:
    """The bottlenecks of every stack, for ``Method.build_shared``.

    ``kind`` are further arguments of :class:`StackedBottlenecks`.
    """
    stacks: dict[str, list[Site]] = {}
    for site in sites:
        stacks.setdefault(site.stack, []).append(site)
    parts = []
    for stack, own in stacks.items():
        path = anatomy.stack(stack).path
        module = StackedBottlenecks(path, own, [shape(site) for site in own], **kind)
        parts.append(Part(path, f"{name}_{stack}", module))
    return parts


def build_bottlenecks(name: str, place: Place, *, where: Placement, activation: str) -> list[Part]:
    """A bottleneck at every site, with weights of its stack, for ``Method.build``."""
    parts = []
    for site, gate in zip(place.sites, place.gates, strict=True):
        stacked = place.shared[f"{name}_{site.stack}"]
        assert isinstance(stacked, StackedBottlenecks)
        net = StackedBottleneck(stacked, stacked.sites.index(site), activation, gate)
        hooked = hook_sublayer(net, site, where)
        parts.append(Part(hooked.host, f"{name}_{site.role}", hooked))
    return parts
