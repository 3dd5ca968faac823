r"""LoRA: the factors of each site here, and one pair of factors per module in PEFT.

In a fused projection, each site here has factors :math:`A_i` (r, d_in) and :math:`B_i` for its rows
of the output. In PEFT, the module has a single pair: :math:`A` stacks the :math:`A_i`, and each
:math:`B_i` keeps its rows and columns of a :math:`B` that is zero elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightning_pelt.attach.attachment import Attachment
from lightning_pelt.exchange.peft.gates import factor
from lightning_pelt.exchange.peft.names import key_for
from lightning_pelt.methods.submodule import Submodule


@dataclass(frozen=True)
class Factors:
    """One LoRA on one site.

    Attributes:
        path: of the layer.
        A: (r, d_in).
        B: (d_out of the site, r).
        rows: (d_out of the site,), its rows in the layer's output; None for all.
        scale: of B A.
    """

    path: str
    A: Tensor
    B: Tensor
    rows: Tensor | None
    scale: float


@dataclass(frozen=True)
class Pair:
    """The LoRA of one module in PEFT: ``scale * B A`` with A (r, d_in) and B (d_out, r)."""

    A: Tensor
    B: Tensor
    scale: float


def factors_of(submodule: Any) -> Iterator[tuple[str, Factors]]:
    """The keys and factors of the sites of one submodule; nothing for down-projections.

    Raises:
        ValueError: it is of another kind, such as that of stacked weights of experts.
    """
    if not hasattr(submodule, "factors"):
        submodule.weight_updates()
        return
    rows = {key: each.rows for key, each in zip(submodule.keys, submodule.output_rows, strict=True)}
    for key, gate in zip(submodule.keys, submodule.gates, strict=True):
        scale = factor(gate, submodule.scale)
        A, B = submodule.factors(key)
        yield key, Factors(submodule.path, A, B, rows[key], scale)


def pairs_of(attachment: Attachment, submodules: Iterable[Submodule]) -> dict[str, Pair]:
    """One pair of factors for each layer, by path."""
    by_path: dict[str, list[Factors]] = {}
    for submodule in submodules:
        for _, factors in factors_of(submodule):
            by_path.setdefault(factors.path, []).append(factors)
    model = attachment.model
    return {path: _joined(model.get_submodule(path), each) for path, each in by_path.items()}


def _joined(layer: nn.Module, parts: Sequence[Factors]) -> Pair:
    """Stack the factors of all sites in one layer.

    Parts with equal A, such as those of an adapter that PEFT had trained on a fused projection,
    share it. Different scales are folded into B.
    """
    scale = next((part.scale for part in parts if part.scale), 0.0)
    stacked: list[tuple[Factors, Tensor]] = []
    for part in parts:
        B = part.B if part.scale == scale else part.B * (part.scale / scale)
        wide = B if part.rows is None else B.new_zeros(width_of(layer), B.shape[1])
        if part.rows is not None:
            wide.index_copy_(0, part.rows, B)
        for number, (other, joined) in enumerate(stacked):
            if _disjoint(part, other, joined) and torch.equal(part.A, other.A):
                stacked[number] = (other, joined + wide)
                break
        else:
            stacked.append((part, wide))
    low = [part.A for part, _ in stacked]
    return Pair(torch.cat(low), torch.cat([wide for _, wide in stacked], 1), scale)


def names_of(layer: nn.Module, path: str) -> dict[str, str]:
    """The names of A and B of the layer at ``path`` in a file, where embeddings have their own."""
    if isinstance(layer, nn.Embedding):
        return {which: f"{path}.lora_embedding_{which}" for which in "AB"}
    return {which: f"{path}.lora_{which}.weight" for which in "AB"}


def _disjoint(part: Factors, other: Factors, joined: Tensor) -> bool:
    """Whether the rows of ``part`` are still free in the B of ``other``."""
    if part.rows is None or other.rows is None or part.A.shape != other.A.shape:
        return False
    return not joined.index_select(0, part.rows).any()


def width_of(layer: nn.Module) -> int:
    """Width of the output of a linear layer."""
    if isinstance(layer, Conv1D):
        return layer.nf
    width = getattr(layer, "out_features", None)
    return int(layer.weight.shape[0] if width is None else width)  # type: ignore[index]


def fields_of(
    pairs: Mapping[str, Pair], methods: Sequence[Mapping[str, Any]], modules: Sequence[str]
) -> dict[str, Any]:
    """Rank and scale of every module, as fields of ``LoraConfig``.

    Args:
        pairs: by path.
        methods: the ``init_args`` of every LoRA of the plan.
        modules: paths of all modules of the base.
    """
    ranks = {path: len(pair.A) for path, pair in pairs.items()}
    stabilised = _rank_stabilised(ranks, methods)
    powers = {path: rank**0.5 if stabilised else float(rank) for path, rank in ranks.items()}
    alphas = {path: _alpha(pair.scale * powers[path], methods) for path, pair in pairs.items()}
    r, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    return {
        "r": r,
        "lora_alpha": alpha,
        "use_rslora": stabilised,
        "rank_pattern": {key_for(p, modules): v for p, v in ranks.items() if v != r},
        "alpha_pattern": {key_for(p, modules): v for p, v in alphas.items() if v != alpha},
    }


def _rank_stabilised(ranks: Mapping[str, int], methods: Sequence[Mapping[str, Any]]) -> bool:
    """Whether PEFT divides by the root of the rank: if all methods do, and no rank has grown."""
    own = {method["r"] for method in methods}
    return all(m["rslora"] and m["gate"] is None for m in methods) and {*ranks.values()} <= own


def _alpha(value: float, methods: Sequence[Mapping[str, Any]]) -> float | int:
    """``value`` without the rounding of a division and a product: an alpha of the plan."""
    known = [m["alpha"] * count for m in methods for count in (1, 2, 3)]
    exact = next((a for a in known if abs(a - value) <= 1e-12 * abs(a)), value)
    return int(exact) if float(exact).is_integer() else float(exact)
