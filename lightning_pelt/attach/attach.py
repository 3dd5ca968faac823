"""``attach``: puts a plan on a model; ``detach`` takes it off again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import StandIns, default_device, examine
from lightning_pelt.attach import state_dict_hooks
from lightning_pelt.attach.attachment import (
    ATTACHMENT,
    NORM,
    Attachment,
    find_attachment,
    models_in,
)
from lightning_pelt.attach.awaiting import Awaited
from lightning_pelt.attach.base_samples import BaseSamples
from lightning_pelt.attach.builder import CHILD, Builder, MethodCount
from lightning_pelt.attach.dequantising import keep_layout
from lightning_pelt.attach.fingerprint import fingerprint
from lightning_pelt.attach.freezing import freeze, head_names, named_tensors
from lightning_pelt.attach.half_precision import keep_in_fp32
from lightning_pelt.attach.names import plain, saves_otherwise, tensor_names
from lightning_pelt.attach.saving import PushToHub, SavePretrained
from lightning_pelt.attach.sharded import refuse_shards
from lightning_pelt.attach.state_dict_hooks import SEVERAL
from lightning_pelt.attach.surroundings import surround
from lightning_pelt.attach.trial import build_and_try
from lightning_pelt.attach.without_values import refuse_around
from lightning_pelt.plans.left_out import log_left_out
from lightning_pelt.plans.plan import Plan
from lightning_pelt.plans.require import require_plan


def find_model(module: nn.Module, path: str | None = None) -> PreTrainedModel:
    """The outermost Hugging Face model inside ``module``, or the one at ``path``.

    An attached model stands for the one around it.

    Raises:
        ValueError: ``module`` is not a module, there is no such model, or there are several and
            ``path`` is None.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"model is {module!r}, expected a Hugging Face model or a module that holds one: load "
            "it first, e.g. AutoModelForSequenceClassification.from_pretrained(name)"
        )
    outermost = models_in(module)
    listed = ", ".join(name or "(the module itself)" for name in outermost) or "none"
    if path is not None:
        wanted = plain(f"{path}.")
        for name, model in module.named_modules():
            if isinstance(model, PreTrainedModel) and plain(f"{name}.") == wanted:  # compiled too
                return model
        raise ValueError(f"there is no Hugging Face model at {path!r}: there is {listed}")
    if not outermost:
        raise ValueError(
            f"{type(module).__name__} holds no Hugging Face model (transformers.PreTrainedModel): "
            "assign one to an attribute in __init__, setup or configure_model. A list or a dict of "
            "models has to be an nn.ModuleList or nn.ModuleDict"
        )
    if len(outermost) != 1:
        raise ValueError(
            f"{type(module).__name__} holds {len(outermost)} Hugging Face models ({listed}), and "
            f"one is needed: name it, e.g. PELTCallback(plan, path={next(iter(outermost))!r})"
        )
    return next(iter(outermost.values()))


def attach(
    model: nn.Module,
    plan: Plan,
    *,
    seed: int = 0,
    path: str | None = None,
    head: Sequence[str] | None = None,
    example_inputs: dict[str, Tensor] | None = None,
) -> Attachment:
    """Freeze a Hugging Face model and attach the submodules of ``plan`` to it.

    The model is changed in place, and its base parameters keep their names. New heads, which are
    outside the base and not tied to its vocabulary, stay trainable. Attaching an equal plan again
    does nothing.

    A model on the meta device gets submodules with values, the same as a loaded one. Its base is
    loaded afterwards, ``model.load_state_dict(state, assign=True)``, or first
    ``model.to_empty(device=...)`` and then ``model.load_state_dict(state)``; the state may come in
    several parts, with ``strict=False``. See :meth:`Attachment.materialise` for other ways.

    Args:
        model: a Hugging Face model, or a module that holds one.
        plan: what goes where.
        seed: of the new weights. The global random state does not change, and all processes of a
            run get the same weights.
        path: of the model inside ``model``, if there are several. A Hugging Face model around it,
            such as that of a vision-language model, is frozen too, except its new head.
        head: paths of modules of the Hugging Face model that are trained as its head. By default
            everything outside the base, except a pretrained vocabulary projection, and everything
            that came from no pretrained file.
        example_inputs: keyword arguments of the Hugging Face model, such as a small batch, for
            models that need other inputs than a few words, an image or a short sound.

    Raises:
        ValueError: the plan does not fit the model, the model with it fails on the example inputs,
            another plan is attached, the model is sharded, or a method starts from weights of the
            base that have no values yet. The model is then as it was.

    Example:
        >>> from lightning_pelt import UniPELT, attach, detach
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> attachment = attach(model, UniPELT())
        >>> sorted(attachment.submodules)
        ['adapter', 'lora', 'prefix']
        >>> detach(model)
    """
    plan = require_plan(plan)
    outer, model = model, find_model(model, path)
    attached: Attachment | None = model.__dict__.get(ATTACHMENT)
    if SEVERAL in model.__dict__:
        model.__dict__[SEVERAL].refuse_unnamed(attached, plan)
    if attached is not None:
        if attached.plan == plan:
            _refuse_other_head(attached, head)
            _match_names_in(outer, attached)
            surround(outer, attached)
            return attached
        raise ValueError(
            f"the model has another plan already: {attached.plan}, expected {plan}. Call "
            "`detach(model)` first, or put both into one Plan."
        )
    refuse_around(outer, model)
    refuse_shards(model)
    attachment = _attach(model, plan, seed=seed, head=head, example_inputs=example_inputs)
    _match_names_in(outer, attachment)
    surround(outer, attachment)
    return attachment


