"""A model family: how AdapterHub names its modules, and what differs there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_pelt.anatomy import Anatomy

QKV = "attention.qkv"  # a projection of which AdapterHub extends thirds
LETTERS = {"q": "query", "k": "key", "v": "value"}  # of ``attn_matrices``


@dataclass(frozen=True)
class Family:
    """The names in the files of one family.

    Args:
        layers: a pattern with the groups ``number`` and, in an encoder-decoder, ``stack``.
        places: by paths in a block, the roles of sites here. In an encoder-decoder, a path may
            start with the stack and a colon.
        prefixes: by the names of groups of prefixes, their stack (None for the only one) and role.
        heads: see :mod:`lightning_pelt.exchange.adapterhub.heads`.
        eager: the settings of methods that the library masks rightly with
            ``attn_implementation="eager"`` alone. SDPA, its default, takes a mask of booleans, to
            which the library adds columns that hide the prefix or prompt.
        shifts: whether relative positions count the tokens of the prefix there.
        prompts: whether a prompt works there, and attends to words alone, not to padding.
        intermediate: the site that the library calls so; None for the projection into the
            feed-forward, of a gated one that without the activation.
        output: the site that the library calls so.
    """

    layers: str
    places: Mapping[str, str]
    prefixes: Mapping[str, tuple[str | None, str]]
    heads: Mapping[str, tuple[dict[str, Any], tuple[str | None, ...]]] = field(default_factory=dict)
    eager: tuple[str, ...] = ()
    shifts: bool = False
    prompts: bool = True
    intermediate: str | None = None
    output: str = "ffn.out"

    def locate(self, path: str, anatomy: Anatomy) -> tuple[str, int, str] | None:
        """Stack, number of the block, and role of the module at ``path``; None if unknown."""
        match = re.search(rf"(?:^|\.){self.layers}\.(?P<place>.+)$", path)
        if match is None:
            return None
        stack = match.groupdict().get("stack") or anatomy.stacks[0].name
        place = match["place"]
        role = self.places.get(f"{stack}:{place}", self.places.get(place))
        return None if role is None else (stack, int(match["number"]), role)

    def inner(self, anatomy: Anatomy) -> str:
        """The site that the library calls ``intermediate``."""
        gated = any(site.role == "ffn.in_2" for site in anatomy.sites)
        return self.intermediate or ("ffn.in_2" if gated else "ffn.in")

    @property
    def merged(self) -> bool:
        """Whether one projection computes queries, keys and values."""
        return QKV in self.places.values()
