"""Sites: a model described as stacks of blocks, and the modules to attach to in each block."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import Any

from lightning_pelt.utils.errors import unknown

OUTPUT = "(output)"  # as Source.argument: the module's output
SUBLAYERS = ("attention", "cross_attention", "ffn")
EMBEDDINGS = ("embedding", "vocabulary", "vocabulary.tied")
NOT_LINEAR = (*SUBLAYERS, "norm", "block", "prompt", "expert.in", "expert.out", "embedding")


@dataclass(frozen=True)
class Source:
    """The tensor that a site reads.

    Sites with equal sources read the same tensor, so that gates and down-projections of them can be
    computed in one matrix product.

    Args:
        path: path of a module, from the model's root.
        argument: position or name of the module's argument; :data:`OUTPUT` is its output.
        width: size of the tensor's last dimension.

    Example:
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.testing import tiny_bert
        >>> query, key = examine(tiny_bert()).select(["query", "key"])[:2]
        >>> query.source
        Source(path='bert.encoder.layer.0.attention.self', argument=0, width=32)
        >>> key.source == query.source
        True
    """

    path: str
    argument: int | str
    width: int


@dataclass(frozen=True)
class MaskArgument:
    """The argument that carries the mask of the attention module at ``path``.

    Args:
        path: path of the attention module, from the model's root.
        name: the argument's name.
        position: its position, for calls that pass it without the name.

    Example:
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.testing import tiny_bert
        >>> examine(tiny_bert()).masks["encoder", 0, "attention"].name
        'attention_mask'
    """

    path: str
    name: str
    position: int


@dataclass(frozen=True)
class PostNorm:
    """The norm of a post-norm sublayer: the block continues with ``norm(f + a)``.

    Args:
        output: path of the module that returns ``f``: the sublayer's last linear layer, or the
            dropout after it.
        norm: path of the norm.
        residual: the tensor ``a``, which the sublayer reads.

    Example:
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.testing import tiny_bert, tiny_llama
        >>> examine(tiny_bert()).select("ffn")[0].post_norm.norm
        'bert.encoder.layer.0.output.LayerNorm'
        >>> examine(tiny_llama()).select("ffn")[0].post_norm is None  # pre-norm
        True
    """

    output: str
    norm: str
    residual: Source


@dataclass(frozen=True)
class Residual:
    """What a block adds to the output ``f`` of a sublayer: the residual stream.

    Args:
        output: path of the module that returns ``f``: the sublayer's last module, or the dropout
            after it.
        source: the tensor, before any norm of the sublayer.

    Example:
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.testing import tiny_llama
        >>> site = examine(tiny_llama()).select("ffn")[0]
        >>> site.source.path, site.residual.source.path
        ('model.layers.0.mlp.gate_proj', 'model.layers.0.post_attention_layernorm')
    """

    output: str
    source: Source


@dataclass(frozen=True)
class AttentionHeads:
    """Shapes of the keys and values that an attention module passes to the attention function.

    Args:
        count: number of key-value heads.
        key_width: width of a head's keys.
        value_width: width of a head's values.

    Example:
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.testing import tiny_llama
        >>> examine(tiny_llama()).select("attention")[0].heads
        AttentionHeads(count=2, key_width=8, value_width=8)
    """

    count: int
    key_width: int
    value_width: int


@dataclass(frozen=True)
class Site:
    """A module, or a slice of its output, to which a method can attach a submodule.

    Args:
        role: in each block ``attention.query|key|value|output``, ``attention``, ``ffn.in|out``,
            ``ffn`` and ``norm``, ``expert.in|out`` for the stacked weights of fused experts,
            ``cross_attention`` and ``cross_attention.*`` for the attention
            of a decoder over the encoder, and ``block`` for the block's output, which is the
            residual stream. Second ones of a block have a number: ``attention_2``. Outside the
            blocks ``linear`` and ``norm``.
        stack: name of the stack.
        block: number of the block in the stack; None outside the blocks.
        path: path of the module to hook, from the model's root.
        d_in: width of the input.
        d_out: width of the output.
        source: the tensor that the site reads.
        channels: output channels of a fused projection that belong to the site; None is all.
        heads: only of attentions on transformers' attention interface.
        post_norm: only of the last site of a post-norm sublayer.
        residual: only of the last site of a sublayer to whose output the block adds the residual
            stream as it is, without a norm or a factor before the sum.
        repeated: whether the module also runs on other tensors than ``source`` in one forward.
        experts: number of experts whose stacked weights the site is, each ``d_in`` to ``d_out``.

    Example:
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.testing import tiny_gpt2
        >>> key = examine(tiny_gpt2()).select("key")[0]
        >>> key.role, key.path, key.d_in, key.d_out
        ('attention.key', 'transformer.h.0.attn.c_attn', 32, 32)
        >>> key.channels == tuple(range(32, 64))  # of the 96 channels of query, key and value
        True
    """

    role: str
    stack: str
    block: int | None
    path: str
    d_in: int
    d_out: int
    source: Source
    channels: tuple[int, ...] | None = None
    heads: AttentionHeads | None = None
    post_norm: PostNorm | None = None
    residual: Residual | None = None
    repeated: bool = False
    experts: int | None = None

    @property
    def kind(self) -> str:
        """The role without the number of a second one in the block.

        ``ffn.in_2`` of a gated feed-forward is ``ffn.in``, and ``attention_2.query`` of a block
        with two attentions is ``attention.query``.
        """
        return _kind(self.role)

    @property
    def is_linear(self) -> bool:
        """Whether the module at ``path`` is a linear layer."""
        return self.kind not in NOT_LINEAR

    @property
    def label(self) -> str:
        """Short name of the role: ``query``, ``cross_value``, ``ffn.in``, ..."""
        return self.role.replace("cross_attention.", "cross_").removeprefix("attention.")

    def matches(self, pattern: str) -> bool:
        """Whether ``pattern`` is this site's role, the last part of it, or a glob over roles."""
        return _matches(self.role, pattern)


