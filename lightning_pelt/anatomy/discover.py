"""From a recorded forward to sites: who feeds the queries, who comes after, who reads what.

Almost everything follows from the flow of data, not from names: the gradient of the query tensor
with respect to a linear layer's output is non-zero exactly where that layer feeds the queries, and
at exactly those channels. Output projection and feed-forward follow from order and widths.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.anatomy.names import NAMES
from lightning_pelt.anatomy.recording import (
    AttentionCall,
    Call,
    Recording,
    base_of,
    is_linear,
    record,
    widths,
)
from lightning_pelt.anatomy.site import Anatomy, Heads, MaskArgument, PostNorm, Site, Source, Stack

ROLES = ("query", "key", "value")


@dataclass
class _Projected:
    """One attention call: its place in time, its projections, and the channels each one fills."""

    module: nn.Module
    at: int
    projections: dict[str, tuple[Call, tuple[int, ...] | None]]
    heads: Heads | None


class _Discovery:
    """The tables that every step of the discovery reads."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.seen: Recording = record(model)
        self.block_of = self._blocks()
        self.first: dict[nn.Module, Call] = {}
        for call in self.seen.calls:
            self.first.setdefault(call.module, call)

    def _blocks(self) -> dict[nn.Module, str]:
        """Module -> path of the block around it: an element of a list that runs as one layer."""
        listed = [
            f"{path}.{index}".lstrip(".")
            for path, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList)
            for index in range(len(module))
        ]
        modules = dict(self.model.named_modules())
        layers = [p for p in listed if isinstance(modules[p], GradientCheckpointingLayer)]
        outermost = [p for p in listed if not any(p.startswith(f"{q}.") for q in listed)]
        blocks: dict[nn.Module, str] = {}
        for path in (*layers, *outermost):
            for module in modules[path].modules():
                blocks.setdefault(module, path)
        return blocks

    def linear_calls(self, start: int = 0, stop: int | None = None) -> list[Call]:
        return [call for call in self.seen.calls[start:stop] if is_linear(call.module)]

    def source(self, call: Call, owner: nn.Module | None) -> Source:
        """What ``call`` reads: an argument of ``owner`` if that is the same tensor, or its own."""
        argument, tensor = next(iter(call.inputs.items()))
        if owner is not None:
            for name, candidate in self.first[owner].inputs.items():
                if candidate is tensor:
                    return Source(self.names[owner], name, tensor.shape[-1])
        return Source(self.names[call.module], argument, tensor.shape[-1])

    def tensor(self, source: Source) -> Tensor:
        """The tensor that was at ``source`` in the recorded forward."""
        return self.first[self.model.get_submodule(source.path)].inputs[source.argument]


def _channels(gradient: Tensor) -> tuple[int, ...]:
    used = gradient.reshape(-1, gradient.shape[-1]).abs().sum(0) > 0
    return tuple(used.nonzero().flatten().tolist())


def _by_gradient(d: _Discovery, call: AttentionCall) -> _Projected:
    """Projections of an attention on the interface, each with the output channels it fills."""
    inside = set(call.module.modules())
    linears = [
        c for c in d.linear_calls(stop=call.at) if c.module in inside and c.output is not None
    ]
    linears = linears[-len({c.module for c in linears}) :]  # a shared layer runs more than once
    generator = torch.Generator().manual_seed(0)
    found: dict[str, tuple[Call, tuple[int, ...] | None]] = {}
    for role, tensor in zip(ROLES, (call.query, call.key, call.value), strict=True):
        if not tensor.requires_grad:
            continue
        noise = torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor)
        outputs = [c.output for c in linears if c.output is not None]
        gradients = torch.autograd.grad(
            (tensor * noise).sum(), outputs, retain_graph=True, allow_unused=True
        )
        for linear, gradient in zip(linears, gradients, strict=True):
            if gradient is not None and gradient.abs().sum() > 0:
                used = _channels(gradient)
                whole = len(used) == gradient.shape[-1]
                found[role] = (linear, None if whole else used)  # the last one is the nearest
    heads = Heads(call.key.shape[1], call.key.shape[3], call.value.shape[3])
    return _Projected(call.module, call.at, found, heads)


