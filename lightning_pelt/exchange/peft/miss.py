"""MiSS: a matrix for each site here, and one matrix per module in PEFT.

All sites of a fused projection read the same sum of shards, so that the matrix of the module has
those of the sites in their columns, and zeros elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.attach.attachment import Attachment
from lightning_pelt.exchange.peft.gates import factor
from lightning_pelt.exchange.peft.lora import width_of
from lightning_pelt.exchange.peft.targets import sites_of
from lightning_pelt.exchange.peft.tensors import Contents, refuse_shape
from lightning_pelt.exchange.peft.weights import Weights
from lightning_pelt.methods.base import Method
from lightning_pelt.methods.miss import MiSS
from lightning_pelt.methods.submodule import Submodule

DISTIL = "distil_lora trains a LoRA on what this model computes, which the format holds"


@dataclass(frozen=True)
class MiSSSettings:
    """Rank and dropout of a MiSS."""

    r: int
    dropout: float


def matrices_of(attachment: Attachment, submodules: Iterable[Submodule]) -> dict[str, Tensor]:
    """One matrix (r, d_out) for each layer, by path; constant gates are folded in.

    Raises:
        ValueError: PEFT has no MiSS on such a layer, or layers have different ranks.
    """
    found: dict[str, Tensor] = {}
    for submodule in submodules:
        each: Any = submodule
        site, layer = each.site, attachment.model.get_submodule(each.site.path)
        if isinstance(layer, Conv1D):
            raise ValueError(
                f"{site.path} is a Conv1D, on which PEFT has no MiSS: it has one on nn.Linear "
                f"only. {DISTIL}"
            )
        D = each.D.detach() * factor(each.gate, 1.0)
        rows = each.output_rows.rows
        whole = D if rows is None else D.new_zeros(len(D), width_of(layer)).index_copy(1, rows, D)
        before = found.get(site.path, torch.zeros_like(whole))
        ranks = {len(D), len(before), *(len(other) for other in found.values())}
        if len(ranks) > 1:
            raise ValueError(
                f"the plan has MiSS of the ranks {' and '.join(map(str, sorted(ranks)))}, and "
                f"PEFT's format has one for all layers. {DISTIL}"
            )
        found[site.path] = before + whole
    return found


def miss_weights(
    config: Mapping[str, Any], contents: Contents, attached_to: tuple[Any, Anatomy]
) -> dict[Site, Weights]:
    """The matrix of every site; sites of a fused projection with zeros alone are left out.

    Raises:
        ValueError: a layer is no site, or a matrix has another shape than its layer or the rank of
            the configuration, or changes outputs that belong to no site.
    """
    model, anatomy = attached_to
    settings = MiSSSettings(config.get("r", 64), float(config.get("miss_dropout") or 0))
    found: dict[Site, Weights] = {}
    for path, D in contents.miss.items():
        sites, width = sites_of(anatomy, path), width_of(model.get_submodule(path))
        refuse_shape(f"{path}.miss_block", D, (settings.r, width))
        if sites[0].channels is None:
            found[sites[0]] = Weights(settings, (D,))
            continue
        rows = {site: torch.tensor(site.channels) for site in sites}
        outside = torch.ones(width, dtype=torch.bool)
        outside[torch.cat([*rows.values()])] = False
        if D[:, outside].any():
            raise ValueError(
                f"it changes outputs of {path} that are neither queries, keys nor values, and no "
                "site here has them. Merge the adapter with PEFT's merge_and_unload()"
            )
        used = [site for site in sites if D[:, rows[site]].any()] or sites
        found |= {site: Weights(settings, (D[:, rows[site]],)) for site in used}
    return found


def make_miss(settings: Any, roles: Any, name: str) -> Method:
    """The MiSS with given settings."""
    return MiSS(r=settings.r, dropout=settings.dropout, sites=roles, name=name)


@torch.no_grad()
def set_matrix(submodule: Any, D: Tensor) -> None:
    """Overwrite the matrix of a submodule.

    Raises:
        RuntimeError: another shape.
    """
    submodule.D.copy_(D)
