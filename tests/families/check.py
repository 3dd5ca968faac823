"""What is checked of a method on a family: gradients, padding, causality, cache, detaching."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from families.family import Family
from families.place import describe
from lightning_pelt import Adapter, LoRA, Plan, Prefix, UniPELT, attach
from lightning_pelt.anatomy import examine
from lightning_pelt.anatomy.dummy_inputs import base_of, dummy_inputs, on
from lightning_pelt.attach import CHILD, Attachment
from lightning_pelt.testing import awaken, hook_counts

METHODS = ("LoRA", "Adapter", "Prefix", "UniPELT")
WITHOUT_PREFIX = (
    "UniPELT without a prefix"  # of families whose only reason against it is the prefix
)
PLANS: dict[str, Callable[[], Plan]] = {
    "LoRA": lambda: Plan.uniform(LoRA()),
    "Adapter": lambda: Plan.uniform(_adapter()),
    "Prefix": lambda: Plan.uniform(Prefix(length=4, mlp=16)),
    "UniPELT": lambda: UniPELT([_adapter(), Prefix(length=4, mlp=16), LoRA()]),
    WITHOUT_PREFIX: lambda: UniPELT([_adapter(), LoRA()]),
}
CLOSE = 2e-4  # of outputs of the same tokens in other shapes, times the largest output


def _adapter() -> Adapter:
    return Adapter(reduction_factor=2, activation="gelu")


@dataclass(frozen=True)
class Verdict:
    """Whether a family takes a method; if not, the package's reason.

    Attributes:
        examples: whether it takes the method with ``example_inputs`` alone.
    """

    takes: bool
    reason: str = ""
    examples: bool = False


def place_of(family: Family) -> str:
    """The places of the family's sublayers; empty if it is refused."""
    model = family.build()
    try:
        return describe(_with_or_without_inputs(family, model, examine)[0])
    except ValueError:
        return ""


def _with_or_without_inputs(
    family: Family, model: PreTrainedModel, call: Callable[..., Any]
) -> tuple[Any, bool]:
    """``call(model, inputs)`` on the package's own inputs, or where they do not do, the family's.

    And whether it was the family's: also where parts of the model do not run on the others.
    """
    try:
        result = call(model, None)
    except ValueError as error:
        if family.inputs is None or "example_inputs" not in str(error):
            raise
        return call(model, family.inputs(model)), True
    idle = result.anatomy.idle if isinstance(result, Attachment) else result.idle
    if not idle or family.inputs is None:
        return result, False
    if isinstance(result, Attachment):
        result.detach()
    return call(model, family.inputs(model)), True


def judge(family: Family, method: str) -> Verdict:
    """Attach ``method`` to the family's model, and check all that it has to hold there.

    Raises:
        AssertionError: the method attaches and does not hold what it should.
    """
    model, plan = family.build(), PLANS[method]()
    with suppress(Exception):  # transformers adds hooks in the first forward of some
        _run(model, _inputs(family, model))
    before = _everything(model)
    try:
        attachment, examples = _with_or_without_inputs(
            family, model, lambda model, given: attach(model, plan, example_inputs=given)
        )
    except ValueError as error:
        assert _everything(model) == before, "a refused model is not as it was"
        return Verdict(False, str(error))
    attachment.detach()
    inputs = _inputs(family, model)
    base, reached = _run(model, inputs), _reached(model, inputs)
    properties = {name: check(model, inputs) for name, check in PROPERTIES.items()}
    attachment = attach(model, plan, example_inputs=family.inputs(model) if examples else None)
    awaken(attachment)
    changed = _run(model, inputs)
    assert (changed - base).abs().max() > 2e-6 * base.abs().max(), "the method has no effect"
    for name, check in PROPERTIES.items():
        assert not properties[name] or check(model, inputs), f"{name} does not hold"
    _check_gradients(attachment, inputs, reached)
    attachment.detach()
    after = _everything(model)
    assert after == before, "a detached model is not as it was"
    assert torch.equal(_run(model, inputs), base), "a detached model computes something else"
    return Verdict(True, examples=examples)


def judge_all(family: Family) -> dict[str, Verdict]:
    """The verdict on every method, and on UniPELT without a prefix if the prefix is against it.

    Raises:
        AssertionError: as :func:`judge`.
    """
    found = {method: judge(family, method) for method in METHODS}
    if [name for name, each in found.items() if not each.takes] == ["Prefix", "UniPELT"]:
        found[WITHOUT_PREFIX] = judge(family, WITHOUT_PREFIX)
    return found


def _inputs(family: Family, model: PreTrainedModel) -> dict[str, Any]:
    """The family's inputs, or the package's own with more words."""
    if family.inputs is not None:
        return on(model, family.inputs(model))
    inputs = dict(dummy_inputs(base_of(model)))
    if inputs.keys() <= {"input_ids", "decoder_input_ids"}:
        words = torch.tensor([[5, 17, 40, 9, 31, 22, 60, 14]])
        inputs = dict.fromkeys(inputs, words)
    return inputs


