"""The prefix of AdapterHub on T5, which relative positions count."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods._kept import of_mask
from lightning_pelt.methods.base import Part, Place
from lightning_pelt.methods.current import Current
from lightning_pelt.methods.gate import GateView
from lightning_pelt.methods.prefix import Prefix, PrefixKV
from lightning_pelt.methods.submodule import Removable, Submodule, refer

COUNTED = ("t5", "mt5")
SELF_ATTENTION = "attention"  # cross-attention has no relative positions


@dataclass(frozen=True)
class HubPrefix(Prefix):
    """A prefix as AdapterHub has it on T5: relative positions count its tokens.

    The position bias of a self-attention is that of ``length + keys`` keys, the first of which
    are the prefix. A prefix token is as far from a query as a word in its place would be, and every
    word is ``length`` tokens further to the right of the query than in the text. Adapters of
    AdapterHub were trained so. For a new one, use :class:`lightning_pelt.Prefix`.

    Args:
        length: number of prefix tokens.
        mlp: hidden width of the shared MLP; None for keys and values themselves.
        sites: ``attention``, ``cross_attention`` or both.
        init_std: standard deviation of table, MLP and flat prefixes.
        gate: None for ungated.
        name: of its parameter group, gates and log lines.

    Raises:
        ValueError: a length or a width below 1; or, in :func:`~lightning_pelt.attach`, a model
            other than T5 and mT5.

    Example:
        >>> from transformers import T5Config, T5EncoderModel
        >>> from lightning_pelt import Plan, attach
        >>> config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=2)
        >>> attach(T5EncoderModel(config), Plan.uniform(HubPrefix(5, mlp=None))).counts["prefix"]
        MethodCount(trained=320, deployed=320, gates=0)
    """

    def where(self, anatomy: Anatomy) -> list[Site]:
        if anatomy.model_type not in COUNTED:
            raise ValueError(
                f"{anatomy.model_type} has no relative positions as T5 has them, in which "
                "HubPrefix counts the prefix: use Prefix"
            )
        return super().where(anatomy)

    def build(self, place: Place) -> list[Part]:
        (site,), (gate,) = place.sites, place.gates
        if site.role != SELF_ATTENTION:
            return super().build(place)
        encoder = place.shared.get(self._key(site))
        return [Part(site.path, self.name, CountedPrefixKV(self, site, gate, encoder))]

    def refuse_sharding(self) -> None:
        raise ValueError(
            "HubPrefix computes the relative positions of all blocks with weights of the first "
            "one, which sharded data parallelism takes apart: use DDP"
        )


class CountedPrefixKV(PrefixKV):
    """The prefix of one self-attention, whose tokens have relative positions.

    Attributes:
        positions: the attention with the weights of the relative positions: that of the first
            block of the stack.
    """

    positions: Any

    def __init__(
        self, method: Prefix, site: Site, gate: GateView | None, encoder: Submodule | None
    ) -> None:
        super().__init__(method, site, gate, encoder)
        self.past: Current[Tensor | int] = Current("the number of tokens in the cache")

    def install(self, model: nn.Module) -> list[Removable]:
        host = model.get_submodule(self.site.path)
        refer(self, positions=_first_of_stack(model, self.site.path))
        hook = host.register_forward_pre_hook(self._read_cache, with_kwargs=True)
        return [hook, *super().install(model)]

    def _read_cache(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        caches = (each for each in chain(args, kwargs.values()) if isinstance(each, Cache))
        cache = next(caches, None)
        past = 0 if cache is None else cache.get_seq_length(getattr(module, "layer_idx", 0))
        # A cache of fixed length counts in place.
        self.past.set(past.clone() if isinstance(past, Tensor) else past)

    def extended_bias(self, bias: Tensor, length: int) -> Tensor:
        """(1, heads, T, S) -> (1, heads, T, length + S), of the shifted positions."""

        def compute() -> Tensor:
            return self._bias(bias.shape[2], length + bias.shape[3], bias.device).to(bias.dtype)

        return of_mask(bias, ("counted prefix", length), compute, asker=self)

    def _bias(self, queries: int, keys: int, device: torch.device) -> Tensor:
        of = self.positions
        query = torch.arange(queries, device=device)[:, None] + self.past.get()
        buckets = of._relative_position_bucket(
            torch.arange(keys, device=device)[None] - query,
            bidirectional=not of.is_decoder,
            num_buckets=of.relative_attention_num_buckets,
            max_distance=of.relative_attention_max_distance,
        )
        bias: Tensor = of.relative_attention_bias(buckets)
        return bias.permute(2, 0, 1)[None]


def _first_of_stack(model: nn.Module, path: str) -> nn.Module:
    """The attention whose relative positions that at ``path`` uses: of the nearest path."""
    names = path.split(".")

    def common(name: str) -> int:
        return sum(a == b for a, b in zip(name.split("."), names, strict=False))

    found = {
        name: module
        for name, module in model.named_modules()
        if getattr(module, "has_relative_attention_bias", False)
    }
    return found[max(found, key=common)]
