"""Mixtures of experts: the module of a block that returns the mixture.

Experts are the slices of stacked weights (Mixtral), or the elements of a list or a dictionary that
stand beside each other (Switch).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Set

from torch import nn
from torch.nn.modules.conv import _ConvNd

from lightning_pelt.anatomy._graph import gradients, is_position_wise, nearest, read_by
from lightning_pelt.anatomy._norms import is_norm
from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy.calls import Call, is_linear, widths


def holds_experts(module: nn.Module, without: Set[nn.Module] = frozenset()) -> bool:
    """Whether experts are inside ``module`` and not among ``without``, as stacked weights."""
    return any(_is_stacked(inner) for inner in module.modules() if inner not in without)


def find_mixtures(
    recorded: RecordedModel, path: str, without: Set[nn.Module], width: int
) -> list[Call]:
    """The calls that return a mixture of experts, of the block at ``path``.

    Args:
        recorded: the model.
        path: of the block.
        without: the modules of the block's attentions.
        width: of the residual stream.
    """
    found: dict[nn.Module, Call] = {}
    block = recorded.at(path)
    for name, module in block.named_modules():
        stacked = _is_stacked(module)
        if module in without or not (stacked or _stand_beside(recorded, module, width)):
            continue
        whole = _whole(recorded, block, name, without, width)
        if whole is not None and (not stacked or _multiplies(recorded, module)):
            found.setdefault(whole, recorded.first[whole])
    return list(found.values())


def _is_stacked(module: nn.Module) -> bool:
    """Whether ``module`` has weights (experts, d_in, d_out); those of a convolution are not."""
    weights = module.parameters(recurse=False)
    return not isinstance(module, _ConvNd) and any(
        weight.dim() == 3 and min(weight.shape) > 1 for weight in weights
    )


def _stand_beside(recorded: RecordedModel, module: nn.Module, width: int) -> bool:
    """Whether the elements of a list or dictionary read the same tokens, or are chosen among."""
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return False
    elements = [e for e in module.children() if not isinstance(e, nn.Dropout)]  # NLLB-MoE
    if len(elements) < 2 or len({type(element) for element in elements}) > 1:
        return False
    linear = [[widths(m) for m in e.modules() if is_linear(m)] for e in elements]
    if any(len(w) < 2 or {w[0][0], w[-1][1]} != {width} for w in linear):
        return False
    called = [element for element in elements if element in recorded.first]
    if len(called) < len(elements):
        return True
    calls = [recorded.first[m] for m in elements[0].modules() if m in recorded.first]
    return not nearest(read_by(recorded.first[elements[1]]), [c for c in calls if c.linear])


def _whole(
    recorded: RecordedModel,
    block: nn.Module,
    name: str,
    without: Set[nn.Module],
    width: int,
) -> nn.Module | None:
    """The outermost module around the experts ``name`` that returns (..., width).

    It is inside of the sublayer, which adds the residual to a mixture of what its norm returns.
    """
    best, outer = None, name
    while outer:
        module = block.get_submodule(outer)
        call = recorded.first.get(module)
        if not without.isdisjoint(module.modules()) or (call and _is_sublayer(recorded, call)):
            break
        if call is not None and _maps(call, width):
            best = module
        outer = outer.rpartition(".")[0]
    return best


def _is_sublayer(recorded: RecordedModel, call: Call) -> bool:
    """Whether a norm inside the module called reads what the module reads."""
    norms = [recorded.first.get(inner) for inner in call.module.modules() if is_norm(inner)]
    read = [read_by(norm) for norm in norms if norm is not None and norm.inputs]
    return any(tensor is given for tensor in read for given in call.inputs.values())


def _multiplies(recorded: RecordedModel, module: nn.Module) -> bool:
    """Whether a module computes each row from one of its input, and not by linear layers alone.

    A Mamba mixer with stacked weights does not, nor do XLNet's attentions.
    """
    call = recorded.first.get(module)
    if call is None or call.output is None or not call.inputs:
        return True
    read, output = read_by(call), call.output
    if gradients(output, [read])[0] is None:
        return False
    return output[..., 0].numel() != read[..., 0].numel() or is_position_wise(output, read)


def _maps(call: Call, width: int) -> bool:
    """Whether a call maps (..., width) to (..., width)."""
    if call.output is None or not call.inputs:
        return False
    return call.output.shape[-1] == width == read_by(call).shape[-1]


def parameters_of(calls: Collection[Call]) -> int:
    """Number of parameters of the modules called."""
    return sum(parameter.numel() for call in calls for parameter in call.module.parameters())


def modules_of(calls: Collection[Call]) -> Iterator[nn.Module]:
    """All modules at and below the modules called."""
    for call in calls:
        yield from call.module.modules()
