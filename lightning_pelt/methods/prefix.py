"""Prefix tuning: learned keys and values in front of the real ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods import _attention_interface
from lightning_pelt.methods._kept import KeepingSubmodule
from lightning_pelt.methods._ops import cast, refuse_reentrant
from lightning_pelt.methods.base import Cost, Method, Part, Place
from lightning_pelt.methods.current import Current
from lightning_pelt.methods.gate import Gate, GateView
from lightning_pelt.methods.submodule import Removable, Submodule, refer

log = logging.getLogger(__name__)

HeadPair = tuple[Tensor, Tensor]  # keys (1, kv, length, d_k) and values (1, kv, length, d_v)


@dataclass(frozen=True)
class Prefix(Method):
    r"""Prefix tuning (Li and Liang, 2021; https://arxiv.org/abs/2101.00190), with UniPELT's gate.

    :math:`K' = [g P_K; K],\; V' = [g P_V; V]`. In training, one table and one MLP compute all
    prefixes of a stack, :math:`W_2 \tanh(W_1 E)`, once per forward. After training, the MLP is
    folded into the prefixes. Position embeddings do not shift.

    Args:
        length: number of prefix tokens.
        mlp: hidden width of the shared MLP; None trains the keys and values themselves.
        sites: ``attention``, ``cross_attention`` or both.
        init_std: standard deviation of table, MLP and flat prefixes, as in the authors' code.
        gate: None for ungated.
        name: of its parameter group, gates and log lines.

    Raises:
        ValueError: a length or a width below 1.

    Example:
        >>> from lightning_pelt import Plan, Prefix, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attachment = attach(tiny_bert(), Plan.uniform(Prefix(length=5, mlp=16)))
        >>> attachment.counts["prefix"].trained, attachment.counts["prefix"].deployed
        (2864, 640)
    """

    length: int = 10
    mlp: int | None = 512
    sites: Sequence[str] = ("*attention",)
    init_std: float = 0.02
    gate: Gate | None = None
    name: str = "prefix"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"Prefix has length={self.length}: it must be at least 1")
        if self.mlp is not None and self.mlp < 1:
            raise ValueError(f"Prefix has mlp={self.mlp}: it must be at least 1, or null for none")

    def where(self, anatomy: Anatomy) -> list[Site]:
        if not anatomy.on_interface:
            raise ValueError(
                f"{anatomy.model_type} cannot take a prefix: its attention does not use "
                "transformers' attention interface. LoRA, Adapter, BitFit and IA3 work on it; "
                "UniPELT without the prefix is UniPELT(methods=[LoRA(), Adapter()])."
            )
        asked = anatomy.select(self.sites)
        without = {site.stack: None for site in asked if site.heads is None}
        if without:
            log.warning(
                "%s: no prefix in the %s of %s, whose attention does not use transformers' "
                "attention interface",
                *(self.name, " and the ".join(without), anatomy.model_type),
            )
        return [site for site in asked if site.heads is not None]

    def build_shared(self, anatomy: Anatomy, sites: Sequence[Site]) -> list[Part]:
        if self.mlp is None:
            return []
        groups: dict[tuple[str, str], list[Site]] = {}
        for site in sites:
            groups.setdefault((site.stack, site.role), []).append(site)
        return [
            Part(
                anatomy.stack(group[0].stack).path,
                self._key(group[0]),
                PrefixEncoder(self, anatomy, group),
            )
            for group in groups.values()
        ]

    def _key(self, site: Site) -> str:
        return f"{self.name}_{site.stack}_{site.role}"

    def build(self, place: Place) -> list[Part]:
        (site,), (gate,) = place.sites, place.gates
        encoder = place.shared.get(self._key(site))
        return [Part(site.path, self.name, PrefixKV(self, site, gate, encoder))]

    def size(self, site: Site) -> str:
        return f"l={self.length}"

    def cost(self, sites: Sequence[Site]) -> Cost | None:
        if self.mlp is not None:  # its MLP is shared by all blocks
            return None
        return Cost(0, sum(sum(key_value_widths(site)) for site in sites))

    def sized(self, size: int) -> Prefix:
        return replace(self, length=size)

    def deployed(self, sites: Sequence[Site], trained: int) -> int:
        return sum(self.length * sum(key_value_widths(site)) for site in sites)

    def folded(self) -> Prefix:
        """The method with keys and values instead of the MLP."""
        return replace(self, mlp=None)


def key_value_widths(site: Site) -> tuple[int, int]:
    """Widths of all keys and of all values of one attention, (kv heads x d_k, kv heads x d_v)."""
    assert site.heads is not None
    heads = site.heads
    return heads.count * heads.key_width, heads.count * heads.value_width


class PrefixEncoder(KeepingSubmodule):
    """One table and one MLP for all prefixes of a stack, evaluated once per forward.

    Without gradients, the next forward uses the prefixes again, until a weight changes.

    Its output (length, sum of widths) holds keys then values of the first block, then of the
    second, ...: the authors' flattening order.
    """

    def __init__(self, method: Prefix, anatomy: Anatomy, sites: Sequence[Site]) -> None:
        super().__init__()
        assert method.mlp is not None
        self.runner = anatomy.stack(sites[0].stack).path
        self.sites = tuple(sites)
        self.widths = [width for site in sites for width in key_value_widths(site)]
        self.table = nn.Parameter(torch.empty(method.length, anatomy.width))
        self.up = nn.Linear(anatomy.width, method.mlp)
        self.out = nn.Linear(method.mlp, sum(self.widths))
        self.prefixes: Current[list[HeadPair]] = Current(
            f"the output of the prefix MLP of {self.runner or 'the model'}", shared=True
        )
        for weight in (self.table, self.up.weight, self.out.weight):
            nn.init.normal_(weight, std=method.init_std)
        nn.init.zeros_(self.up.bias)
        nn.init.zeros_(self.out.bias)

    def install(self, model: nn.Module) -> list[Removable]:
        return [model.get_submodule(self.runner).register_forward_pre_hook(self._refresh)]

    def _refresh(self, module: nn.Module, args: tuple) -> None:
        # Before the first block, so outside of what activation checkpointing recomputes.
        table, up, out = self.table, self.up, self.out  # faster than self.parameters()
        weights = [table, up.weight, up.bias, out.weight, out.bias]
        self.prefixes.set(self.kept.of(weights, self._by_site, also=autocast_dtype(table)))

    def _by_site(self) -> list[HeadPair]:
        flat = self._flat()
        if not torch.is_grad_enabled():
            flat = tuple(part.contiguous() for part in flat)  # for many forwards
        return [
            (by_heads(key, site), by_heads(value, site))
            for site, key, value in zip(self.sites, flat[::2], flat[1::2], strict=True)
        ]

    def _flat(self) -> tuple[Tensor, ...]:
        """Keys, then values, (length, kv x d_k) and (length, kv x d_v), of every site in turn."""
        return self().split(self.widths, -1)

    def forward(self) -> Tensor:
        """-> (length, sum of the widths of all keys and values)."""
        return self.out(torch.tanh(self.up(self.table)))

    def folded_state(self) -> dict[str, Tensor]:
        return {}

    def folded(self, index: int) -> dict[str, Tensor]:
        """The parameters of site number ``index`` without an MLP."""
        with torch.no_grad():
            key, value = self._flat()[2 * index : 2 * index + 2]
        return {"key": key, "value": value}

    def of(self, index: int) -> HeadPair:
        """Keys (1, kv, length, d_k) and values (1, kv, length, d_v) of site number ``index``.

        Raises:
            RuntimeError: in reentrant activation checkpointing.
        """
        prefixes = self.prefixes.get()
        refuse_reentrant(prefixes[0][0], "prefix MLP", instead=", or Prefix(mlp=None)")
        return prefixes[index]


def by_heads(flat: Tensor, site: Site) -> Tensor:
    """(length, kv x d) -> (1, kv, length, d)."""
    assert site.heads is not None
    return flat.view(1, flat.shape[0], site.heads.count, -1).transpose(1, 2)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype of products where ``tensor`` is, if autocast chooses it."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


class PrefixKV(Submodule):
    """The prefix of one attention module: parameters, or a slice of the MLP's output."""

    encoder: PrefixEncoder | None

    def __init__(
        self, method: Prefix, site: Site, gate: GateView | None, encoder: Submodule | None
    ) -> None:
        super().__init__()
        self.site, self.gate = site, gate
        assert encoder is None or isinstance(encoder, PrefixEncoder)
        refer(self, encoder=encoder)
        self.part: Current[tuple[Tensor, int]] = Current("the tokens that the gate has served")
        if encoder is not None:
            self.index = encoder.sites.index(site)
        else:
            key_width, value_width = key_value_widths(site)
            self.key = nn.Parameter(torch.empty(method.length, key_width))
            self.value = nn.Parameter(torch.empty(method.length, value_width))
            nn.init.normal_(self.key, std=method.init_std)
            nn.init.normal_(self.value, std=method.init_std)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _attention_interface.keep_wrapped(self)  # a copy, perhaps in another process

    @property
    def closed(self) -> bool:
        return self.gate is not None and self.gate.open == 0

    @property
    def shown(self) -> Tensor:
        """() bool on the device of the gate, which it must have: the opposite of ``closed``."""
        assert self.gate is not None
        return self.gate.layer.open[self.gate.index] > 0

    def gate_for(self, query: Tensor) -> Tensor | float | None:
        """The gate of the tokens of ``query`` (B, heads, T, d): (B, 1, 1) pooled, or (B, T, 1).

        Or a number, see :meth:`~lightning_pelt.methods.gate.GateView.number`.

        The attention module may read other shapes than its function: (B, P, T, width) with P sets
        of points, or (N, width) with the tokens of all images, which it hands over one by one.

        Raises:
            ValueError: the gate has read other tokens.
        """
        if self.gate is None:
            return None
        number = self.gate.number()
        if number is not None and query.shape[0] == 1:
            return number
        gate = self.gate.read()
        rows, tokens = query.shape[0], query.shape[2]
        if gate.dim() == 1:  # not learned
            return gate.view(1, 1, 1)
        if gate.numel() in (rows, rows * tokens):
            return gate.reshape(rows, -1, 1)
        if gate.dim() > 2 and gate.numel() == gate.shape[0] and rows % gate.shape[0] == 0:
            return gate.reshape(-1, 1, 1).repeat_interleave(rows // gate.shape[0], 0)
        if gate.dim() == 2 and rows == 1:
            return self._next_part(gate, tokens)
        raise ValueError(
            f"the gate of the prefix at {self.site.path} has the shape {tuple(gate.shape)}, and "
            f"the attention works on {rows} x {tokens} tokens: use Prefix(gate=None) there"
        )

    def _next_part(self, gate: Tensor, tokens: int) -> Tensor:
        """gate (N, 1) -> (1, tokens, 1), the part after that of the last call on this ``gate``."""
        of, start = self.part.peek() or (None, 0)
        start = start if of is gate else 0
        self.part.set((gate, start + tokens))
        return gate[None, start : start + tokens]

    def extended_bias(self, bias: Tensor, length: int) -> Tensor:
        """(1, heads, T, S) -> (1, heads, T, length + S): a position bias with the prefix."""
        return F.pad(bias, (length, 0))

    def install(self, model: nn.Module) -> list[Removable]:
        return [_attention_interface.put(self, model, self.site.path)]

    def forward(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Ungated prefix keys (1, kv, length, d_k) and values (1, kv, length, d_v)."""
        if self.encoder is None:
            heads = by_heads(self.key, self.site), by_heads(self.value, self.site)
        else:
            heads = self.encoder.of(self.index)
        return cast(heads[0], key.dtype), cast(heads[1], value.dtype)

    def folded_state(self) -> dict[str, Tensor] | None:
        return None if self.encoder is None else self.encoder.folded(self.index)