def _by_name(d: _Discovery) -> list[_Projected]:
    """Projections of the attentions of a family off the interface, by the table of leaf names."""
    found = []
    for module in d.names:
        if "Attention" not in type(module).__name__:  # others have an ``in_proj`` too
            continue
        children = dict(module.named_children())
        linear = {name for name, child in children.items() if is_linear(child)}
        table = next((n for n in NAMES if linear.issuperset(n.children)), None)
        if table is None or module not in d.block_of:
            continue
        calls = {role: d.first.get(children[getattr(table, role)]) for role in ROLES}
        if any(call is None or not _batch_first(call) for call in calls.values()):
            continue
        layout: dict[str, Any] = table.layout(d.model.config) if table.layout else {}
        projections = {r: (call, layout.get(r)) for r, call in calls.items() if call is not None}
        last = max(d.seen.calls.index(call) for call, _ in projections.values())
        found.append(_Projected(module, last + 1, projections, None))
    return found


def _batch_first(call: Call) -> bool:
    """Whether a projection sees (B, T, d), not (T, B, d): gates pool over the second dimension."""
    return call.output is not None and call.output.shape[0] == 1


def _attentions(d: _Discovery) -> list[_Projected]:
    """Every attention module once, in the order of its first call.

    By the interface; by name in the blocks that it does not reach, as the encoder's of LongT5.
    """
    once: dict[nn.Module, AttentionCall] = {}
    for call in d.seen.attention:
        once.setdefault(call.module, call)
    found = [_by_gradient(d, call) for call in once.values()]
    found = [p for p in found if p.projections and p.module in d.block_of]
    reached = {d.block_of[p.module] for p in found}
    found += [p for p in _by_name(d) if d.block_of[p.module] not in reached]
    return sorted(found, key=lambda projected: projected.at)


def _is_causal(attention: _Projected, output: Call | None) -> bool:
    """Whether the first token's attention ignores the second token's value."""
    value = attention.projections.get("value")
    if value is None or output is None:
        return True
    context, projected = next(iter(output.inputs.values())), value[0].output
    if projected is None or context.dim() != 3 or projected.dim() != 3 or not context.requires_grad:
        return True
    if projected.shape[1] == 1:  # of a family that pools its tokens first
        return True
    (gradient,) = torch.autograd.grad(
        context[:, 0].sum(), projected, retain_graph=True, allow_unused=True
    )
    return gradient is None or bool((gradient[:, 1] == 0).all())


def _post_norm(d: _Discovery, linear: Call, read: Source) -> PostNorm | None:
    """The norm behind ``linear``, if it reads ``linear``'s output plus what the sublayer read."""
    residual, output = d.tensor(read), linear.output
    if output is None or output.shape != residual.shape:
        return None
    summed, block = (output + residual).detach(), d.block_of[linear.module]
    for call in d.seen.calls:
        if d.block_of.get(call.module) != block or not _is_norm(call) or not call.inputs:
            continue
        given = next(iter(call.inputs.values())).detach()
        if given.shape == summed.shape and torch.allclose(given, summed, atol=1e-6):
            path = d.names[_dropout_behind(d, linear) or linear.module]
            return PostNorm(path, d.names[call.module], read)
    return None


def _dropout_behind(d: _Discovery, linear: Call) -> nn.Module | None:
    for call in d.seen.calls:
        if "Dropout" in type(call.module).__name__ and call.inputs.get(0) is linear.output:
            return call.module
    return None


def _after(d: _Discovery, attention: _Projected, attentions: Iterable[_Projected]) -> list[Call]:
    """Linear calls of the same block between this attention and the next, attentions' own aside."""
    later = [other.at for other in attentions if other.at > attention.at]
    inside = {module for other in attentions for module in other.module.modules()}
    own = set(attention.module.modules())
    block = d.block_of[attention.module]
    calls = d.linear_calls(attention.at, min(later, default=None))
    return [
        call
        for call in calls
        if d.block_of.get(call.module) == block
        and d.first[call.module] is call  # a shared layer runs more than once
        and (call.module in own or call.module not in inside)
    ]


