"""The vocabulary of places: a model seen as stacks of blocks with named sites."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from lightning_pelt.errors import unknown


@dataclass(frozen=True)
class Source:
    """The tensor that a site reads: ``argument`` of the module at ``path``, ``width`` wide.

    Sites with an equal source read the very same tensor, so what they compute from it (gates,
    down-projections) can be one matrix product.
    """

    path: str
    argument: int | str
    width: int


@dataclass(frozen=True)
class MaskArgument:
    """Where an attention module receives its mask: by ``name``, or as argument ``position``."""

    path: str
    name: str
    position: int


@dataclass(frozen=True)
class PostNorm:
    """Says that a block goes on with ``norm(f + a)``, where ``a`` is what the sublayer read.

    Args:
        output: path of the module that gives ``f``: the sublayer's last linear layer, or the
            dropout behind it.
        norm: path of the norm.
        residual: the tensor ``a``.
    """

    output: str
    norm: str
    residual: Source


@dataclass(frozen=True)
class Heads:
    """Shapes of the keys and values that an attention module hands to the attention function."""

    count: int
    key_width: int
    value_width: int


@dataclass(frozen=True)
class Site:
    """One place in one block where a submodule can be attached.

    Args:
        role: ``attention.query|key|value|output``, ``attention``, ``ffn.in|out``, ``ffn`` or
            ``norm``; with ``cross_attention`` for a decoder's attention over the encoder.
            Outside the blocks (``block`` is None): ``linear`` and ``norm``.
        path: the module to hook, from the model's root.
        channels: where in the output of a fused projection this site lies; None is all of it.
        heads: of role ``attention`` on transformers' attention interface alone.
    """

    role: str
    stack: str
    block: int | None
    path: str
    d_in: int
    d_out: int
    source: Source
    channels: tuple[int, ...] | None = None
    heads: Heads | None = None
    post_norm: PostNorm | None = None

    @property
    def label(self) -> str:
        """Short name of the role: ``query``, ``cross_value``, ``ffn.in``, ..."""
        return self.role.replace("cross_attention.", "cross_").removeprefix("attention.")

    def matches(self, pattern: str) -> bool:
        """Whether ``pattern`` is this site's role, its last part, or a glob over roles."""
        role = re.sub(
            r"_\d+$", "", self.role
        )  # the second input projection of a gated feed-forward
        last = role.rsplit(".", 1)[-1] if "attention." in role else role
        return pattern in (role, last, self.role) or fnmatchcase(role, pattern)


@dataclass(frozen=True)
class Stack:
    """A run of blocks: its module, whether a token may see later ones, and the blocks' paths."""

    name: str
    path: str
    causal: bool
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Anatomy:
    """What :func:`lightning_pelt.anatomy.examine` found in a model."""

    model_type: str
    width: int
    stacks: tuple[Stack, ...]
    sites: tuple[Site, ...]
    # By (stack, block, "attention" or "cross_attention").
    masks: dict[tuple[str, int, str], MaskArgument] = field(default_factory=dict)
    parameters: int = 0  # of the backbone: tied ones counted once, a new head not at all

    @property
    def on_interface(self) -> bool:
        """Whether the model's attention goes through transformers' attention interface."""
        return any(site.heads for site in self.sites)

    def stack(self, name: str) -> Stack:
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
            ValueError: a pattern matches nothing; the nearest role and all roles are named.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        for pattern in patterns:
            if not any(site.matches(pattern) for site in self.sites):
                roles = dict.fromkeys(s.role for s in self.sites if s.block is not None)
                short = dict.fromkeys(r.partition("attention.")[2] for r in roles if "." in r)
                options = [*roles, *filter(None, short)]
                raise unknown(f"site on {self.model_type}", pattern, options)
        return [site for site in self.sites if any(site.matches(pattern) for pattern in patterns)]
