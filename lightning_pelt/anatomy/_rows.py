"""Rows: in which stacks a gate cannot pool over the tokens of a row of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy.dummy_inputs import base_of, tried_inputs, undisturbed
from lightning_pelt.anatomy.sites import Site, Stack


def without_rows(
    recorded: RecordedModel,
    stacks: Sequence[Stack],
    sites: Sequence[Site],
    inputs: dict[str, Tensor] | None,
) -> frozenset[str]:
    """Names of the stacks whose tensors do not have the rows of the batch first.

    They are (T, B, d), as in Longformer, (N, d), as the patches of Qwen2-VL, or hold all images of
    a batch behind each other in one row, as in Pixtral. Windows of an image are rows.

    Args:
        recorded: the model.
        stacks: of the model.
        sites: of its sublayers.
        inputs: its example inputs; None for the dummy ones.
    """
    found = {s.stack for s in sites if _lacks_rows(recorded, s)}
    return frozenset(found | set(_packed(recorded, stacks, inputs)))


def _lacks_rows(recorded: RecordedModel, site: Site) -> bool:
    shape = recorded.tensor(site.source).shape
    if len(shape) == 2:  # a feed-forward may flatten its rows
        return site.kind.endswith("attention.query")
    return len(shape) == 3 and shape[0] != recorded.batch == shape[1]


def _packed(
    recorded: RecordedModel, stacks: Sequence[Stack], inputs: dict[str, Tensor] | None
) -> list[str]:
    """The stacks of a model of images that have one row for two images."""
    model = recorded.model
    whole = recorded.first.get(base_of(model))
    read = () if whole is None or inputs is not None else whole.inputs
    if not any("pixel" in str(name) for name in read):
        return []
    with torch.device("cpu"):  # trainers set another default device
        runner, given = next(iter(tried_inputs(model, None)), (model, {}))
    if len(next(iter(given.values()), ())) < 2:
        return []
    blocks = {s.name: model.get_submodule(s.blocks[0]) for s in stacks}
    seen: dict[str, int] = {}
    handles = [
        block.register_forward_pre_hook(partial(_count, seen, name), with_kwargs=True)
        for name, block in blocks.items()
    ]
    try:
        with torch.no_grad(), undisturbed(model):
            runner(**given)
    except Exception:
        return []  # such as a model of one image at a time
    finally:
        for handle in handles:
            handle.remove()
    before = {
        name: _rows(recorded.first[b].inputs) for name, b in blocks.items() if b in recorded.first
    }
    return [name for name, count in seen.items() if before.get(name) == count]


def _count(seen: dict[str, int], name: str, module: nn.Module, args: tuple, kwargs: Any) -> None:
    tensors = dict(enumerate(args)) | kwargs
    seen.setdefault(name, _rows({n: t for n, t in tensors.items() if isinstance(t, Tensor)}))


def _rows(tensors: dict[Any, Tensor]) -> int:
    return len(next(iter(tensors.values()), ()))
