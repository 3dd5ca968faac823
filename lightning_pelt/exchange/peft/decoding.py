"""From the tensors of PEFT to the weights of each site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.anatomy.embeddings import EMBEDDING
from lightning_pelt.attach.attachment import Attachment
from lightning_pelt.exchange.peft.ia3 import set_vector
from lightning_pelt.exchange.peft.lora import width_of
from lightning_pelt.exchange.peft.miss import set_matrix
from lightning_pelt.exchange.peft.names import pattern_key
from lightning_pelt.exchange.peft.targets import sites_of
from lightning_pelt.exchange.peft.tensors import Contents, refuse_shape
from lightning_pelt.exchange.peft.weights import Weights
from lightning_pelt.methods.base import Method
from lightning_pelt.methods.ia3 import IA3
from lightning_pelt.methods.lora import LoRA


@dataclass(frozen=True)
class LoRASettings:
    """Rank and scale of a LoRA."""

    r: int
    alpha: float
    rslora: bool
    dropout: float


def lora_weights(
    config: Mapping[str, Any], contents: Contents, attached_to: tuple[Any, Anatomy]
) -> dict[Site, Weights]:
    """The factors of every site.

    Args:
        config: of the file.
        contents: of the file.
        attached_to: the model and its anatomy.

    Raises:
        ValueError: a layer is no site, or a tensor has another shape than its layer or the rank of
            the configuration.
    """
    model, anatomy = attached_to
    found: dict[Site, Weights] = {}
    for path, pair in contents.lora.items():
        sites, layer = sites_of(anatomy, path), model.get_submodule(path)
        A, B = pair["A"], pair["B"]
        r = _of(config, "r", "rank_pattern", path)
        refuse_shape(f"{path}.lora_A", A, (r, sites[0].d_in))
        width = sites[0].d_out if sites[0].role == EMBEDDING else width_of(layer)
        refuse_shape(f"{path}.lora_B", B, (width, r))
        alpha = _of(config, "lora_alpha", "alpha_pattern", path)
        whole = LoRASettings(
            r, float(alpha), bool(config.get("use_rslora")), float(config.get("lora_dropout") or 0)
        )
        found |= _split(path, A, B, sites=sites, whole=whole)
    return found


def _of(config: Mapping[str, Any], name: str, pattern: str, path: str) -> Any:
    """A number of the configuration for one module."""
    patterns = config.get(pattern) or {}
    key = pattern_key(patterns, path)
    return config.get(name, 8) if key is None else patterns[key]  # 8 is PEFT's default


def _split(
    path: str, A: Tensor, B: Tensor, *, sites: list[Site], whole: LoRASettings
) -> dict[Site, Weights]:
    """The factors of each site of a layer.

    In a fused projection, sites share A where B is dense. Where each column of B belongs to the
    rows of one site, as save_peft writes it, each site gets its columns and their rows of A.
    """
    if sites[0].channels is None:
        return {sites[0]: Weights(whole, (A, B))}
    rows = {site: torch.tensor(site.channels) for site in sites}
    uses = {site: B[rows[site]].ne(0).any(0) for site in sites}  # (r,) each
    covered = torch.cat(list(rows.values()))
    outside = torch.ones(len(B), dtype=torch.bool).index_fill(0, covered, False)
    if B[outside].any():
        raise ValueError(
            f"it changes outputs of {path} that are neither queries, keys nor values, and no "
            "site here has them. Merge the adapter with PEFT's merge_and_unload()"
        )
    used = [site for site in sites if uses[site].any()] or sites
    counts = torch.stack([uses[site] for site in sites]).sum(0)
    if len(used) == 1 or not counts.eq(1).all():
        return {site: Weights(whole, (A, B[rows[site]])) for site in used}
    found = {}
    for site in used:
        columns = uses[site].nonzero().flatten()
        r = len(columns)
        scale = whole.alpha / (whole.r**0.5 if whole.rslora else whole.r)
        alpha = scale * r if whole.rslora else whole.alpha * r / whole.r
        part = LoRASettings(r, alpha, False, whole.dropout)
        found[site] = Weights(part, (A[columns], B[rows[site]][:, columns]))
    return found


def make_lora(settings: Any, roles: Any, name: str) -> Method:
    """The LoRA with given settings."""
    s: LoRASettings = settings
    return LoRA(r=s.r, alpha=s.alpha, dropout=s.dropout, rslora=s.rslora, sites=roles, name=name)


def ia3_weights(
    config: Mapping[str, Any], contents: Contents, attached_to: tuple[Any, Anatomy]
) -> dict[Site, Weights]:
    """The vector of every site; slices of a fused projection that are all ones are left out.

    Raises:
        ValueError: as :func:`lora_weights`.
    """
    model, anatomy = attached_to
    found: dict[Site, Weights] = {}
    for path, vector in contents.ia3.items():
        sites, layer = sites_of(anatomy, path), model.get_submodule(path)
        on_input = vector.dim() == 2 and vector.shape[0] == 1 and width_of(layer) != 1
        shape = (1, sites[0].d_in) if on_input else (width_of(layer), 1)
        refuse_shape(f"{path}.ia3_l", vector, shape)
        values = vector.flatten()
        if on_input or sites[0].channels is None:
            found[sites[0]] = Weights(None, (values,), on_input)
            continue
        rows = {site: torch.tensor(site.channels) for site in sites}
        moved = [site for site in sites if (values[rows[site]] != 1).any()] or sites
        found |= {site: Weights(None, (values[rows[site]],)) for site in moved}
    return found


def make_ia3(settings: Any, roles: Any, name: str) -> Method:
    """The (IA)3 on given roles."""
    return IA3(sites=roles, name=name)


def fill(attachment: Attachment, weights: Mapping[Site, Weights]) -> None:
    """Write the weights of each site into the submodules of an attachment.

    Raises:
        ValueError: a vector scales the output of a layer whose input is scaled here, or the
            reverse.
    """
    by_key = {(site.path, site.label.replace(".", "_")): site for site in weights}
    for submodule in attachment.all_submodules:
        module: Any = submodule
        if hasattr(module, "factors"):
            for key in module.keys:
                module.set_factors(key, *weights[by_key[module.path, key]].tensors)
        elif hasattr(module, "D"):
            set_matrix(module, *weights[module.site].tensors)
        elif hasattr(module, "P"):
            with torch.no_grad():
                module.P.copy_(*weights[module.site].tensors)
        elif hasattr(module, "vector"):
            given = weights[module.site]
            if given.on_input != module.on_input:
                side, here = ("input", "output") if given.on_input else ("output", "input")
                raise ValueError(
                    f"it scales the {side} of {module.site.path}, and (IA)3 scales the {here} of "
                    f"{module.site.role} here. Merge the adapter with PEFT's merge_and_unload()"
                )
            set_vector(module, *given.tensors)
