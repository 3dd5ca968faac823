"""``attach``: puts a plan on a model; ``detach`` takes it off again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import examine
from lightning_pelt.attach import state_dict_hooks
from lightning_pelt.attach.attachment import ATTACHMENT, NORM, Attachment, find_attachment
from lightning_pelt.attach.builder import Builder, MethodCount
from lightning_pelt.attach.freezing import freeze, inside
from lightning_pelt.plans.plan import Plan


def find_model(module: nn.Module, path: str | None = None) -> PreTrainedModel:
    """The outermost Hugging Face model inside ``module``, or the one at ``path``.

    Raises:
        ValueError: there is no such model, or there are several and ``path`` is None.
    """
    models = {n: m for n, m in module.named_modules() if isinstance(m, PreTrainedModel)}
    outermost = [n for n in models if not any(n != o and inside(n, o) for o in models)]
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


def attach(
    model: nn.Module,
    plan: Plan,
    *,
    seed: int = 0,
    path: str | None = None,
    head: Sequence[str] | None = None,
) -> Attachment:
    """Freeze a Hugging Face model and attach the submodules of ``plan`` to it.

    The model is changed in place, and its base parameters keep their names. New heads, which are
    outside the base and not tied to its vocabulary, stay trainable. Attaching an equal plan again
    does nothing.

    Args:
        model: a Hugging Face model, or a module that holds one.
        plan: what goes where.
        seed: of the new weights. The global random state does not change, and all processes of a
            run get the same weights.
        path: of the model inside ``model``, if there are several.
        head: paths of modules of the Hugging Face model that are trained as its head. By default
            everything outside the base, except a pretrained vocabulary projection.

    Raises:
        ValueError: the plan does not fit the model, or another plan is attached.

    Example:
        >>> from lightning_pelt import UniPELT, attach, detach
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> attachment = attach(model, UniPELT())
        >>> sorted(attachment.submodules)
        ['adapter', 'lora', 'prefix']
        >>> detach(model)
    """
    model = find_model(model, path)
    attached: Attachment | None = model.__dict__.get(ATTACHMENT)
    if attached is not None:
        if attached.plan == plan:
            return attached
        raise ValueError(
            f"the model has another plan already: {attached.plan}, expected {plan}. Call "
            "`detach(model)` first, or put both into one Plan."
        )
    anatomy = examine(model)
    placed = plan.place(anatomy)
    frozen = freeze(model, plan, anatomy, head)
    base = frozenset() if plan.train_base else frozenset(model.state_dict())
    base -= frozen.head | frozen.norms
    try:
        # Built on the CPU, by its generator: torch.manual_seed would seed those of all devices.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            built = Builder(model, anatomy, seed).build(placed)
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
        owned=frozenset(model.state_dict()) - base,
        base=base,
        frozen=frozen,
        undo=built.undo,
    )
    for name, value in (
        (ATTACHMENT, attachment),
        ("save_pretrained", state_dict_hooks.refuse_save_pretrained),
    ):
        built.undo.append(_Attribute(model, name, value))
    built.undo += state_dict_hooks.install(model)
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


class _Attribute:
    """Sets an attribute of a module, and removes it later."""

    def __init__(self, module: nn.Module, name: str, value: Any) -> None:
        self.module, self.name = module, name
        module.__dict__[name] = value

    def remove(self) -> None:
        self.module.__dict__.pop(self.name, None)