class _Writer:
    """Collects the sites of one block after another."""

    def __init__(self, d: _Discovery, stack: str, block: int) -> None:
        self.d, self.stack, self.block = d, stack, block
        self.sites: list[Site] = []

    def add(self, role: str, call: Call, owner: nn.Module | None = None, **more: Any) -> Site:
        d_in, d_out = more.pop("widths", None) or widths(call.module)
        site = Site(
            role=role,
            stack=self.stack,
            block=self.block,
            path=self.d.names[call.module],
            d_in=d_in,
            d_out=d_out,
            source=more.pop("source", None) or self.d.source(call, owner),
            **more,
        )
        self.sites.append(site)
        return site

    def width(self, output: Call | None) -> int:
        return widths(output.module)[1] if output else self.d.model.config.hidden_size

    def attention(self, attention: _Projected, after: list[Call], output: Call | None) -> None:
        width = self.width(output)
        reads = {r: next(iter(c.inputs.values())) for r, (c, _) in attention.projections.items()}
        tokens = {role: tensor[..., 0].numel() for role, tensor in reads.items()}
        prefix = "cross_attention" if len(set(tokens.values())) > 1 else "attention"
        for role, (call, channels) in attention.projections.items():
            site = self.add(f"{prefix}.{role}", call, attention.module, channels=channels)
            if channels is not None:
                self.sites[-1] = replace(site, d_out=len(channels))
        source = next(s.source for s in self.sites[::-1] if s.role == f"{prefix}.query")
        whole, shape = self.d.first[attention.module], (source.width, width)
        self.add(prefix, whole, source=source, widths=shape, heads=attention.heads)
        if output is not None:
            post_norm = _post_norm(self.d, output, source)
            self.add(f"{prefix}.output", output, attention.module, post_norm=post_norm)

    def feed_forward(self, attention: _Projected, after: list[Call], output: Call | None) -> None:
        width = self.width(output)
        own = set(attention.module.modules())
        calls = [call for call in after if call is not output and call.module not in own]
        outs = [call for call in calls if widths(call.module)[1] == width]
        mixture = self._mixture(attention, width)
        if mixture is not None:
            source = self.d.source(mixture, None)
            self.add("ffn", mixture, source=source, widths=(width, width))
        elif outs:
            last = outs[-1]
            ins = [c for c in calls if widths(c.module)[0] == width and c is not last]
            for count, call in enumerate(ins):
                owner = ins[0].module if count else None
                self.add("ffn.in" if not count else f"ffn.in_{count + 1}", call, owner)
            self.add("ffn.out", last)
            source = self.sites[-2].source if ins else self.sites[-1].source
            post_norm = _post_norm(self.d, last, source)
            self.add("ffn", last, source=source, widths=(width, width), post_norm=post_norm)

    def _mixture(self, attention: _Projected, width: int) -> Call | None:
        """A mixture of experts: the block's own child that holds stacked expert weights."""
        block = self.d.model.get_submodule(self.d.block_of[attention.module])
        for child in block.children():
            call = self.d.first.get(child)
            experts = any(parameter.dim() == 3 for parameter in child.parameters())
            if experts and call is not None and call.output is not None:
                return call if call.output.shape[-1] == width else None
        return None


def _output_projection(attention: _Projected, after: list[Call]) -> Call | None:
    """The first linear layer whose input the values flow into."""
    value = attention.projections.get("value")
    if value is None or value[0].output is None:
        return None
    for call in after:
        context = next(iter(call.inputs.values()))
        if not context.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(
            context.sum(), value[0].output, retain_graph=True, allow_unused=True
        )
        if gradient is not None:
            return call
    return None


def _is_norm(call: Call) -> bool:
    weight = getattr(call.module, "weight", None)
    plain = not any(True for _ in call.module.children())
    return (
        plain and "Norm" in type(call.module).__name__ and weight is not None and weight.dim() == 1
    )


def _norm_sites(d: _Discovery, blocks: dict[str, tuple[str, int]]) -> list[Site]:
    """The norms of every block, and the norms and linear layers of the base outside the blocks."""
    sites = []
    vocabulary = d.model.get_output_embeddings()
    for module, call in d.first.items():
        block = d.block_of.get(module)
        if module is vocabulary:
            continue
        kind = "norm" if _is_norm(call) else "linear" if is_linear(module) and not block else ""
        if not kind or not call.inputs or (block is not None and block not in blocks):
            continue
        stack, index = blocks[block] if block else ("", None)
        width = int(module.weight.shape[0]) if kind == "norm" else widths(module)[1]  # type: ignore[index]
        d_in = width if kind == "norm" else widths(module)[0]
        source = d.source(call, None)
        sites.append(Site(kind, stack, index, d.names[module], d_in, width, source))
    return sites


