"""``Attachment``: what is known of a model with a plan on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt import ownership
from lightning_pelt.anatomy import Anatomy
from lightning_pelt.gate import GateView
from lightning_pelt.plan import Plan
from lightning_pelt.submodule import Removable, Submodule

CHILD = "pelt"  # the name under which every host keeps its submodules
NORM = "norm"  # the name under which trained norms of the base are counted and grouped


@dataclass(frozen=True)
class MethodCount:
    """Numbers of parameters of one method: in training, deployed, and of its gates."""

    trained: int
    deployed: int
    gates: int


class Attachment:
    """A model with a plan attached to it.

    Attributes:
        model: the Hugging Face model.
        plan: what was attached.
        anatomy: the sites that were found in the model.
        owned: state-dict names that belong to us: submodules, gates and head.
        base: state-dict names of the frozen base.
        gates: every gate by name, ``07/lora.query``.
        counts: numbers of parameters by method name.
        head: names of the head's parameters.
        norms: names of the parameters of the base's norms, where the plan trains them.
        backbone_size, head_size: numbers of parameters of the base and of the head.
    """

    def __init__(self, model: PreTrainedModel, plan: Plan, anatomy: Anatomy) -> None:
        self.model, self.plan, self.anatomy = model, plan, anatomy
        self.gates: dict[str, GateView] = {}
        self.counts: dict[str, MethodCount] = {}
        self.owned: frozenset[str] = frozenset()
        self.base: frozenset[str] = frozenset()
        self.backbone_size = 0
        self.head_size = 0
        self.submodules: dict[str, list[Submodule]] = {}
        self.head: frozenset[str] = frozenset()
        self.norms: frozenset[str] = frozenset()
        self._handles: list[Removable] = []
        self._hosts: list[nn.Module] = []
        self._trained_before: dict[str, bool] = {}
        self._norms_before: dict[str, Tensor] = {}

    def parameters_of(self, method: str) -> list[nn.Parameter]:
        """The weights of a method and of its gates; trained norms are the method ``norm``."""
        if method == NORM:
            return self.parameter_groups().get(NORM, [])
        gates = [view for view in self.gates.values() if view.method == method]
        return self._weights(method) + [p for view in gates for p in view.parameters()]

    def _weights(self, method: str) -> list[nn.Parameter]:
        return list(
            dict.fromkeys(
                p for module in self.submodules.get(method, ()) for p in module.parameters()
            )
        )

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by group: one per method, then gate, norm, head and base."""
        groups = {method: self._weights(method) for method in self.submodules}
        gates = [p for view in self.gates.values() for p in view.parameters()]
        groups["gate"] = list(dict.fromkeys(gates))
        # By name: FSDP2 replaces parameters, and so does a move to another dtype.
        named = [(ownership.plain(n), p) for n, p in self.model.named_parameters()]
        groups[NORM] = [parameter for name, parameter in named if name in self.norms]
        groups["head"] = [parameter for name, parameter in named if name in self.head]
        if self.plan.train_base:
            known = {p for group in groups.values() for p in group}
            groups["base"] = [parameter for _, parameter in named if parameter not in known]
        return {name: group for name, group in groups.items() if group}

    def train(self, *, base_dropout: bool = True) -> None:
        """Train mode for submodules and head; for the base too, where its dropout is wanted.

        ``from_pretrained`` gives a model in eval mode, and Lightning leaves it there.
        """
        self.model.train(base_dropout or self.plan.train_base)
        for modules in self.submodules.values():
            for module in modules:
                module.train()
        for name in self.head:
            self.model.get_submodule(name.rpartition(".")[0]).train()

    def detach(self) -> None:
        """Take everything off: hooks, submodules, the freezing, and what norms have learnt."""
        for handle in self._handles:
            handle.remove()
        for host in self._hosts:
            if CHILD in host._modules:
                delattr(host, CHILD)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trained_before.get(name, True))
            if name in self._norms_before:
                with torch.no_grad():
                    parameter.copy_(self._norms_before[name])
        for name in ("pelt_attachment", "save_pretrained"):
            self.model.__dict__.pop(name, None)

    def __repr__(self) -> str:
        trained = sum(count.trained + count.gates for count in self.counts.values())
        return f"Attachment({self.plan}, {trained:,} parameters, {len(self.gates)} gates)"


def find_attachment(module: nn.Module) -> Attachment | None:
    """The attachment of the model inside ``module``, if there is one."""
    for child in module.modules():
        if "pelt_attachment" in child.__dict__:
            return child.__dict__["pelt_attachment"]
    return None
