"""Where an anatomy has its sublayers, in one line per stack.

``decoder (model.layers.*) 0-1: self_attn[q_proj k_proj v_proj > o_proj] mlp.down_proj[mlp.gate_proj
mlp.up_proj > mlp.down_proj]`` means: blocks 0 and 1 have an attention in ``self_attn`` with these
projections, and a feed-forward whose output is that of ``mlp.down_proj``. Paths are relative to the
block; a leading slash marks those outside it. ``x`` marks a cross-attention, ``-`` a block without
sublayers, and ``causal`` a causal stack.
"""

from __future__ import annotations

import re
from itertools import groupby

from lightning_pelt.anatomy import Anatomy, Site, Stack


def describe(anatomy: Anatomy) -> str:
    """The places of all sublayers, stack by stack."""
    return "; ".join(_stack(anatomy, stack) for stack in anatomy.stacks)


def _stack(anatomy: Anatomy, stack: Stack) -> str:
    blocks = [
        _block(path, [s for s in anatomy.sites if (s.stack, s.block) == (stack.name, number)])
        for number, path in enumerate(stack.blocks)
    ]
    parts = []
    for text, group in groupby(range(len(blocks)), key=lambda number: blocks[number]):
        numbers = list(group)
        span = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
        parts.append(f"{span}: {text}")
    pattern = re.sub(r"(?<=\.)\d+", "*", stack.blocks[0])
    causal = " causal" if stack.causal else ""
    return f"{stack.name} ({pattern}){causal} {', '.join(parts)}"


def _block(path: str, sites: list[Site]) -> str:
    by_role = {site.role: _relative(site, path) for site in sites}
    texts = []
    for role, host in by_role.items():
        if re.fullmatch(r"(cross_)?attention(_\d+)?", role):
            read = [by_role.get(f"{role}.{name}", "?") for name in ("query", "key", "value")]
            mark = "x" if role.startswith("cross") else ""
            texts.append(mark + _linears(host, read, [by_role.get(f"{role}.output", "?")]))
        elif role == "ffn":
            ins = [p for r, p in by_role.items() if re.fullmatch(r"ffn\.in(_\d+)?", r)]
            outs = [p for r, p in by_role.items() if r == "ffn.out"]
            texts.append(_linears(host, ins, outs) if ins or outs else host)
    return " ".join(texts) or "-"


def _linears(host: str, ins: list[str], outs: list[str]) -> str:
    """``host[a b > c]``; what the paths have in common with the host is left out."""
    read = " ".join(path.removeprefix(f"{host}.") for path in dict.fromkeys(ins))
    written = " ".join(path.removeprefix(f"{host}.") for path in outs)
    return f"{host}[{read} > {written}]"


def _relative(site: Site, block: str) -> str:
    inside = site.path.startswith(f"{block}.")
    return site.path[len(block) + 1 :] if inside else f"/{site.path}"