def _attach(
    model: PreTrainedModel,
    plan: Plan,
    *,
    seed: int,
    head: Sequence[str] | None,
    example_inputs: dict[str, Tensor] | None,
) -> Attachment:
    """:func:`attach` for a model without a plan."""
    awaited = Awaited.of(model, seed)
    keep_layout(model)
    stand_ins = StandIns(model)
    anatomy = examine(model, example_inputs, stand_ins=stand_ins)
    placed = plan.place(anatomy)
    log_left_out(plan, anatomy, placed)
    frozen = freeze(model, plan, anatomy, head)
    base = frozenset() if plan.train_base else frozenset(_names(model)) - frozen.saved
    tensors = {name: t for name, t in named_tensors(model).items() if name in base}
    frozen.samples = BaseSamples.of(tensors)
    try:
        # Built on the CPU, by its generator: torch.manual_seed would seed those of all devices.
        with torch.random.fork_rng(devices=[]), default_device(torch.device("cpu")):
            built = build_and_try(
                model,
                plan,
                lambda: Builder(model, anatomy, seed).build(placed),
                example_inputs,
                stand_ins=stand_ins,
            )
    except BaseException:
        frozen.restore(model)
        raise
    norm = {NORM: MethodCount(frozen.norm_size, frozen.norm_size, 0)} if frozen.norms else {}
    attachment = Attachment(
        model,
        plan,
        anatomy,
        built.submodules,
        built.gates,
        norm | built.counts,
        attached=frozenset(_names(model)) - base,
        base=base,
        frozen=frozen,
        undo=built.undo,
        recorded=fingerprint(model.config, tensors),
        awaited=awaited,
    )
    _install(attachment)
    return attachment


def _refuse_other_head(attached: Attachment, head: Sequence[str] | None) -> None:
    """Raise if other modules are to be trained as the head than those that are.

    Raises:
        ValueError: the message names both heads.
    """
    if head is None:
        return
    names = {plain(name) for name in head_names(attached.model, head)}
    asked = {name for name in names if CHILD not in name.split(".")}
    if asked != {plain(name) for name in attached.head}:
        raise ValueError(
            f"the model is attached with the head {sorted(attached.head)}, and head={list(head)} "
            f"is {sorted(asked)}. Call `detach(model)` first"
        )


def _match_names_in(outer: nn.Module, attachment: Attachment) -> None:
    known = [c.outer for c in attachment.undo if isinstance(c, state_dict_hooks.Matching)]
    if not any(module is outer for module in [attachment.model, *known]):
        attachment.undo.append(state_dict_hooks.Matching(outer))


def _install(attachment: Attachment) -> None:
    """Make the model know its attachment, and save and compute with it."""
    model, undo = attachment.model, attachment.undo
    saving = {"save_pretrained": SavePretrained(model), "push_to_hub": PushToHub(model)}
    for name, value in {ATTACHMENT: attachment, **saving}.items():
        undo.append(_Attribute(model, name, value))
    otherwise = saves_otherwise(model)
    undo += state_dict_hooks.install(model)
    own = [n for n, p in model.named_parameters() if p.requires_grad and CHILD not in n.split(".")]
    undo += keep_in_fp32(model, own)
    if otherwise:
        try:
            state_dict_hooks.refuse_unsaved(model, attachment.owned)
        except ValueError:
            attachment.detach()
            raise


def _names(model: nn.Module) -> set[str]:
    """The names of everything that a state dict of ``model`` may hold, without wrappers."""
    names = tensor_names(model)
    if saves_otherwise(model):
        names |= model.state_dict().keys()
    return {plain(name) for name in names}


def detach(model: nn.Module) -> None:
    """Undo :func:`attach`.

    Raises:
        ValueError: nothing is attached, or the model has several adapters.
    """
    attachment = find_attachment(model)
    if attachment is None:
        raise ValueError(f"nothing is attached to {type(model).__name__}")
    attachment.detach()


class _Attribute:
    """Sets an attribute of a module, and removes it later."""

    def __init__(self, module: nn.Module, name: str, value: Any) -> None:
        self.module, self.name = module, name
        module.__dict__[name] = value

    def remove(self) -> None:
        self.module.__dict__.pop(self.name, None)
