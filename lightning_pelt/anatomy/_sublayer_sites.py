"""Sites of a block's sublayers: self-attention, cross-attention and feed-forward."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_pelt.anatomy._feed_forward import find_feed_forward
from lightning_pelt.anatomy._norms import find_post_norm
from lightning_pelt.anatomy._projections import Attention, Channels, attention_role
from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy._stacks import Position
from lightning_pelt.anatomy.calls import Call, widths
from lightning_pelt.anatomy.experts import experts_of
from lightning_pelt.anatomy.sites import AttentionHeads, PostNorm, Site, Source


class SublayerSites:
    """Collects the sites of one block's sublayers in :attr:`sites`, in network order.

    Args:
        recorded: the model.
        path: of the block.
        position: of the block.
        width: of the residual stream in the block.
    """

    def __init__(self, recorded: RecordedModel, path: str, position: Position, width: int) -> None:
        self.recorded, self.path, self.position, self.width = recorded, path, position, width
        self.sites: list[Site] = []

    def add_attention(self, attention: Attention) -> None:
        """Sites of the projections, of the whole attention, and of its output projection."""
        role = self._free(attention_role(self.recorded, self.path, attention))
        whole = self.recorded.first[attention.module]
        for name, (call, channels) in attention.projections.items():
            self._add(f"{role}.{name}", call, enclosing=attention.module, channels=channels)
        query = next((s.source for s in self.sites if s.role == f"{role}.query"), None)
        source = query or self.recorded.source(whole)
        shape = (source.width, self.width)
        self._add(role, whole, source=source, shape=shape, heads=attention.heads)
        if attention.output is not None:
            post_norm = find_post_norm(self.recorded, self.path, attention.output, source)
            self._add(
                f"{role}.output",
                attention.output,
                enclosing=attention.module,
                post_norm=post_norm,
            )

    def add_feed_forward(self, attentions: Sequence[Attention]) -> None:
        """Sites of the feed-forward of the block, whose attentions are ``attentions``."""
        found = find_feed_forward(self.recorded, self.path, attentions, self.width)
        if found is None:
            return
        first, shape = None, (self.width, self.width)
        for count, call in enumerate(found.inputs):
            self._add(f"ffn.in_{count + 1}" if count else "ffn.in", call, enclosing=first)
            first = first or call.module
        source = self.sites[-1].source if found.inputs else self.recorded.source(found.output)
        if found.last is not None:
            self._add("ffn.out", found.last)
        post_norm = find_post_norm(self.recorded, self.path, found.output, source)
        self._add("ffn", found.output, source=source, shape=shape, post_norm=post_norm)

    def add_experts(self) -> None:
        """Sites of the stacked weights of fused experts in the block, wherever they are in it."""
        for call in self.recorded.called(self.path):
            experts = experts_of(call.module)
            if experts is None or not call.inputs:
                continue
            source = self.recorded.source(call)
            for name, shape in experts.weights.items():
                role = self._free(f"expert.{name}")
                self._add(role, call, source=source, shape=shape, experts=experts.number)

    def _free(self, role: str) -> str:
        """``role``, or with a number if the block has one of that kind."""
        taken = sum(site.role == role or site.kind == role for site in self.sites)
        return f"{role}_{taken + 1}" if taken else role

    def _add(
        self,
        role: str,
        call: Call,
        *,
        enclosing: nn.Module | None = None,
        source: Source | None = None,
        shape: tuple[int, int] | None = None,
        channels: Channels | None = None,
        heads: AttentionHeads | None = None,
        post_norm: PostNorm | None = None,
        experts: int | None = None,
    ) -> None:
        """Add a site of ``call``, by default with the source and shape of a linear layer."""
        d_in, d_out = shape or widths(call.module)
        source = source or self.recorded.source(call, enclosing)
        path = self.recorded.names[call.module]
        site = Site(
            role=role,
            stack=self.position.stack,
            block=self.position.block,
            path=path,
            d_in=d_in,
            d_out=d_out if channels is None else len(channels),
            source=source,
            channels=channels,
            heads=heads,
            post_norm=post_norm,
            repeated=source.path != path and self.recorded.repeats(call.module, self.path),
            experts=experts,
        )
        self.sites.append(site)
