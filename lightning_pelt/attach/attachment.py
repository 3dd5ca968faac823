"""``Attachment``: the record of a plan on a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.attach.awaiting import Awaited, arrive, materialise
from lightning_pelt.attach.base_samples import BaseSamples
from lightning_pelt.attach.builder import MethodCount
from lightning_pelt.attach.fingerprint import fingerprint, follow
from lightning_pelt.attach.freezing import Frozen, inside, named_parameters, named_tensors
from lightning_pelt.attach.names import plain, tensor_names
from lightning_pelt.attach.state_dict_hooks import SEVERAL
from lightning_pelt.methods.gate import GateView
from lightning_pelt.methods.submodule import Removable, Submodule
from lightning_pelt.plans.plan import Plan
from lightning_pelt.utils.shards import groups_of

if TYPE_CHECKING:
    from lightning_pelt.attach.surroundings import Surroundings

NORM = "norm"  # the name under which trained norms of the base are counted and grouped
ATTACHMENT = "pelt_attachment"  # the attribute of a model that refers to its attachment


@dataclass(eq=False, repr=False)
class Attachment:
    """A model with a plan attached to it.

    Attributes:
        model: the Hugging Face model.
        plan: what was attached.
        anatomy: the sites that were found in the model.
        submodules: what was built, by method.
        gates: every gate by name, ``07/lora.query``.
        counts: numbers of parameters by method.
        attached: state-dict names of submodules, gates, head, trained norms, and what else of the
            model came from no file or moves in training.
        base: state-dict names of the frozen base.
        frozen: what was frozen, and how it was before.
        undo: what takes hooks and submodules off.
        recorded: the fingerprint of the frozen base when the plan was attached.
        surroundings: the pretrained model around this one, which is frozen too; None if there is
            none, or if it was not given to ``attach``.
        awaited: what has no values yet, where the plan was attached on the meta device.

    Example:
        >>> from lightning_pelt import LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attachment = attach(tiny_bert(), Plan.uniform(LoRA(r=2)))
        >>> attachment.counts["lora"].trained
        512
    """

    model: PreTrainedModel
    plan: Plan
    anatomy: Anatomy
    submodules: dict[str, list[Submodule]]
    gates: dict[str, GateView]
    counts: dict[str, MethodCount]
    attached: frozenset[str]
    base: frozenset[str]
    frozen: Frozen
    undo: list[Removable]
    recorded: dict[str, Any]
    surroundings: Surroundings | None = None
    awaited: Awaited = field(default_factory=Awaited)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Of the frozen base, see :mod:`lightning_pelt.attach.fingerprint`."""
        tensors, size = named_tensors(self.model), self.anatomy.parameters
        return follow(self.recorded, self.model.config, tensors, size)

    def materialise(self, device: torch.device | str | None = None) -> None:
        """Complete a model to which the plan was attached on the meta device, and move it.

        Loading the last tensor of the base with ``load_state_dict`` completes it: buffers that no
        file holds are computed, the submodules move to the device of the base, and its fingerprint
        is taken. This method does so where the base was loaded in another way, and it draws a new
        head that no file holds, from the seed of ``attach``.

        Args:
            device: of the whole model; by default everything stays where it was loaded.

        Raises:
            ValueError: the base has not been loaded; the message names a tensor.

        Example:
            >>> from transformers import BertConfig, BertModel
            >>> from lightning_pelt import LoRA, Plan, attach
            >>> config = BertConfig(num_hidden_layers=1)
            >>> state = BertModel(config).state_dict()
            >>> with torch.device("meta"):
            ...     model = BertModel(config)
            >>> attachment = attach(model, Plan.uniform(LoRA()))
            >>> model.load_state_dict(state, assign=True)
            <All keys matched successfully>
            >>> attachment.materialise("cpu")
        """
        materialise(self)
        if device is not None:
            module: nn.Module = self.model
            module.to(device)

    def arrive(self, given: Iterable[str]) -> None:
        """Note that tensors of the base were loaded, by name."""
        if self.awaited:
            arrive(self, given)

    def record(self) -> None:
        """Record the frozen base as it is now."""
        tensors = {n: t for n, t in named_tensors(self.model).items() if n in self.base}
        self.frozen.samples = BaseSamples.of(tensors)
        self.recorded = fingerprint(self.model.config, tensors)
        before = self.frozen.values_before
        self.frozen.values_before = {n: t for n, t in before.items() if not t.is_meta}
        self.frozen.remember(self.model, before)

    @property
    def owned(self) -> frozenset[str]:
        """State-dict names of all that is not the frozen base, modules added later included."""
        added = {plain(name) for name in tensor_names(self.model)} - self.base
        return self.attached | added

    @property
    def trained_base(self) -> frozenset[str]:
        """Names of tensors of the base that are trained although the plan does not train them.

        They were unfrozen after attaching, changed in another way, or loaded from such a run.
        """
        tensors = {n: t for n, t in named_tensors(self.model).items() if n in self.base}
        unfrozen = {name for name, tensor in tensors.items() if tensor.requires_grad}
        loaded = self.frozen.values_before.keys() & self.base
        samples = self.frozen.samples
        return frozenset(unfrozen | loaded | samples.changed(tensors) | samples.resized(tensors))

    def remember(self, names: Iterable[str]) -> None:
        """Record tensors of the base that are about to change; ``detach`` restores them."""
        self.frozen.remember(self.model, names)

    @property
    def head(self) -> frozenset[str]:
        """Names of the head's parameters."""
        return self.frozen.head

    @property
    def head_size(self) -> int:
        """Number of parameters of the head."""
        return self.frozen.head_size

    @property
    def norms(self) -> frozenset[str]:
        """Names of the parameters of the base's norms, where the plan trains them."""
        return self.frozen.norms

    @property
    def backbone_size(self) -> int:
        """Number of parameters of the base, and of the pretrained model around it."""
        around = 0 if self.surroundings is None else self.surroundings.size
        return self.frozen.backbone_size + around

    @property
    def all_submodules(self) -> list[Submodule]:
        """The submodules of all methods."""
        return [module for modules in self.submodules.values() for module in modules]

    def parameters_of(self, method: str) -> list[nn.Parameter]:
        """The weights of a method and of its gates; trained norms are the method ``norm``."""
        if method == NORM:
            return self.parameter_groups().get(NORM, [])
        gates = [view for view in self.gates.values() if view.method == method]
        return self._weights(method) + [p for view in gates for p in view.parameters()]

    def _weights(self, method: str) -> list[nn.Parameter]:
        modules = self.submodules.get(method, ())
        return list(dict.fromkeys(p for module in modules for p in module.parameters()))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by group: one per method, then gate, norm, head and base."""
        groups = {method: self._weights(method) for method in self.submodules}
        gates = [p for view in self.gates.values() for p in view.parameters()]
        groups["gate"] = list(dict.fromkeys(gates))
        # By name: FSDP2 replaces parameters, and so does a move to another dtype.
        named = [*named_parameters(self.model).items()]
        groups[NORM] = [parameter for name, parameter in named if name in self.norms]
        groups["head"] = [parameter for name, parameter in named if name in self.head]
        if self.plan.train_base:
            known = {p for group in groups.values() for p in group}
            groups["base"] = [parameter for _, parameter in named if parameter not in known]
        return {name: group for name, group in groups.items() if group}

    def train(self, *, base_dropout: bool = True) -> None:
        """Set submodules and head to train mode, and the base if its dropout is wanted.

        ``from_pretrained`` returns a model in eval mode, and Lightning leaves it there. Submodules
        also note the processes among which they are sharded: call this after ``fully_shard``.
        """
        self.model.train(base_dropout or self.plan.train_base)
        for module in self.all_submodules:
            module.train()
            if groups := groups_of(module.parameters()):  # none where a forward has gathered them
                module.sharded_over(groups)
        for path, module in self.model.named_modules():
            if any(plain(f"{path}.{name}") in self.head for name in module._parameters):
                module.train()
        if self.surroundings is not None:
            self.surroundings.train_head()

    def detach(self, *, keep_norms: bool = False) -> None:
        """Remove hooks and submodules, and unfreeze the base and the model around it.

        Args:
            keep_norms: leave trained norms as they are, rather than restore them.

        Raises:
            ValueError: the model has several adapters, see :meth:`refuse_others`.
        """
        several = self._several()
        if several is not None:
            several.release(self)
        if not keep_norms:
            self._warn_of_changes()
        for change in self.undo:
            change.remove()
        self.frozen.restore(self.model, values=not keep_norms)
        if self.surroundings is not None:
            self.surroundings.remove(self)

    def refuse_others(self, what: str) -> None:
        """Raise if the model has other adapters, see :class:`lightning_pelt.Adapters`.

        Args:
            what: would happen to this one, such as ``"merged"``.

        Raises:
            ValueError: the message names the others.
        """
        several = self._several()
        if several is not None:
            several.refuse_others(self, what)

    def _several(self) -> Any:
        """What the model keeps of its named adapters, if this is one of them."""
        several = self.model.__dict__.get(SEVERAL)
        return several if several is not None and several.holds(self) else None

    def _warn_of_changes(self) -> None:
        """Name what was unfrozen and trained after attaching: its first values are not known."""
        tensors = named_tensors(self.model)
        lost = sorted(self.frozen.samples.changed(tensors) - self.frozen.values_before.keys())
        if lost:
            warnings.warn(
                f"{len(lost)} tensors of the base have changed since the plan was attached, such "
                f"as {lost[0]}. detach cannot restore them: load the backbone again",
                stacklevel=3,
            )

    def __repr__(self) -> str:
        trained = sum(count.trained + count.gates for count in self.counts.values())
        return f"Attachment({self.plan}, {trained:,} parameters, {len(self.gates)} gates)"


def attachment_of(model: nn.Module) -> Attachment:
    """The attachment of the model inside ``model``.

    Raises:
        ValueError: nothing is attached.
    """
    attachment = find_attachment(model)
    if attachment is None:
        raise ValueError(
            f"nothing is attached to {type(model).__name__}: call attach(model, plan) first"
        )
    return attachment


def find_attachment(module: nn.Module) -> Attachment | None:
    """The attachment of the first model inside ``module`` that has one."""
    return next(iter(find_attachments(module).values()), None)


def models_in(module: nn.Module) -> dict[str, PreTrainedModel]:
    """The outermost Hugging Face models inside ``module``, by their paths.

    Attached models inside one of them stand for it.
    """
    models = {n: m for n, m in module.named_modules() if isinstance(m, PreTrainedModel)}
    outermost = [n for n in models if not any(n != o and inside(n, o) for o in models)]
    attached = [n for n in models if ATTACHMENT in models[n].__dict__]
    chosen = [[n for n in attached if n == o or inside(n, o)] or [o] for o in outermost]
    return {name: models[name] for names in chosen for name in names}


def find_attachments(module: nn.Module) -> dict[str, Attachment]:
    """The attachments of all models inside ``module``, by the models' paths."""
    return {
        path: child.__dict__[ATTACHMENT]
        for path, child in module.named_modules()
        if ATTACHMENT in child.__dict__
    }
