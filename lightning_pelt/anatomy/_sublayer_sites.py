"""Sites of a block's sublayers: self-attention, cross-attention and feed-forward."""

from __future__ import annotations

from torch import nn

from lightning_pelt.anatomy._norms import find_post_norm
from lightning_pelt.anatomy._projections import Attention
from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy._stacks import Position
from lightning_pelt.anatomy.leaf_names import Channels
from lightning_pelt.anatomy.recording import Call, widths
from lightning_pelt.anatomy.sites import AttentionHeads, PostNorm, Site, Source


class SublayerSites:
    """Collects the sites of one block's sublayers in :attr:`sites`, in network order."""

    def __init__(self, recorded: RecordedModel, position: Position) -> None:
        self.recorded, self.position = recorded, position
        self.sites: list[Site] = []

    def add_attention(self, attention: Attention) -> None:
        """Sites of the projections, of the whole attention, and of its output projection."""
        width, role = self._width(attention), _attention_role(attention)
        for name, (call, channels) in attention.projections.items():
            self._add(f"{role}.{name}", call, enclosing=attention.module, channels=channels)
        source = next(s.source for s in reversed(self.sites) if s.role == f"{role}.query")
        whole, shape = self.recorded.first[attention.module], (source.width, width)
        self._add(role, whole, source=source, shape=shape, heads=attention.heads)
        if attention.output is not None:
            post_norm = find_post_norm(self.recorded, attention.output, source)
            self._add(
                f"{role}.output",
                attention.output,
                enclosing=attention.module,
                post_norm=post_norm,
            )

    def add_feed_forward(self, attention: Attention) -> None:
        """Sites of the feed-forward after the block's last attention."""
        width = self._width(attention)
        own = set(attention.module.modules())
        calls = [
            c for c in attention.following if c is not attention.output and c.module not in own
        ]
        outs = [call for call in calls if widths(call.module)[1] == width]
        experts = self._mixture_of_experts(attention, width)
        if experts is not None:
            source = self.recorded.source(experts)
            self._add("ffn", experts, source=source, shape=(width, width))
        elif outs:
            last = outs[-1]
            ins = [c for c in calls if widths(c.module)[0] == width and c is not last]
            for count, call in enumerate(ins):
                enclosing = ins[0].module if count else None
                self._add(f"ffn.in_{count + 1}" if count else "ffn.in", call, enclosing=enclosing)
            self._add("ffn.out", last)
            source = self.sites[-2 if ins else -1].source
            post_norm = find_post_norm(self.recorded, last, source)
            self._add("ffn", last, source=source, shape=(width, width), post_norm=post_norm)

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
            repeated=source.path != path and self.recorded.repeats(call.module),
        )
        self.sites.append(site)

    def _width(self, attention: Attention) -> int:
        """Width of the residual stream."""
        if attention.output is None:
            return self.recorded.model.config.hidden_size
        return widths(attention.output.module)[1]

    def _mixture_of_experts(self, attention: Attention, width: int) -> Call | None:
        """The call of the block's child that holds stacked expert weights."""
        block = self.recorded.model.get_submodule(self.recorded.block_of[attention.module])
        for child in block.children():
            call = self.recorded.first.get(child)
            experts = any(parameter.dim() == 3 for parameter in child.parameters())
            if experts and call is not None and call.output is not None:
                return call if call.output.shape[-1] == width else None
        return None


def _attention_role(attention: Attention) -> str:
    """``cross_attention`` if the projections read different numbers of tokens."""
    inputs = [next(iter(call.inputs.values())) for call, _ in attention.projections.values()]
    tokens = {tensor[..., 0].numel() for tensor in inputs}
    return "cross_attention" if len(tokens) > 1 else "attention"
