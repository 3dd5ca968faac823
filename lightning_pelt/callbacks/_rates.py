"""Learning rates of single methods, changed for the length of an optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_pelt.attach import Attachment


class LentRates:
    """Multiplies the learning rate of a method's parameter group while its optimizer steps.

    Learning-rate schedulers, checkpoints and resumed runs never see it: they look between steps.

    Args:
        factor: the factor of a method right now.
    """

    def __init__(self, factor: Callable[[str], float]) -> None:
        self._factor = factor
        self._hooks: list[RemovableHandle] = []
        self._lent: list[tuple[dict[str, Any], Any]] = []  # parameter group, its own rate

    def install(
        self, optimizers: Sequence[Optimizer], attachment: Attachment, methods: Sequence[str]
    ) -> None:
        """Look for the groups of ``methods`` and be there when their optimizers step.

        Raises:
            ValueError: a method shares its group with others, or has none.
        """
        missing = set(methods)
        for optimizer in optimizers:
            owners = owners_of(optimizer, attachment, methods)
            missing -= set(owners)
            self._hooks.append(optimizer.register_step_pre_hook(partial(self._lend, owners)))
            self._hooks.append(optimizer.register_step_post_hook(self.take_back))
        if missing:
            raise ValueError(
                f"the schedule gives {sorted(missing)} a learning-rate factor, but no optimizer "
                "has a parameter group of theirs: build the groups from "
                "attachment.parameter_groups()"
            )

    def take_back(self, *_: Any) -> None:
        """Every group has its own rate again."""
        for group, rate in self._lent:
            group["lr"] = rate
        self._lent.clear()

    def remove(self) -> None:
        """Leave the optimizers as they were, even if a step died half-way."""
        self.take_back()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _lend(self, owners: list[str], optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.take_back()
        for group, owner in zip(optimizer.param_groups, owners, strict=True):
            factor = self._factor(owner)
            if factor != 1.0:
                self._lent.append((group, group["lr"]))
                group["lr"] = group["lr"] * factor


def owners_of(optimizer: Optimizer, attachment: Attachment, methods: Sequence[str]) -> list[str]:
    """The method of each parameter group, by its name or by what it holds; "" where it is mixed."""
    groups = attachment.parameter_groups()
    members = {id(parameter): name for name in groups for parameter in groups[name]}
    owners = []
    for number, group in enumerate(optimizer.param_groups):
        inside = sorted({members.get(id(p), "") for p in group["params"]})
        if group.get("name") in groups:
            owners.append(group["name"])
        elif len(inside) == 1:
            owners.append(inside[0])
        elif mixed := [name for name in inside if name in methods]:
            kind = type(optimizer).__name__
            raise ValueError(
                f"the schedule gives {mixed} a learning-rate factor, but parameter group {number} "
                f"of {kind} holds the weights of {inside} together. Make named groups instead: "
                f"{kind}([{{'name': name, 'params': params}} for name, params in "
                "attachment.parameter_groups().items()])"
            )
        else:
            owners.append("")
    return owners
