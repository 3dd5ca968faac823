"""Scale the learning rates of single methods during the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

Groups = Mapping[str, Sequence[nn.Parameter]]  # the weights of methods, by their names


class LRFactor:
    """Multiplies the learning rates of methods' parameter groups during ``optimizer.step()``.

    Between steps every group has its unscaled rate, so that learning-rate schedulers, checkpoints
    and resumed runs do not see the factor.

    Args:
        factor: returns the current factor of a method.
    """

    def __init__(self, factor: Callable[[str], float]) -> None:
        self._factor = factor
        self._hooks: list[RemovableHandle] = []
        self._scaled: list[tuple[dict[str, Any], Any]] = []  # parameter group, its unscaled rate

    def install(
        self, optimizers: Sequence[Optimizer], groups: Groups, methods: Sequence[str]
    ) -> None:
        """Find the parameter groups of ``methods`` and register the step hooks.

        Raises:
            ValueError: a method shares its parameter group with others, or has none.
        """
        missing = set(methods)
        for optimizer in optimizers:
            names = method_of_each_group(optimizer, groups, methods)
            missing -= set(names)
            self._hooks.append(optimizer.register_step_pre_hook(partial(self._scale, names)))
            self._hooks.append(optimizer.register_step_post_hook(self.restore))
        if missing:
            raise ValueError(
                f"the schedule gives {sorted(missing)} a learning-rate factor, but no optimizer "
                "has a parameter group for them: build the groups from "
                "attachment.parameter_groups()"
            )

    def restore(self, *_: Any) -> None:
        """Reset every scaled group to its unscaled rate."""
        for group, rate in self._scaled:
            group["lr"] = rate
        self._scaled.clear()

    def remove(self) -> None:
        """Restore the rates, also after a step that failed, and remove the hooks."""
        self.restore()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _scale(self, names: list[str], optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.restore()
        for group, name in zip(optimizer.param_groups, names, strict=True):
            factor = self._factor(name)
            if factor != 1.0:
                self._scaled.append((group, group["lr"]))
                group["lr"] = group["lr"] * factor


def method_of_each_group(optimizer: Optimizer, groups: Groups, methods: Sequence[str]) -> list[str]:
    """The method of each parameter group, by the group's name or its parameters; "" if mixed.

    Raises:
        ValueError: a group mixes the weights of one of ``methods`` with others.
    """
    members = {id(parameter): name for name in groups for parameter in groups[name]}
    names = []
    for number, group in enumerate(optimizer.param_groups):
        inside = sorted({members.get(id(p), "") for p in group["params"]})
        if group.get("name") in groups:
            names.append(group["name"])
        elif len(inside) == 1:
            names.append(inside[0])
        elif mixed := [name for name in inside if name in methods]:
            kind = type(optimizer).__name__
            raise ValueError(
                f"the schedule gives {mixed} a learning-rate factor, but parameter group {number} "
                f"of {kind} holds the weights of {inside} together: make named groups, "
                f"{kind}([{{'name': name, 'params': params}} for name, params in "
                "attachment.parameter_groups().items()])"
            )
        else:
            names.append("")
    return names
