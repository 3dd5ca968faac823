"""The model that is distilled into: a copy of the base with a plain LoRA."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.attach import Attachment, attach
from lightning_pelt.attach.attachment import attachment_of
from lightning_pelt.attach.freezing import named_tensors
from lightning_pelt.attach.provenance import LOADED
from lightning_pelt.exchange.distillation.unlabelled_rows import Batch
from lightning_pelt.methods import LoRA
from lightning_pelt.plans import Plan


def refuse_unfit(teacher: Attachment) -> None:
    """Raise for a plan that no single LoRA can stand for.

    Raises:
        ValueError: the model has several adapters, its base is trained as well, it is part of a
            larger one, or the plan has several profiles or a head for each.
    """
    teacher.refuse_others("distilled")
    if teacher.plan.train_base or teacher.trained_base:
        name = next(iter(sorted(teacher.trained_base)), "all of it")
        raise ValueError(
            f"the base of the model is trained as well ({name}), and a LoRA stands for a plan on a "
            "frozen base: save the whole model, model.save_pretrained(folder)"
        )
    if teacher.surroundings is not None:
        raise ValueError(
            f"{type(teacher.model).__name__} is part of a larger pretrained model, and rows for "
            "the part are needed: attach the plan to the part alone, attach(part, plan), and "
            "load_adapters"
        )
    for method in teacher.plan.methods:
        if method.for_one_profile() != method:
            raise ValueError(
                f"{method.name!r} has several profiles, and each would be another LoRA: attach the "
                "plan with profiles=1 to another copy of the base, load one profile with "
                "write_profile, and distil that"
            )
    if any(module.sized_by_labels for module in teacher.all_submodules):
        raise ValueError(
            "the plan has a head for each profile, which a LoRA of the base cannot stand for: "
            "train the plan with head='shared'"
        )


def lora_for(teacher: Attachment, *, r: int, sites: Sequence[str] | None) -> LoRA:
    """The ungated LoRA of scale 1 that is to follow ``teacher``.

    Args:
        teacher: an attached plan.
        r: rank at each site.
        sites: roles of linear layers; None for all of the blocks.

    Raises:
        ValueError: as :func:`refuse_unfit`, or a role that the model lacks.
    """
    refuse_unfit(teacher)
    roles = linear_roles(teacher.anatomy) if sites is None else tuple(sites)
    lora = LoRA(r=r, alpha=float(r), sites=roles)
    lora.where(teacher.anatomy)
    return lora


@torch.no_grad()
def student_of(
    teacher: Attachment, lora: LoRA, *, seed: int, example: Batch | None = None
) -> Attachment:
    """A copy of the base of ``teacher`` with a LoRA that does nothing yet.

    Its head, its norms and its moving statistics are those of the teacher.

    Args:
        teacher: is not changed.
        lora: is attached.
        seed: of the weights.
        example: inputs for a model that does not run on the usual ones.
    """
    model: PreTrainedModel = copy.deepcopy(teacher.model)
    attachment_of(model).detach()
    _mark_loaded(model, teacher.model)
    plan = Plan.uniform(lora, norms=bool(teacher.norms))
    try:
        student = attach(model, plan, seed=seed)
    except ValueError:
        if example is None:
            raise
        student = attach(model, plan, seed=seed, example_inputs=example)
    if student.head != teacher.head:  # that of the teacher was named
        student.detach()
        head = sorted({name.rpartition(".")[0] for name in teacher.head})
        student = attach(model, plan, seed=seed, head=head, example_inputs=example)
    theirs, own = named_tensors(teacher.model), named_tensors(model)
    for name in teacher.frozen.saved & own.keys():
        own[name].copy_(theirs[name])
    model.eval()
    return student


def linear_roles(anatomy: Anatomy) -> tuple[str, ...]:
    """The roles of the linear layers in the blocks of a model."""
    sites = [site for site in anatomy.sites if site.block is not None and site.is_linear]
    return tuple(dict.fromkeys(site.kind for site in sites))


def _mark_loaded(model: nn.Module, like: nn.Module) -> None:
    """Mark the parameters that came from a file, as in ``like``: a deep copy loses the marks."""
    theirs = named_tensors(like)
    for name, tensor in named_tensors(model).items():
        if getattr(theirs.get(name), LOADED, False):
            setattr(tensor, LOADED, True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which a model is in eval mode; each module gets its own mode back."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
