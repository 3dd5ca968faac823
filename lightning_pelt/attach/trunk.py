"""The part of a model below a plan: how deep it is, and whether its output can stand in for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lightning_pelt.anatomy import undisturbed
from lightning_pelt.anatomy.calls import main_outputs
from lightning_pelt.anatomy.example_rows import Rows, alone, chosen_rows
from lightning_pelt.anatomy.trunk import Parts, Trunk, own_tensors
from lightning_pelt.attach.builder import CHILD
from lightning_pelt.utils.model_class import class_name
from lightning_pelt.utils.quantised import kinds_of
from lightning_pelt.utils.shards import is_shard

if TYPE_CHECKING:
    from lightning_pelt.attach.attachment import Attachment

OWN = "lightning_pelt.methods."
# Hooks that do not change hidden states: those of transformers collect them for a caller.
FREE_HOOKS = ("transformers.", "lightning_pelt.", "lightning.", "pytorch_lightning.")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
TRIAL_ROWS = 4


def untouched_blocks(attachment: Attachment) -> int:
    """Number of the lowest blocks in which nothing is trained, and that no method extends.

    Gates that are closed or pruned extend their blocks too: a schedule does not change the number.

    Example:
        >>> from lightning_pelt import Group, LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> untouched_blocks(attach(tiny_bert(), Plan([Group([LoRA()], blocks=[1])])))
        1
    """
    stack = attachment.anatomy.stacks[0]
    blocks = [attachment.model.get_submodule(path) for path in stack.blocks]
    touched = [number for number, block in enumerate(blocks) if _is_touched(block)]
    return touched[0] if touched else len(blocks)


def _is_touched(block: nn.Module) -> bool:
    trained = any(parameter.requires_grad for parameter in block.parameters())
    return trained or any(map(_is_extended, block.modules()))


def _is_extended(module: nn.Module) -> bool:
    """Whether a method has a submodule or a hook on a module."""
    hooked = any(_home(hook).startswith(OWN) for hook in hooks_of(module))
    return CHILD in module._modules or hooked


def hooks_of(module: nn.Module) -> list[Any]:
    """The hooks that run before or after a module's forward."""
    return [hook for kind in HOOKS for hook in getattr(module, kind).values()]


def _home(hook: Any) -> str:
    """The Python module of a hook, or of the object whose method it is."""
    owner = getattr(hook, "__self__", None)
    return str(getattr(hook if owner is None else type(owner), "__module__", ""))


def trunk_fault(attachment: Attachment, depth: int) -> str | None:
    """Why the output of the lowest blocks cannot stand in for them, before a forward; or None."""
    model, stacks = attachment.model, attachment.anatomy.stacks
    name = class_name(model)
    if attachment.plan.train_base:
        return "the plan trains the whole base"
    if depth == 0:
        return (
            "the plan reaches down to block 0, so that no block runs as in an earlier step: give "
            'it to upper blocks, such as Group(..., blocks="6-11")'
        )
    if len(stacks) > 1:
        listed = " and ".join(stack.name for stack in stacks)
        return f"{name} has several stacks of blocks ({listed}), and one is supported"
    if stacks[0].name in attachment.anatomy.rowless:
        return f"the hidden states of {name} do not have the rows of the batch first"
    parameters = [*model.parameters()]
    if any(is_shard(p) or hasattr(p, "ds_id") for p in parameters):
        return (
            "the strategy shards the model, and processes with other examples would wait for each "
            "other: use DDP"
        )
    if kinds := kinds_of(parameters):
        return f"the base is quantised, {', '.join(kinds)}"
    if any(module._compiled_call_impl is not None for module in model.modules()):
        return "the model is compiled: leave compile out"
    return None


class Trial(NamedTuple):
    """A trunk that was tried.

    Attributes:
        fault: why its output cannot stand in for it; None if it can.
        parts: what belongs to it.
        dtype: of its output.
        flows: whether its output requires a gradient, which no weight gets: transformers lets the
            embeddings require one where activations are checkpointed.
    """

    fault: str | None
    parts: Parts = Parts((), ())
    dtype: torch.dtype = torch.float32
    flows: bool = False


def try_trunk(attachment: Attachment, trunk: Trunk, inputs: Mapping[str, Any], rows: Rows) -> Trial:
    """Try on a few rows whether the output of a trunk can stand in for it.

    The modes of the model, its gates and the global random state stay as they are.

    Args:
        attachment: of the model.
        trunk: of the model, installed.
        inputs: of a call of its base, by name.
        rows: of the inputs.
    """
    count = len(rows.digests)
    sizes = [rows.tokens or 0 if kept is None else len(kept) for kept in rows.kept]
    order = np.argsort(sizes, kind="stable").tolist()
    few = sorted({order[0], order[-1], *range(min(count, TRIAL_ROWS - 2))})
    with torch.inference_mode(False), torch.no_grad(), _aside(attachment, len(few)):
        given = {n: v.clone() if isinstance(v, Tensor) else v for n, v in inputs.items()}
        some = _Some(
            chosen_rows(given, few, count),
            [rows.kept[row] for row in few],
            rows.tokens,
            few.index(order[0]),
            alone(given, order[0], count, rows.kept[order[0]]),
        )
        try:
            tried = _tried(attachment, trunk, some)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            tried = Trial(f"{type(error).__name__}: {str(error)[:200]}")
    if tried.fault is None:
        return tried
    name = class_name(attachment.model)
    return Trial(f"{name} cannot start at its block {len(trunk.blocks)}: {tried.fault}")


