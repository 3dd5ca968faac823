"""``Attachment``: the record of a plan on a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.attach.builder import MethodCount
from lightning_pelt.attach.freezing import Frozen
from lightning_pelt.attach.state_dict_hooks import plain
from lightning_pelt.methods.gate import GateView
from lightning_pelt.methods.submodule import Removable, Submodule
from lightning_pelt.plans.plan import Plan

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
        owned: state-dict names of submodules, gates, head and trained norms.
        base: state-dict names of the frozen base.
        frozen: what was frozen, and how it was before.
        undo: what takes hooks and submodules off.

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
    owned: frozenset[str]
    base: frozenset[str]
    frozen: Frozen
    undo: Sequence[Removable]

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
        """Number of parameters of the base."""
        return self.frozen.backbone_size

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
        named = [(plain(n), p) for n, p in self.model.named_parameters()]
        groups[NORM] = [parameter for name, parameter in named if name in self.norms]
        groups["head"] = [parameter for name, parameter in named if name in self.head]
        if self.plan.train_base:
            known = {p for group in groups.values() for p in group}
            groups["base"] = [parameter for _, parameter in named if parameter not in known]
        return {name: group for name, group in groups.items() if group}

    def train(self, *, base_dropout: bool = True) -> None:
        """Set submodules and head to train mode, and the base if its dropout is wanted.

        ``from_pretrained`` returns a model in eval mode, and Lightning leaves it there.
        """
        self.model.train(base_dropout or self.plan.train_base)
        for module in self.all_submodules:
            module.train()
        for name in self.head:
            self.model.get_submodule(name.rpartition(".")[0]).train()

    def detach(self, *, keep_norms: bool = False) -> None:
        """Remove hooks and submodules, and unfreeze the base.

        Args:
            keep_norms: leave trained norms as they are, rather than restore them.
        """
        for change in self.undo:
            change.remove()
        self.frozen.restore(self.model, norms=not keep_norms)

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
    """The attachment of the model inside ``module``, if there is one."""
    for child in module.modules():
        if ATTACHMENT in child.__dict__:
            return child.__dict__[ATTACHMENT]
    return None