def _stack_names(paths: list[str], cross: set[str]) -> dict[str, str]:
    """A short name per stack path: encoder / decoder, or what tells the paths apart."""
    if len(paths) == 1:
        return {paths[0]: "encoder"}
    if cross:
        return {path: "decoder" if path in cross else "encoder" for path in paths}
    parts = [path.split(".") for path in paths]
    depth = next(i for i, names in enumerate(zip(*parts, strict=False)) if len(set(names)) > 1)
    return {
        path: part[depth].removesuffix("_model") for path, part in zip(paths, parts, strict=True)
    }


def _mask_argument(d: _Discovery, path: str) -> MaskArgument | None:
    """Which argument of the attention module at ``path`` is its mask."""
    names = list(inspect.signature(d.model.get_submodule(path).forward).parameters)
    argument = next((n for n in ("attention_mask", "mask", "attn_mask") if n in names), None)
    if argument is None:
        return None
    return MaskArgument(path, argument, names.index(argument))


@torch.enable_grad()
def examine(model: PreTrainedModel) -> Anatomy:
    """Find the stacks, blocks and sites of a Hugging Face model by one dummy forward.

    Raises:
        ValueError: no attention was found in any block.
    """
    d = _Discovery(model)
    attentions = _attentions(d)
    if not attentions:
        raise ValueError(
            f"no attention found in {type(model).__name__}: it neither uses transformers' "
            "attention interface nor has projections of a known name. Give a model whose blocks "
            "are transformer layers, or attach to the transformer inside it."
        )
    ordered: dict[str, list[str]] = {}
    for attention in attentions:
        path = d.block_of[attention.module]
        listed = ordered.setdefault(path.rpartition(".")[0], [])
        if path not in listed:
            listed.append(path)
    after = {id(a): _after(d, a, attentions) for a in attentions}
    output_of = {id(a): _output_projection(a, after[id(a)]) for a in attentions}
    return _assemble(d, attentions, ordered, after, output_of)


def _assemble(
    d: _Discovery,
    attentions: list[_Projected],
    ordered: dict[str, list[str]],
    after: dict[int, list[Call]],
    output_of: dict[int, Call | None],
) -> Anatomy:
    by_block: dict[str, list[_Projected]] = {}
    for attention in attentions:
        by_block.setdefault(d.block_of[attention.module], []).append(attention)
    cross = {path for path, blocks in ordered.items() if len(by_block[blocks[0]]) > 1}
    names = _stack_names(list(ordered), cross)
    sites: list[Site] = []
    stacks: list[Stack] = []
    masks: dict[tuple[str, int, str], MaskArgument] = {}
    placed: dict[str, tuple[str, int]] = {}
    for path, blocks in ordered.items():
        first = by_block[blocks[0]][0]
        causal = _is_causal(first, output_of[id(first)])
        name = "decoder" if causal and len(ordered) == 1 else names[path]
        stacks.append(Stack(name, _runner(d, path), causal, tuple(blocks)))
        for index, block in enumerate(blocks):
            placed[block] = (name, index)
            writer = _Writer(d, name, index)
            for attention in by_block[block]:
                writer.attention(attention, after[id(attention)], output_of[id(attention)])
            writer.feed_forward(attention, after[id(attention)], output_of[id(attention)])
            sites += writer.sites
            for site in writer.sites:
                attends = site.role in ("attention", "cross_attention")
                mask = _mask_argument(d, site.path) if attends else None
                if mask is not None:
                    masks[name, index, site.role] = mask
    # The first block of a pre-norm stack may look post-norm, where embeddings come normalised.
    uneven = {(site.stack, site.role) for site in sites if site.post_norm is None}
    sites = [replace(s, post_norm=None) if (s.stack, s.role) in uneven else s for s in sites]
    sites += _norm_sites(d, placed)
    width = next(site.d_out for site in sites if site.role.endswith("attention"))
    # As in an attachment: a vocabulary projection is no head.
    backbone = base_of(d.model) if d.model.get_output_embeddings() is None else d.model
    parameters = sum(p.numel() for p in backbone.parameters())
    return Anatomy(d.model.config.model_type, width, tuple(stacks), tuple(sites), masks, parameters)


def _runner(d: _Discovery, path: str) -> str:
    """The nearest module around a list of blocks that is itself called."""
    while path and d.model.get_submodule(path) not in d.first:
        path = path.rpartition(".")[0]
    return path