class _Some(NamedTuple):
    """A few rows of a batch.

    Attributes:
        inputs: of them.
        kept: numbers of their real tokens.
        tokens: of the padded batch.
        shortest: number of the row that is padded most.
        single: the inputs of that row, without the other rows and the padding behind it.
    """

    inputs: dict[str, Any]
    kept: list[np.ndarray | None]
    tokens: int | None
    shortest: int
    single: dict[str, Any]


def _tried(attachment: Attachment, trunk: Trunk, some: _Some) -> Trial:
    parts = _without_plan(trunk.parts(some.inputs), attachment)
    flow = _flow(trunk, some)
    fault = _trained_fault(parts)
    if fault is None and flow is None:
        fault = "a gradient flows to weights below that block"
    fault = fault or _hook_fault(parts)
    states = trunk.reach(some.inputs)
    if fault is None and not _has_rows(states, some):
        fault = f"its hidden states are {tuple(states.shape)}, not one for each token"
    fault = (
        fault or _row_fault(trunk, states, some) or _output_fault(attachment, trunk, states, some)
    )
    return Trial(fault, parts, states.dtype, bool(flow))


@contextmanager
def _aside(attachment: Attachment, rows: int) -> Iterator[None]:
    """Run the model on ``rows`` rows without side effects."""
    seen = {gate.layer: gate.layer.last for gate in attachment.gates.values()}
    try:
        with ExitStack() as entered:
            entered.enter_context(undisturbed(attachment.model, portable=False))
            for submodule in attachment.all_submodules:
                entered.enter_context(submodule.trial(rows))
            yield
    finally:
        for layer, last in seen.items():
            layer.last = last


def _without_plan(parts: Parts, attachment: Attachment) -> Parts:
    """The parts without submodules of the plan at the root, which run beside the first blocks."""
    named = attachment.model.named_modules()
    own = {module for name, module in named if CHILD in name.split(".")}
    return Parts(*(tuple(module for module in each if module not in own) for each in parts))


def _hook_fault(parts: Parts) -> str | None:
    """A hook of a stranger, which may change inputs or states unseen, or would not run."""
    for module in (*parts.whole, *parts.partly):
        for hook in hooks_of(module):
            if not _home(hook).startswith(FREE_HOOKS):
                return (
                    f"{type(module).__name__} has a hook of {_home(hook)}, which may change its "
                    "inputs or its hidden states"
                )
    return None


def _trained_fault(parts: Parts) -> str | None:
    for module in (*parts.whole, *parts.partly):
        if any(tensor.requires_grad for tensor in own_tensors(module).values()):
            return f"weights of {type(module).__name__}, which runs below that block, are trained"
    for module in parts.whole:
        if _is_extended(module):
            return f"the plan extends {type(module).__name__}, which runs below that block"
    return None


def _flow(trunk: Trunk, some: _Some) -> bool | None:
    """Whether the states require a gradient; None if it would reach a weight."""
    with torch.enable_grad():
        states = trunk.reach(some.inputs)
    nodes, seen = [states.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            return None
        nodes += [each for each, _ in node.next_functions]
    return states.requires_grad


def _has_rows(states: Tensor, some: _Some) -> bool:
    rows = states.dim() == 3 and len(states) == len(some.kept)
    return rows and some.tokens in (None, states.shape[1])


def _row_fault(trunk: Trunk, states: Tensor, some: _Some) -> str | None:
    """Whether the states of a row depend on the rows beside it, or on its padding."""
    together, single = states[some.shortest], trunk.reach(some.single)[0]
    kept = some.kept[some.shortest]
    if kept is not None:
        places = torch.from_numpy(kept).to(together.device)
        together, single = together[places], single[places]
    if together.shape != single.shape:
        return "the number of its hidden states depends on the other rows of a batch"
    return _difference(together, single, "the hidden states of an example depend on other rows")


def _output_fault(attachment: Attachment, trunk: Trunk, states: Tensor, some: _Some) -> str | None:
    """Whether the model returns something else if the trunk is left out; first without it."""
    for row, places in enumerate(some.kept):
        if places is not None:
            padding = torch.ones(states.shape[1], dtype=torch.bool, device=states.device)
            padding[torch.from_numpy(places)] = False
            states[row, padding] = 0
    with trunk.standing_in(states):
        without = _outputs(attachment, some.inputs)
    whole = _outputs(attachment, some.inputs)
    if [o.shape for o in without] != [o.shape for o in whole]:
        return "it returns other outputs without its first blocks"
    what = "its upper blocks read more than the hidden states of those below"
    for one, other in zip(without, whole, strict=True):
        if len(one) != len(some.kept):
            return "its outputs do not have the rows of the batch first"
        for a, b, places in zip(one, other, some.kept, strict=True):
            if places is not None and a.dim() > 1 and len(a) == states.shape[1]:
                chosen = torch.from_numpy(places).to(a.device)
                a, b = a[chosen], b[chosen]
            if fault := _difference(a, b, what):
                return fault
    return None


def _outputs(attachment: Attachment, inputs: Mapping[str, Any]) -> list[Tensor]:
    return main_outputs(attachment.model(**inputs))


def _difference(one: Tensor, other: Tensor, what: str) -> str | None:
    """A message if two tensors differ by more than rounding."""
    exact = one.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(
        one.device.type
    )
    change, size = float((one - other).abs().max()), float(other.abs().max())
    if change <= (1e-4 if exact else 0.1) * max(size, 1e-6):
        return None
    return f"{what} (they change by {change:.2g})"
