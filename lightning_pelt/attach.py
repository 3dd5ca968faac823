"""``attach``: the one place where a model is changed, and where the change is undone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_pelt import ownership
from lightning_pelt.anatomy import base_of, examine
from lightning_pelt.attachment import NORM, Attachment, MethodCount, find_attachment
from lightning_pelt.build import Builder
from lightning_pelt.errors import unknown
from lightning_pelt.plan import Plan

__all__ = ["Attachment", "MethodCount", "attach", "detach", "find_attachment", "find_model"]


def find_model(module: nn.Module, path: str | None = None) -> PreTrainedModel:
    """The outermost Hugging Face model inside ``module``, or the one at ``path``.

    Raises:
        ValueError: there is none, or several side by side and no path.
    """
    models = {n: m for n, m in module.named_modules() if isinstance(m, PreTrainedModel)}
    outermost = [n for n in models if not any(n != o and _inside(n, o) for o in models)]
    listed = ", ".join(name or "(the module itself)" for name in outermost) or "none"
    if path is not None:
        if path not in models:
            raise ValueError(f"there is no Hugging Face model at {path!r}: there is {listed}")
        return models[path]
    if len(outermost) != 1:
        raise ValueError(
            f"{type(module).__name__} holds {len(outermost)} Hugging Face models ({listed}), and "
            "one is needed: name it, e.g. PELTCallback(plan, path='encoder')"
        )
    return models[outermost[0]]


def _inside(name: str, other: str) -> bool:
    return other == "" or name.startswith(f"{other}.")


def attach(
    model: nn.Module,
    plan: Plan,
    *,
    seed: int = 0,
    path: str | None = None,
    head: Sequence[str] | None = None,
) -> Attachment:
    """Freeze a Hugging Face model and attach the submodules of ``plan`` to it.

    The model is changed in place; its base parameters keep their names. New heads, which lie
    outside the base and are not tied to its vocabulary, stay trainable. Attaching an equal plan
    again does nothing.

    Args:
        model: a Hugging Face model, or a module that holds one.
        plan: what goes where.
        seed: of the new weights; the global random state is left alone. All processes of a run
            start alike.
        path: of the model inside ``model``, where there are several.
        head: paths of modules of the Hugging Face model that are trained as its head. By default
            whatever lies outside the base, unless it is a pretrained vocabulary projection.

    Raises:
        ValueError: the plan does not fit the model, or another plan is attached already.
    """
    model = find_model(model, path)
    attached: Attachment | None = model.__dict__.get("pelt_attachment")
    if attached is not None:
        if attached.plan == plan:
            return attached
        raise ValueError(
            f"the model has another plan already: {attached.plan}, asked for {plan}. Take the "
            "first off with `detach(model)`, or put both into one Plan."
        )
    anatomy = examine(model)
    placed = plan.place(anatomy)
    attachment = Attachment(model, plan, anatomy)
    _freeze(attachment, head)
    # Built on the CPU, by its generator: torch.manual_seed would seed those of all devices.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        try:
            Builder(attachment).build(placed)
        except BaseException:
            attachment.detach()
            raise
    attachment.owned = frozenset(model.state_dict()) - attachment.base
    model.__dict__["pelt_attachment"] = attachment
    model.__dict__["save_pretrained"] = ownership.refuse_save_pretrained
    attachment._handles += ownership.install(model)
    return attachment


def detach(model: nn.Module) -> None:
    """Undo :func:`attach`.

    Raises:
        ValueError: nothing is attached.
    """
    attachment = find_attachment(model)
    if attachment is None:
        raise ValueError(f"nothing is attached to {type(model).__name__}")
    attachment.detach()


def _head(model: PreTrainedModel, paths: Sequence[str] | None) -> frozenset[str]:
    """Names of the head: below ``paths``, or outside the base where there is no vocabulary."""
    named = dict(model.named_parameters(remove_duplicate=False))
    if paths is not None:
        modules = dict(model.named_modules())
        for path in paths:
            if path not in modules:
                raise unknown("head", path, [name for name, _ in model.named_children()])
        chosen = {named[name] for name in named if any(_inside(name, path) for path in paths)}
        return frozenset(name for name, parameter in named.items() if parameter in chosen)
    if model.get_output_embeddings() is not None:
        return frozenset()
    base = set(base_of(model).parameters())
    return frozenset(name for name, parameter in named.items() if parameter not in base)


def _freeze(attachment: Attachment, head_paths: Sequence[str] | None) -> None:
    """Freeze the base; a head that was newly put on it keeps training."""
    model, plan = attachment.model, attachment.plan
    attachment._trained_before = {n: p.requires_grad for n, p in model.named_parameters()}
    attachment.head = _head(model, head_paths)
    for name, parameter in model.named_parameters():
        in_head = name in attachment.head
        parameter.requires_grad_(plan.train_base or in_head)
        attachment.head_size += parameter.numel() if in_head else 0
        attachment.backbone_size += 0 if in_head else parameter.numel()
    if plan.train_base:
        return
    if plan.norms:
        _train_norms(attachment)
    attachment.base = frozenset(model.state_dict()) - attachment.head - attachment.norms


def _train_norms(attachment: Attachment) -> None:
    """Unfreeze the norms of the base, and remember how they were."""
    paths = {site.path for site in attachment.anatomy.sites if site.role == "norm"}
    named = attachment.model.named_parameters()
    norms = {n: p for n, p in named if n.rpartition(".")[0] in paths and n not in attachment.head}
    for name, parameter in norms.items():
        parameter.requires_grad_(True)
        attachment._norms_before[name] = parameter.detach().clone()
    attachment.norms = frozenset(norms)
    size = sum(parameter.numel() for parameter in norms.values())
    attachment.counts[NORM] = MethodCount(size, size, 0)
