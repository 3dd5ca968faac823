"""Plans that are a LoRA already: constant gates and mergeable methods fold exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pelt.attach import Attachment
from lightning_pelt.exchange.distillation.initial_update import Factors, best_pair
from lightning_pelt.methods.gate import GateView
from lightning_pelt.methods.submodule import Submodule

EXACT = 1e-5  # relative error of a decomposition in fp32

Where = tuple[str, tuple[int, ...] | None]


def constant(gate: GateView | None) -> float | None:
    """The value of a gate that is the same for every input; None for other gates."""
    if gate is None:
        return 1.0
    if gate.open == 0 or not gate.layer.gate.learned:
        return gate.open
    weight, bias = gate.parameters()
    return None if weight.any() else float(bias.float().sigmoid()) * gate.open


@torch.no_grad()
def constant_updates(attachment: Attachment) -> dict[Where, Tensor] | None:
    """The changes of weights that a plan amounts to, by layer and rows, (d_out, d_in) each.

    None if it is not such a change: a gate depends on the input, or a method with an open gate
    does something else, such as adding a bias or scaling a whole output.
    """
    total: dict[Where, Tensor] = {}
    for method in attachment.plan.methods:
        gates = [view for view in attachment.gates.values() if view.method == method.name]
        if gates and all(constant(view) == 0 for view in gates):
            continue
        if not method.mergeable:
            return None
        for module in attachment.submodules[method.name]:
            if not _add(total, module):
                return None
    return total


def _add(total: dict[Where, Tensor], module: Submodule) -> bool:
    """Add the updates of a submodule to ``total``; whether they are constant products with x."""
    for update in module.weight_updates():
        factor = constant(update.gate)
        if factor == 0:
            continue
        some_inputs = update.gate is not None and update.site.repeated  # such as DeBERTa's
        others = (update.scale, update.inputs, update.bias)
        if factor is None or some_inputs or any(part is not None for part in others):
            return False
        if update.delta is not None:
            delta = factor * update.delta.float()
            where = (update.path, update.site.channels)
            total[where] = total[where] + delta if where in total else delta
    return True


@torch.no_grad()
def put_updates(factors: list[Factors], updates: dict[Where, Tensor]) -> bool:
    """Write the updates into a LoRA, of a lower rank if necessary; whether they are exact."""
    left, exact = dict(updates), True
    for site in factors:
        delta = left.pop((site.path, _plain(site.rows)), None)
        if delta is None or not delta.any():
            continue
        site.put(*best_pair(delta, site.down.shape[0]))
        error = (site.up.float() @ site.down.float() - delta).norm() / delta.norm()
        exact = exact and float(error) <= EXACT
    return exact and not any(delta.any() for delta in left.values())


def _plain(rows: Tensor | None) -> tuple[int, ...] | None:
    return None if rows is None else tuple(rows.tolist())
