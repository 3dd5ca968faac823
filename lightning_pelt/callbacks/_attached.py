"""What is attached to the models of a module, seen as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from lightning_pelt.attach import Attachment, find_attachments

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    from lightning_pelt.methods.base import Method
    from lightning_pelt.methods.gate import GateView
    from lightning_pelt.methods.submodule import Submodule


class Attached:
    """The attachments of all models inside a module.

    With several models, the name of a gate starts with the path of its model:
    ``encoder.07/lora.query``. The name of a method means the methods of that name in all
    models.

    Attributes:
        by_path: the attachments, by the paths of their models.
        gates: all gates, by name.
    """

    def __init__(self, by_path: Mapping[str, Attachment]) -> None:
        self.by_path = by_path
        several = len(by_path) > 1
        self.gates: dict[str, GateView] = {
            f"{path}.{name}" if several else name: gate
            for path, attachment in by_path.items()
            for name, gate in attachment.gates.items()
        }

    @property
    def methods(self) -> list[Method]:
        """The methods of all plans."""
        return [m for attachment in self.by_path.values() for m in attachment.plan.methods]

    @property
    def submodules(self) -> list[Submodule]:
        """The submodules of all methods."""
        return [m for attachment in self.by_path.values() for m in attachment.all_submodules]

    @property
    def names(self) -> list[str]:
        """The names of all methods and parameter groups."""
        counted = [n for attachment in self.by_path.values() for n in attachment.counts]
        return list(dict.fromkeys([*counted, *self.parameter_groups()]))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trained parameters by group, those of all models together."""
        groups: dict[str, list[nn.Parameter]] = {}
        for attachment in self.by_path.values():
            for name, parameters in attachment.parameter_groups().items():
                groups.setdefault(name, []).extend(parameters)
        return groups

    def parameters_of(self, name: str) -> list[nn.Parameter]:
        """The weights of a method and of its gates, or those of another group."""
        found: list[nn.Parameter] = []
        for attachment in self.by_path.values():
            if name in attachment.counts:
                found += attachment.parameters_of(name)
            else:
                found += attachment.parameter_groups().get(name, [])
        return found


def attached_to(pl_module: LightningModule, callback: object) -> Attached:
    """What is attached to the models inside a LightningModule.

    Args:
        pl_module: the module.
        callback: named in the message.

    Raises:
        ValueError: no model inside the module has an attachment.
    """
    by_path = find_attachments(pl_module)
    if not by_path:
        raise ValueError(
            f"{type(callback).__name__} found no attached submodules in "
            f"{type(pl_module).__name__}: add PELTCallback(plan=...) to the Trainer's "
            "callbacks, or call attach(model, plan) in configure_model"
        )
    return Attached(by_path)
