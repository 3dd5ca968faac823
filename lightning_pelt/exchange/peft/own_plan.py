"""Files that ``save_peft`` wrote: their header has the plan, which is used if it fits the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_pelt.attach.attach import attach
from lightning_pelt.attach.attachment import Attachment, find_attachment
from lightning_pelt.exchange.peft.ia3 import set_vector
from lightning_pelt.exchange.peft.lora import factors_of, names_of
from lightning_pelt.exchange.peft.miss import set_matrix
from lightning_pelt.exchange.peft.names import PREFIX
from lightning_pelt.exchange.peft.tensors import PROMPT, Contents
from lightning_pelt.exchange.peft.whole_modules import Whole
from lightning_pelt.exchange.peft.writing import encode
from lightning_pelt.plans.plan import Plan, from_config

# Of the configuration: what says how the tensors are used.
DECISIVE = (
    *("peft_type", "target_modules", "feedforward_modules", "modules_to_save"),
    *("num_virtual_tokens", "num_transformer_submodules"),
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
)


def own_plan(contents: Contents) -> Plan | None:
    """The plan in the header of a file.

    None if there is none, if this version cannot build it, or if it has gates, which were folded
    into the weights.
    """
    try:
        plan = None if contents.plan is None else from_config(contents.plan)
    except ValueError:
        return None
    return None if plan is None or any(method.gate for method in plan.methods) else plan


class File(NamedTuple):
    """A file as it was read."""

    config: Mapping[str, Any]
    contents: Contents
    whole: Whole


def attach_own(
    model: nn.Module, plan: Plan, file: File, example_inputs: dict[str, Tensor] | None
) -> Attachment | None:
    """Attach the plan of a file and fill it, if it would be written as the same file again.

    Args:
        model: the base.
        plan: of :func:`own_plan`.
        file: of which it is the plan.
        example_inputs: as in :func:`lightning_pelt.attach`.

    Returns:
        None if the plan does not fit the rest of the file, for example because a field was edited;
        the model is then as it was.
    """
    before = find_attachment(model)
    try:
        attachment = attach(model, plan, head=file.whole.head, example_inputs=example_inputs)
    except ValueError:
        return None
    groups = attachment.parameter_groups().values()
    buffers = [b for module in attachment.all_submodules for b in module.buffers()]
    tensors = [*(parameter for group in groups for parameter in group), *buffers]
    values = [tensor.detach().clone() for tensor in tensors]
    if _fill(attachment, file.contents) and _is_same(attachment, file.config, file.contents):
        return attachment
    if before is None:
        attachment.detach()
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)
    return None


def _fill(attachment: Attachment, contents: Contents) -> bool:
    """Write the tensors into the submodules, in the order in which they are written to a file."""
    used: dict[str, int] = {}
    scales: dict[str, float] = {}
    for submodule in attachment.all_submodules:
        for _, part in factors_of(submodule):
            scales.setdefault(part.path, part.scale)
    try:
        for submodule in attachment.all_submodules:
            if hasattr(submodule, "P"):
                _fill_prompt(submodule, contents.prompt)
            if hasattr(submodule, "vector"):
                _fill_vector(submodule, contents.ia3)
            if hasattr(submodule, "D"):
                _fill_matrix(submodule, contents.miss)
            for key, part in list(factors_of(submodule)):
                pair = contents.lora[part.path]
                start = used.get(part.path, 0)
                used[part.path] = end = start + len(part.A)
                rows = slice(None) if part.rows is None else part.rows
                B = pair["B"][rows][:, start:end] * (scales[part.path] / part.scale)
                owner: Any = submodule
                owner.set_factors(key, pair["A"][start:end], B)
    except (KeyError, RuntimeError, ZeroDivisionError):  # other layers, or other shapes
        return False
    return True


@torch.no_grad()
def _fill_prompt(submodule: Any, prompt: Tensor | None) -> None:
    if prompt is None:
        raise KeyError("the file has no prompt")
    submodule.P.copy_(prompt)


def _fill_vector(submodule: Any, vectors: Mapping[str, Tensor]) -> None:
    rows = submodule.output_rows.rows
    values = vectors[submodule.site.path].flatten()
    set_vector(submodule, values if rows is None else values[rows])


def _fill_matrix(submodule: Any, matrices: Mapping[str, Tensor]) -> None:
    rows = submodule.output_rows.rows
    D = matrices[submodule.site.path]
    set_matrix(submodule, D if rows is None else D[:, rows])


def _is_same(attachment: Attachment, config: Mapping[str, Any], contents: Contents) -> bool:
    """Whether the attachment would be written with the same adapter as in the file."""
    try:
        again, tensors = encode(attachment)
    except ValueError:
        return False
    if any(again.get(name) != config.get(name) for name in DECISIVE):
        return False
    model = attachment.model
    given = {
        names_of(model.get_submodule(path), f"{PREFIX}{path}")[which]: tensor
        for path, pair in contents.lora.items()
        for which, tensor in pair.items()
    }
    given |= {f"{PREFIX}{path}.ia3_l": tensor for path, tensor in contents.ia3.items()}
    given |= {f"{PREFIX}{path}.miss_block": tensor for path, tensor in contents.miss.items()}
    given |= {} if contents.prompt is None else {PROMPT: contents.prompt}
    whole = {PREFIX + name for name in contents.rest}
    ours = {name: tensor for name, tensor in tensors.items() if name not in whole}
    return ours.keys() == given.keys() and all(torch.equal(t, ours[n]) for n, t in given.items())