def output(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """The first floating-point tensor that a forward returns, in a fixed order of names."""
    result = model(**inputs)
    if isinstance(result, Tensor):
        return result
    named = dict(result) if hasattr(result, "keys") else dict(enumerate(result))
    for name in ("logits", "last_hidden_state"):
        if isinstance(named.get(name), Tensor):
            return named[name]
    return next(tensor for tensor in _tensors(list(named.values())))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, (tuple, list, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _run(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    torch.manual_seed(0)  # some families draw numbers in eval mode too
    with torch.no_grad():
        return output(model, inputs).clone()


def _close(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or not left.numel():
        return False
    return bool((left - right).abs().max() <= CLOSE * max(1.0, float(right.abs().max())))


def _words(inputs: dict[str, Any]) -> str | None:
    """The name of the words that the output follows."""
    names = ("decoder_input_ids", "input_ids")
    return next((name for name in names if name in inputs), None)


def _ignores_padding(model: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    """A row with padding gives its real tokens what it gives without padding."""
    accepted = inspect.signature(base_of(model).forward).parameters
    if "input_ids" not in inputs or "attention_mask" not in accepted or len(inputs) > 2:
        return False
    ids = inputs["input_ids"]
    padded = torch.cat([ids, torch.full_like(ids[:, :3], 1)], 1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(ids[:, :3])], 1)
    try:
        short = _run(model, {**inputs, "attention_mask": torch.ones_like(ids)})
        long = _run(model, {**inputs, "input_ids": padded, "attention_mask": mask})
    except Exception:
        return False
    return _close(long[:, : short.shape[1]], short) if short.dim() > 1 else False


def _hides_the_future(model: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    """Another last word does not change the output of earlier words."""
    name = _words(inputs)
    if name is None or inputs[name].dim() != 2:
        return False
    other = inputs[name].clone()
    other[:, -1] = other[:, -1] - 1
    try:
        first, second = _run(model, inputs), _run(model, {**inputs, name: other})
    except Exception:
        return False
    if first.dim() != 3 or first.shape[1] != other.shape[1]:
        return False
    return _close(first[:, :-1], second[:, :-1]) and not _close(first[:, -1], second[:, -1])


def _continues_from_cache(model: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    """The last word after a cache of the earlier ones gives what the whole row gives."""
    name = _words(inputs)
    if name is None or inputs[name].dim() != 2 or len(inputs) > 2:
        return False
    ids = inputs[name]
    try:
        with torch.no_grad():
            whole = output(model, {**inputs, "use_cache": False})
            first = model(**{**inputs, name: ids[:, :-1]}, use_cache=True)
            given = {**inputs, name: ids[:, -1:], "past_key_values": first["past_key_values"]}
            last = output(model, given)
    except Exception:
        return False
    return _close(last[:, -1], whole[:, -1]) if last.dim() == 3 else False


def _keeps_rows_apart(model: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    """Another second row does not change the output of the first."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    if len(tensors) < len(inputs) or any(len(value) != 1 for value in tensors.values()):
        return False
    other = {name: value.flip(-1) for name, value in tensors.items()}
    try:
        same = _run(model, {n: torch.cat([v, v]) for n, v in tensors.items()})
        mixed = _run(model, {n: torch.cat([v, other[n]]) for n, v in tensors.items()})
    except Exception:
        return False
    return len(same) == 2 and _close(mixed[:1], same[:1])


PROPERTIES: dict[str, Callable[[PreTrainedModel, dict[str, Any]], bool]] = {
    "padding": _ignores_padding,
    "causality": _hides_the_future,
    "cache": _continues_from_cache,
    "rows": _keeps_rows_apart,
}


def _loss(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """A number that every output of a forward changes."""
    torch.manual_seed(0)
    result = model(**inputs)
    values = list(result.values()) if isinstance(result, Mapping) else result
    finite = [torch.nan_to_num(tensor, 0.0, 0.0, 0.0) for tensor in _tensors(values)]
    return torch.stack([tensor.square().sum() for tensor in finite if tensor.requires_grad]).sum()


def _reached(model: PreTrainedModel, inputs: dict[str, Any]) -> set[str]:
    """Names of the parameters of the untouched model that get a gradient when all may."""
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    _loss(model, inputs).backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(before[name])
        parameter.grad = None
    return reached


def _check_gradients(attachment: Attachment, inputs: dict[str, Any], reached: set[str]) -> None:
    """Every trained tensor gets a gradient that is finite and not zero; the base gets none.

    Except where the weights of the base beside it get none either: the values of the first block
    of DETR are zeros.
    """
    model = attachment.model
    _loss(model, inputs).backward()
    trained = {n: p for n, p in model.named_parameters() if n in attachment.owned}
    without = [n for n, p in trained.items() if p.grad is None or not p.grad.any()]
    without = [name for name in without if _host_is_reached(model, name, reached)]
    assert trained, "nothing is trained"
    assert not without, f"no gradient reaches {without[:4]} ({len(without)} of {len(trained)})"
    endless = [n for n, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()]
    assert not endless, f"gradients of {endless[:4]} are not finite"
    for parameter in model.parameters():
        parameter.grad = None


def _host_is_reached(model: PreTrainedModel, name: str, reached: set[str]) -> bool:
    """Whether all weights of the base at and below the module of a tensor get a gradient."""
    host, _, inside = name.partition(f".{CHILD}.")
    if not inside:
        return name in reached
    beside = [
        n
        for n, p in model.named_parameters()
        if n.startswith(f"{host}.") and CHILD not in n.split(".") and p.dim() > 1
    ]
    return all(n in reached for n in beside)


def _everything(model: PreTrainedModel) -> tuple[object, ...]:
    requires = {name: p.requires_grad for name, p in model.named_parameters()}
    return list(model.state_dict()), requires, hook_counts(model)