@cache
def _kind(role: str) -> str:
    return re.sub(r"_\d+(?=\.|$)", "", role)


def _without_experts(model_type: str, pattern: str) -> str:
    return (
        f"{model_type} has no site {pattern!r}: it has no stacked weights of experts in floating "
        "point that run through transformers' experts interface (use_experts_implementation). An "
        "Adapter takes the whole mixture, sites=('ffn',), and LoRA the attentions"
    )


@cache  # a search of the design space asks a million times
def _matches(role: str, pattern: str) -> bool:
    if role.startswith("expert.") and not pattern.startswith("expert"):
        return False  # a glob over all layers does not mean all experts
    group = _kind(role)
    last = group.rsplit(".", 1)[-1] if "attention." in group else group
    return pattern in (group, last, role) or fnmatchcase(group, pattern)


@dataclass(frozen=True)
class Stack:
    """Consecutive blocks of one kind, such as an encoder.

    Args:
        name: ``encoder``, ``decoder``, ``text``, ``vision``, ...
        path: path of the module whose forward calls the blocks.
        causal: whether a token attends only to itself and to earlier tokens.
        blocks: paths of the blocks in network order.

    Example:
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.testing import tiny_gpt2
        >>> examine(tiny_gpt2()).stacks[0]  # doctest: +NORMALIZE_WHITESPACE
        Stack(name='decoder', path='transformer', causal=True,
              blocks=('transformer.h.0', 'transformer.h.1'))
    """

    name: str
    path: str
    causal: bool
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Anatomy:
    """The stacks, blocks and sites of a model, as found by :func:`examine`.

    Args:
        model_type: the model family, as in the model's configuration.
        width: width of the residual stream.
        stacks: in the order in which they run.
        sites: in network order.
        masks: by stack, block, and ``attention`` or ``cross_attention``.
        unread: names of the stacks over words in which gates cannot learn what is padding: an
            attention takes no mask of a known name, or not before the gates run.
        rowless: names of the stacks in which some tensors do not have the rows of the batch first:
            (T, B, d), as in Longformer, or all images of a batch behind each other.
        idle: paths of lists of layers that did not run on the inputs, with ``*`` for numbers.
        embeddings: the sites ``embedding``, of the modules that look words up, and ``vocabulary``
            or, where it has the same table, ``vocabulary.tied``, of the projection onto the words.
            Patterns other than their names do not match them.
        parameters: size of the backbone: tied parameters count once, a new head does not count.

    Example:
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.testing import tiny_bert
        >>> anatomy = examine(tiny_bert())
        >>> anatomy.model_type, anatomy.width, len(anatomy.stack("encoder").blocks)
        ('bert', 32, 2)
        >>> [site.path for site in anatomy.select("ffn.in")]
        ['bert.encoder.layer.0.intermediate.dense', 'bert.encoder.layer.1.intermediate.dense']
    """

    model_type: str
    width: int
    stacks: tuple[Stack, ...]
    sites: tuple[Site, ...]
    masks: dict[tuple[str, int, str], MaskArgument] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()
    rowless: frozenset[str] = frozenset()
    idle: tuple[str, ...] = ()
    embeddings: tuple[Site, ...] = ()
    parameters: int = 0

    @cached_property
    def memo(self) -> dict[tuple[str, ...], Any]:
        """What other modules have computed from this anatomy and need again."""
        return {}

    @property
    def on_interface(self) -> bool:
        """Whether the model's attention uses transformers' attention interface."""
        return any(site.heads for site in self.sites)

    def stack(self, name: str) -> Stack:
        """The stack called ``name``."""
        return next(stack for stack in self.stacks if stack.name == name)

    def block_label(self, site: Site) -> str:
        """``07``, or ``decoder.07`` in a model of several stacks; ``outer`` outside the blocks."""
        if site.block is None:
            return "outer"
        digits = f"{site.block:02d}"
        return digits if len(self.stacks) == 1 else f"{site.stack}.{digits}"

    def select(self, patterns: str | Iterable[str]) -> list[Site]:
        """The sites whose role matches any of ``patterns``, in network order.

        Raises:
            ValueError: a pattern matches no site; the message names the nearest role and all roles.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        words = [site for site in self.embeddings if site.role in patterns]
        named = {site.role for site in words}
        for pattern in patterns:
            if pattern not in named and not any(site.matches(pattern) for site in self.sites):
                roles = dict.fromkeys(s.role for s in self.sites if s.block is not None)
                short = dict.fromkeys(r.partition("attention.")[2] for r in roles if "." in r)
                options = [*roles, *filter(None, short), *(s.role for s in self.embeddings)]
                if pattern.startswith("expert"):
                    raise ValueError(_without_experts(self.model_type, pattern))
                raise unknown(f"site on {self.model_type}", pattern, options)
        found = [site for site in self.sites if any(site.matches(p) for p in patterns)]
        return [*words, *found]
