"""Bottlenecks without weights of their own: a forge makes those of a whole stack at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lightning_pelt import placement
from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.bottleneck import Dense, extend
from lightning_pelt.gate import GateView
from lightning_pelt.kronecker import Factors, Rule
from lightning_pelt.method import Part, Place
from lightning_pelt.placement import Placement
from lightning_pelt.submodule import Removable, Submodule, add_product, meet, refuse_reentrant


class Thin(NamedTuple):
    """Projections in factors that are never multiplied out, see :class:`Factors`.

    Shapes: F (K, n r), G (n n r, m), bias (m,), P (m + 1, n, n r + n) and Q (n r + n, D). The
    bias of the output lies in the last n rows of Q, one piece in each, and the last row of P picks
    the one that belongs to a piece.
    """

    F: Tensor
    G: Tensor
    bias: Tensor
    P: Tensor
    Q: Tensor

    def down(self, h: Tensor) -> Tensor:
        pieces = meet(h, self.F).unflatten(-1, (-1, len(self.F))) @ self.F
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


class Forge(Submodule):
    """The weights of all bottlenecks of a stack, made in one go before its first block.

    Projections of one shape lie in one tensor, so a forward takes two batched products for all of
    them, and the gradient of a shared rule is one reduction. On a CPU they stay in factors where
    that saves work. Without gradients they are kept from one forward to the next, until a weight
    changes or moves.
    """

    transient = ("made", "kept")

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
        self.__dict__["rule"] = rule  # a reference: the root owns it
        self.made: list[Dense | Thin] | None = None
        self.kept: list[tuple[int, int]] | None = None
        for shape in dict.fromkeys(shapes):
            count, key = shapes.count(shape), shape_key(shape)
            self.add_module(f"down_{key}", Factors(count, shape.d_in, shape.width, **kind))
            self.add_module(f"up_{key}", Factors(count, shape.width, shape.d_out, **kind))
            self.register_parameter(f"bias_{key}", nn.Parameter(torch.zeros(count, shape.width)))
            self.register_parameter(f"out_{key}", nn.Parameter(torch.zeros(count, shape.d_out)))
        self.register_load_state_dict_post_hook(_forget)

    def install(self, model: nn.Module) -> list[Removable]:
        return [model.get_submodule(self.runner).register_forward_pre_hook(self._before)]

    def _before(self, module: nn.Module, args: tuple) -> None:
        # The first block has not run yet: this is outside of what activation checkpointing replays.
        self.refresh()

    def refresh(self) -> None:
        """Make the weights for a forward, unless those of the last one still hold."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            self.made, self.kept = self(), None
            return
        current = self._versions()
        if self.made is None or current is None or current != self.kept:
            # Detached: of a view of a parameter torch says that it requires a gradient, even here.
            self.made = [type(made)(*(tensor.detach() for tensor in made)) for made in self()]
            self.kept = current

    def _versions(self) -> list[tuple[int, int]] | None:
        rule: Rule | None = self.__dict__["rule"]
        tensors = [*self.parameters(), *self.buffers(), *([rule.A] if rule is not None else [])]
        if any(tensor.is_inference() for tensor in tensors):  # these keep no count of changes
            return None
        return [(tensor.data_ptr(), tensor._version) for tensor in tensors]

    def train(self, mode: bool = True) -> Forge:
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
        rule: Rule | None = self.__dict__["rule"]
        A = bias.new_ones(1, 1, 1) if rule is None else rule.A
        make = in_factors if bias.device.type == "cpu" and down.thin and up.thin else whole
        with torch.autocast(bias.device.type, enabled=False):
            return make(down, up, A, bias.float(), out.float())

    def of(self, index: int) -> Dense | Thin:
        """Bottleneck number ``index`` of the forward in flight.

        Raises:
            RuntimeError: in reentrant activation checkpointing.
        """
        assert self.made is not None
        refuse_reentrant(self.made[index][0], "weights of a forge")
        return self.made[index]


def whole(down: Factors, up: Factors, rule: Tensor, bias: Tensor, out: Tensor) -> Iterator[Dense]:
    """Bottlenecks with whole matrices. Shapes: rule (n, n, n), bias (count, m), out (count, d)."""
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
    """What the tensors of a shape are called after: ``"768x48"``."""
    return "x".join(map(str, shape))


def _forget(forge: Forge, incompatible: Any) -> None:
    forge.kept = None


class Forged(nn.Module):
    """One bottleneck of a forge."""

    def __init__(self, forge: Forge, index: int, activation: str, gate: GateView | None) -> None:
        super().__init__()
        self.__dict__["forge"] = forge  # a reference, not a child: the weights live in one place
        self.index, self.activation, self.gate = index, activation, gate

    def forward(self, output: Tensor, h: Tensor) -> Tensor:
        """output (B, T, d), h (B, T, d_in) -> (B, T, d)."""
        weights: Dense | Thin = self.__dict__["forge"].of(self.index)
        return extend(output, h, weights, activation=self.activation, gate=self.gate)


def forges(
    name: str,
    anatomy: Anatomy,
    sites: Sequence[Site],
    shape: Callable[[Site], Shape],
    **kind: Any,
) -> list[Part]:
    """One forge per stack, for ``Method.build_shared``; ``kind`` is what :class:`Forge` takes."""
    stacks: dict[str, list[Site]] = {}
    for site in sites:
        stacks.setdefault(site.stack, []).append(site)
    return [
        Part(
            anatomy.stack(stack).path,
            f"{name}_{stack}",
            Forge(anatomy.stack(stack).path, own, [shape(site) for site in own], **kind),
        )
        for stack, own in stacks.items()
    ]


def from_forges(name: str, place: Place, *, where: Placement, activation: str) -> list[Part]:
    """A bottleneck of the stack's forge at every site, for ``Method.build``."""
    parts = []
    for site, gate in zip(place.sites, place.gates, strict=True):
        forge = place.shared[f"{name}_{site.stack}"]
        assert isinstance(forge, Forge)
        net = Forged(forge, forge.sites.index(site), activation, gate)
        placed = placement.place(net, site, where)
        parts.append(Part(placed.host, f"{name}_{site.role}", placed))
    return parts
