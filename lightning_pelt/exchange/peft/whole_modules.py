"""The modules that a file of PEFT holds as a whole, and their place in a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.attach.builder import CHILD
from lightning_pelt.attach.freezing import head_names, inside, named_tensors
from lightning_pelt.attach.names import plain, tensor_names
from lightning_pelt.attach.tensor_checks import refuse_unfit
from lightning_pelt.exchange.peft.names import modules_of_base
from lightning_pelt.exchange.peft.saved_modules import matches
from lightning_pelt.exchange.peft.tensors import TABLE


@dataclass(frozen=True)
class Whole:
    """What a file holds of the model itself.

    Attributes:
        tensors: by their names in the model.
        head: the paths to pass to ``attach(head=...)``; None for the default head.
        norms: whether it holds all norms of the base.
        lacking: names of tensors of the default head that the file does not have.
    """

    tensors: dict[str, Tensor]
    head: list[str] | None
    norms: bool
    lacking: frozenset[str]


def check_whole(
    model: PreTrainedModel, anatomy: Anatomy, config: Mapping[str, Any], given: dict[str, Tensor]
) -> Whole:
    """Compare the tensors of ``modules_to_save`` with the model.

    Raises:
        ValueError: a tensor is missing, or lies in no module of ``modules_to_save``.
        RuntimeError: a tensor has another shape or dtype.
    """
    paths = matches(config.get("modules_to_save") or (), modules_of_base(model))
    paths = {path for path in paths if not any(inside(path, other) for other in paths)}
    state = {plain(name) for name in tensor_names(model)}
    state = {name for name in state if CHILD not in name.split(".")}
    expected = {name for name in state if any(inside(name, path) for path in paths)}
    given = _without_tables(model, given)
    if unknown := sorted(given.keys() - expected):
        raise ValueError(
            f"it holds {unknown[0]}, which is in none of its modules_to_save "
            f"({', '.join(config.get('modules_to_save') or ()) or 'none'}) of this model: PEFT "
            "saves embeddings that were resized or extended. Merge the adapter with PEFT's "
            "merge_and_unload(), or load the class of model that it was trained on"
        )
    if lacking := sorted(expected - given.keys()):
        raise ValueError(f"it lacks {lacking[0]}, which its modules_to_save name: it is incomplete")
    refuse_unfit(given, named_tensors(model))
    return _placed(model, anatomy, given, paths)


def _without_tables(model: PreTrainedModel, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the tables of extended embeddings, which PEFT saves too, if they are the model's.

    Raises:
        ValueError: a table has other values than in the model.
    """
    here, kept = named_tensors(model), dict(given)
    for name in [name for name in given if name.endswith(TABLE)]:
        own = here.get(f"{name.removesuffix(TABLE)}.weight")
        if own is None or own.shape != given[name].shape or not _equal(own, given[name]):
            raise ValueError(
                f"it holds {name}, the embeddings below its LoRA, with other values than the model "
                "has: they were resized or trained too. Merge the adapter with PEFT's "
                "merge_and_unload(), or load the base that it was trained on"
            )
        del kept[name]
    return kept


def _equal(own: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal up to the rounding of the coarser dtype."""
    eps = max(torch.finfo(each.dtype).eps for each in (own, other))
    return torch.allclose(own.detach().cpu().float(), other.float(), rtol=eps, atol=eps * 1e-3)


def _placed(
    model: PreTrainedModel, anatomy: Anatomy, given: dict[str, Tensor], paths: set[str]
) -> Whole:
    norm_paths = {plain(site.path) for site in anatomy.sites if site.role == "norm"}
    norms = {name for name in named_tensors(model) if name.rpartition(".")[0] in norm_paths}
    default = head_names(model, None)
    has_norms = bool(norms) and norms - default <= given.keys()
    rest = given.keys() - (norms if has_norms else set())
    if rest <= default:
        return Whole(given, None, has_norms, default - given.keys())
    chosen = sorted(path for path in paths if any(inside(name, path) for name in rest))
    return Whole(given, chosen, has_norms, frozenset())
