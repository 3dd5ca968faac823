"""Bottlenecks without weights of their own: a bank makes those of a whole stack at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_pelt import placement
from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.bottleneck import extend
from lightning_pelt.gate import GateView
from lightning_pelt.kronecker import Factors, Rule
from lightning_pelt.method import Part, Place
from lightning_pelt.placement import Placement
from lightning_pelt.submodule import Removable, Submodule, refuse_reentrant


class Made(NamedTuple):
    """One bottleneck: down (m, k), its bias (m,), and up (m + 1, d) with its bias as last row."""

    down: Tensor
    down_bias: Tensor
    up: Tensor


class Shape(NamedTuple):
    """Widths of a bottleneck: what it reads, its own, and what it writes."""

    d_in: int
    width: int
    d_out: int


class Bank(Submodule):
    """The weights of all bottlenecks of a stack, made in one go before its first block.

    Projections of one shape lie in one tensor, so a forward takes two batched products for all of
    them, and the gradient of a shared rule is one reduction. Weights are made in fp32 whatever the
    precision: at the start they are too small for half precision (around 1e-5). Without gradients
    they are kept from one forward to the next, until a weight changes or moves.
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
        self.made: list[Made] | None = None
        self.kept: list[tuple[int, int]] | None = None
        for shape in dict.fromkeys(shapes):
            count, key = shapes.count(shape), _key(shape)
            self.add_module(f"down_{key}", Factors(count, shape.d_in, shape.width, **kind))
            self.add_module(f"up_{key}", Factors(count, shape.width, shape.d_out, **kind))
            self.register_parameter(f"bias_{key}", nn.Parameter(torch.zeros(count, shape.width)))
            self.register_parameter(f"out_{key}", nn.Parameter(torch.zeros(count, shape.d_out)))
        self.register_load_state_dict_post_hook(_forget)

    def install(self, model: nn.Module) -> list[Removable]:
        return [model.get_submodule(self.runner).register_forward_pre_hook(self._refresh)]

    def _refresh(self, module: nn.Module, args: tuple) -> None:
        # Before the first block, so outside of what activation checkpointing replays.
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            self.made, self.kept = self(), None
            return
        current = self._versions()
        if self.made is None or current is None or current != self.kept:
            self.made, self.kept = self(), current

    def _versions(self) -> list[tuple[int, int]] | None:
        rule: Rule | None = self.__dict__["rule"]
        tensors = [*self.parameters(), *self.buffers(), *([rule.A] if rule is not None else [])]
        if any(tensor.is_inference() for tensor in tensors):  # these keep no count of changes
            return None
        return [(tensor.data_ptr(), tensor._version) for tensor in tensors]

    def train(self, mode: bool = True) -> Bank:
        self.kept = None
        return super().train(mode)

    def forward(self) -> list[Made]:
        """The bottlenecks in the order of ``sites``."""
        rule: Rule | None = self.__dict__["rule"]
        A = None if rule is None else rule.A
        made: dict[Shape, list[Made]] = {}
        for shape in dict.fromkeys(self.shapes):
            key = _key(shape)
            bias, out = getattr(self, f"bias_{key}").float(), getattr(self, f"out_{key}").float()
            with torch.autocast(bias.device.type, enabled=False):
                down = getattr(self, f"down_{key}")(A, transposed=True)
                up = torch.cat([getattr(self, f"up_{key}")(A), out[:, None]], 1)
            made[shape] = [Made(*each) for each in zip(down, bias, up, strict=True)]
        return [made[shape].pop(0) for shape in self.shapes]

    def of(self, index: int) -> Made:
        """Bottleneck number ``index`` of the forward in flight.

        Raises:
            RuntimeError: in reentrant activation checkpointing.
        """
        assert self.made is not None
        refuse_reentrant(self.made[index].down, "weights of Kronecker products")
        return self.made[index]


def _key(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _forget(bank: Bank, incompatible: Any) -> None:
    bank.kept = None


class FromBank(nn.Module):
    """One bottleneck of a bank."""

    def __init__(self, bank: Bank, index: int, activation: str, gate: GateView | None) -> None:
        super().__init__()
        self.__dict__["bank"] = bank  # a reference, not a child: the weights live in one place
        self.index, self.activation, self.gate = index, activation, gate

    def forward(self, output: Tensor, h: Tensor) -> Tensor:
        """output (B, T, d), h (B, T, d_in) -> (B, T, d)."""
        made: Made = self.__dict__["bank"].of(self.index)
        return extend(
            output,
            h,
            down=made.down.to(h.dtype),
            down_bias=made.down_bias.to(h.dtype),
            up=made.up,
            activation=self.activation,
            gate=self.gate,
        )


def banks(
    name: str,
    anatomy: Anatomy,
    sites: Sequence[Site],
    shape: Callable[[Site], Shape],
    **kind: Any,
) -> list[Part]:
    """One bank per stack, for ``Method.build_shared``; ``kind`` is what :class:`Bank` takes."""
    stacks: dict[str, list[Site]] = {}
    for site in sites:
        stacks.setdefault(site.stack, []).append(site)
    return [
        Part(
            anatomy.stack(stack).path,
            f"{name}_{stack}",
            Bank(anatomy.stack(stack).path, own, [shape(site) for site in own], **kind),
        )
        for stack, own in stacks.items()
    ]


def from_banks(name: str, place: Place, *, where: Placement, activation: str) -> list[Part]:
    """A bottleneck of the stack's bank at every site, for ``Method.build``."""
    parts = []
    for site, gate in zip(place.sites, place.gates, strict=True):
        bank = place.shared[f"{name}_{site.stack}"]
        assert isinstance(bank, Bank)
        net = FromBank(bank, bank.sites.index(site), activation, gate)
        placed = placement.place(net, site, where)
        parts.append(Part(placed.host, f"{name}_{site.role}", placed))
    return parts
