"""Freezes the base, and records what is needed to restore it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from transformers import PreTrainedModel

from lightning_pelt.anatomy import Anatomy, base_of
from lightning_pelt.attach.base_samples import BaseSamples
from lightning_pelt.attach.names import plain
from lightning_pelt.attach.provenance import new_parameters, resized_embeddings
from lightning_pelt.plans.plan import Plan
from lightning_pelt.utils.errors import unknown
from lightning_pelt.utils.quantised import count, kind_of


@dataclass
class Frozen:
    """A frozen model.

    Attributes:
        head, norms: names of the parameters of the head, and of the norms that the plan trains.
        kept: names of further tensors that checkpoints hold: statistics that move in training,
            buffers of the head, and parameters that came from no file.
        particular: names of tensors in ``head`` and ``kept`` that the same plan may not have on
            another copy of the model: they were named as head, or its file had them.
        head_size, backbone_size, norm_size: numbers of parameters.
        trained_before: whether each parameter required a gradient before, by name.
        values_before: tensors of the base as they were before training or loading changed them.
        samples: of the base, which show changes of which nothing else is recorded.
    """

    head: frozenset[str]
    norms: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    particular: frozenset[str] = frozenset()
    head_size: int = 0
    backbone_size: int = 0
    norm_size: int = 0
    trained_before: dict[str, bool] = field(default_factory=dict)
    values_before: dict[str, Tensor] = field(default_factory=dict)
    samples: BaseSamples = field(default_factory=BaseSamples)

    @property
    def saved(self) -> frozenset[str]:
        """Names of the tensors of the model itself that checkpoints hold."""
        return self.head | self.norms | self.kept

    def remember(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        """Record tensors of the base that are about to change, so that they can be restored."""
        chosen = set(names) - self.values_before.keys()
        for name, tensor in named_tensors(model).items():
            if name in chosen:
                self.values_before[name] = tensor.detach().clone()

    def restore(self, model: PreTrainedModel, *, values: bool = True) -> None:
        """Unfreeze what was frozen, and restore the recorded values unless they are to stay."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.trained_before.get(plain(name), True))
        if values:
            with torch.no_grad():
                for name, tensor in named_tensors(model).items():
                    if name in self.values_before:
                        tensor.copy_(self.values_before[name])


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all their names, without the parts that wrappers insert."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {plain(name): tensor for name, tensor in named}


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Each parameter by its first name, without the parts that wrappers insert."""
    return {plain(name): parameter for name, parameter in model.named_parameters()}


def freeze(
    model: PreTrainedModel, plan: Plan, anatomy: Anatomy, head: Sequence[str] | None
) -> Frozen:
    """Freeze the base of ``model``. What is new in it stays trainable.

    Args:
        model: is changed in place.
        plan: whether it trains the base, or the norms of it.
        anatomy: of the model.
        head: paths of modules that are trained as the head; None for the default.

    Raises:
        ValueError: a path of ``head`` does not exist, or weights to train are quantised.
    """
    new, default = new_parameters(model, anatomy), head_names(model, None)
    frozen = Frozen(default | new if head is None else head_names(model, head))
    named = named_parameters(model)
    _refuse_quantised(named, frozen.head, plan)
    frozen.trained_before = {name: p.requires_grad for name, p in named.items()}
    for name, parameter in named.items():
        in_head = name in frozen.head
        parameter.requires_grad_(plan.train_base or in_head)
        frozen.head_size += parameter.numel() if in_head else 0
        frozen.backbone_size += 0 if in_head else count(parameter)
    if plan.train_base:
        return frozen
    if head is not None:
        _warn_of_untrained(new - frozen.head, head)
    statistics = moving_statistics(model)
    rows = _new_rows(model, frozen.head, plan)
    frozen.kept = (new - frozen.head) | statistics | head_buffers(model, frozen.head) | rows
    frozen.particular = ((frozen.head | new) - default) | rows
    frozen.remember(model, statistics)
    if plan.norms:
        _train_norms(model, anatomy, frozen)
    return frozen


def _refuse_quantised(named: Mapping[str, nn.Parameter], head: frozenset[str], plan: Plan) -> None:
    """Raise if weights that are to be trained are quantised.

    Raises:
        ValueError: the message names one of them.
    """
    for name, parameter in named.items():
        kind = kind_of(parameter) if plan.train_base or name in head else None
        if kind is None:
            continue
        path = name.rpartition(".")[0]
        if name in head:
            remedy = (
                f"leave {path!r} out of what is quantised (quantise(model, ...) leaves the head "
                "out; the configurations of transformers have modules_to_not_convert or "
                "llm_int8_skip_modules), or out of head=[...]"
            )
        else:
            remedy = (
                f"{type(plan).__name__} trains the whole base: load it in full precision, or take "
                "a plan that freezes it"
            )
        raise ValueError(f"{name} is quantised, {kind}, and cannot be trained: {remedy}")


def _warn_of_untrained(left: frozenset[str], head: Sequence[str]) -> None:
    """Warn of parameters that came from no file, and that no head trains."""
    for name in sorted(left)[:1]:
        path = name.rpartition(".")[0]
        warnings.warn(
            f"{name} came from no pretrained file, and head={list(head)} leaves it out: it is "
            f"saved, and it is not trained. Name it too, head=[..., {path!r}]",
            stacklevel=4,
        )


def head_names(model: PreTrainedModel, paths: Sequence[str] | None) -> frozenset[str]:
    """Names of the head's parameters: below ``paths``, or outside the base by default.

    Raises:
        ValueError: a path does not exist.
    """
    named = {plain(n): p for n, p in model.named_parameters(remove_duplicate=False)}
    if paths is not None:
        modules = {plain(f"{name}.") for name, _ in model.named_modules()}
        for path in paths:
            if f"{path}." not in modules:
                raise unknown("head", path, [name for name, _ in model.named_children()])
        chosen = {named[name] for name in named if any(inside(name, path) for path in paths)}
        return frozenset(name for name, parameter in named.items() if parameter in chosen)
    if model.get_output_embeddings() is not None:
        return frozenset()
    base = set(base_of(model).parameters())
    return frozenset(name for name, parameter in named.items() if parameter not in base)


def inside(name: str, other: str) -> bool:
    """Whether the dotted ``name`` lies below ``other``."""
    return other == "" or name.startswith(f"{other}.")


def _train_norms(model: PreTrainedModel, anatomy: Anatomy, frozen: Frozen) -> None:
    """Unfreeze the norms of the base, and record their values."""
    paths = {plain(site.path) for site in anatomy.sites if site.role == "norm"}
    norms = {
        name: parameter
        for name, parameter in named_parameters(model).items()
        if name.rpartition(".")[0] in paths and name not in frozen.head
    }
    for parameter in norms.values():
        parameter.requires_grad_(True)
    frozen.norms = frozenset(norms)
    frozen.norm_size = sum(norm.numel() for norm in norms.values())
    frozen.remember(model, norms)


def moving_statistics(model: nn.Module) -> frozenset[str]:
    """Names of the buffers that batch and instance norms change in training."""
    return frozenset(
        plain(f"{path}.{name}" if path else name)
        for path, module in model.named_modules()
        if isinstance(module, _NormBase) and module.track_running_stats
        for name, _ in module.named_buffers(recurse=False)
    )


def head_buffers(model: nn.Module, head: frozenset[str]) -> frozenset[str]:
    """Names of the persistent buffers of the modules that hold parameters of the head."""
    paths = {name.rpartition(".")[0] for name in head}
    return frozenset(
        plain(f"{path}.{name}")
        for path, module in model.named_modules()
        if path and plain(f"{path}.").rstrip(".") in paths
        for name, buffer in module.named_buffers(recurse=False)
        if buffer is not None and name not in module._non_persistent_buffers_set
    )


def _new_rows(model: PreTrainedModel, head: frozenset[str], plan: Plan) -> frozenset[str]:
    """Names of frozen embeddings that hold rows of new tokens, with a warning.

    Tables of which a method replaces these rows need not be saved; the bias of a vocabulary
    projection, which no method replaces, is.
    """
    resized = {n: count for n, count in resized_embeddings(model).items() if n not in head}
    tensors = named_tensors(model)
    ours = {name for name, count in resized.items() if _replaces(plan, len(tensors[name]), count)}
    for name in [name for name in resized if name not in ours][:1]:
        path = name.rpartition(".")[0]
        warnings.warn(
            f"{name} has {resized[name]} rows of new tokens, which came from no file. It is saved "
            f"with the adapters, and it stays frozen: train its new rows with "
            f"NewTokens({resized[name]}), or name it in head=[..., {path!r}] to train all of it",
            stacklevel=4,
        )
    return frozenset(n for n in resized if n not in ours or tensors[n].dim() == 1)


def _replaces(plan: Plan, count: int, new: int) -> bool:
    """Whether a method replaces the ``new`` rows at the end of a table of ``count`` rows."""
    replaced = {row for method in plan.methods for row in method.replaced_rows(count)}
    return replaced.issuperset(range(count - new, count))
