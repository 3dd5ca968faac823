"""The rows of a batch by their content: which examples they are, and which tokens are real."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lightning_pelt.anatomy.dummy_inputs.candidates import main_inputs

MASK = "attention_mask"
DIGEST = 16  # bytes
# Arguments that change what a forward returns, and not what its blocks compute.
FREE = ("use_cache", "return_dict")


class Rows(NamedTuple):
    """The rows of a batch.

    Attributes:
        digests: of the content of each row: its real tokens, their positions, types, and so on.
            Equal digests mean equal hidden states of the real tokens.
        kept: of each row the numbers of its real tokens, (n,) int64; None for all tokens.
        tokens: number of tokens of the padded batch; None if the rows are not masked.
    """

    digests: list[bytes]
    kept: list[np.ndarray | None]
    tokens: int | None


def argument_names(module: nn.Module) -> list[str]:
    """The names of the arguments of a module's forward, in order."""
    return [*inspect.signature(module.forward).parameters]


def named_inputs(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name, without those that are None.

    Args:
        names: of the arguments, in order.
        args: of the call, by position.
        kwargs: of the call, by name.
    """
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {name: value for name, value in given.items() if value is not None}


def example_rows(
    module: nn.Module, inputs: Mapping[str, Any], *, padding: bool = False
) -> Rows | None:
    """The rows of a batch, or None where a row does not tell what its hidden states are.

    That is so for calls that return the hidden states or attentions of all blocks, or use a cache
    of keys and values.

    Args:
        module: the base of a model.
        inputs: of a call of it, by name.
        padding: whether padding counts as content.

    Example:
        >>> from lightning_pelt.testing import tiny_bert
        >>> ids, mask = torch.tensor([[5, 6, 0], [5, 6, 7]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
        >>> base = tiny_bert().bert
        >>> rows = example_rows(base, {"input_ids": ids, "attention_mask": mask})
        >>> short = {"input_ids": ids[:1, :2], "attention_mask": mask[:1, :2]}
        >>> rows.digests[0] == example_rows(base, short).digests[0]
        True
    """
    main = next((inputs[n] for n in main_inputs(module) if isinstance(inputs.get(n), Tensor)), None)
    if main is None or main.dim() < 2 or not len(main) or not _is_plain(module, inputs):
        return None
    count = len(main)
    tensors = {n: t for n, t in inputs.items() if isinstance(t, Tensor)}
    if any(t.dim() == 0 or len(t) not in (1, count) for t in tensors.values()):
        return None
    mask = tensors.get(MASK)
    tokens: int | None = None
    kept: list[np.ndarray | None] = [None] * count
    if mask is not None and mask.shape == main.shape:
        real = mask.detach().cpu().numpy()
        if np.isin(real, (0, 1)).all():
            tokens = int(main.shape[1])
            if not padding:
                padded = [row.any() and not row.all() for row in real]
                kept = [np.flatnonzero(r) if p else None for r, p in zip(real, padded, strict=True)]
    options = {n: v for n, v in inputs.items() if n not in tensors and n not in FREE}
    start = repr(sorted(options.items())).encode()
    columns = {n: _bytes(tensors[n], count, tokens) for n in sorted(tensors)}
    digests = [_digest(start, columns, row, kept[row]) for row in range(count)]
    return Rows(digests, kept, tokens)


def chosen_rows(inputs: Mapping[str, Any], rows: Sequence[int], count: int) -> dict[str, Any]:
    """The inputs of some of ``count`` rows."""
    if len(rows) == count and [*rows] == [*range(count)]:
        return dict(inputs)
    return {
        name: value[torch.tensor(rows, device=value.device)]
        if isinstance(value, Tensor) and len(value) == count
        else value
        for name, value in inputs.items()
    }


def alone(
    inputs: Mapping[str, Any], row: int, count: int, kept: np.ndarray | None
) -> dict[str, Any]:
    """The inputs of one row of ``count``, without the padding behind its last real token."""
    one = chosen_rows(inputs, [row], count)
    if kept is None:
        return one
    tokens, end = inputs[MASK].shape[1], int(kept[-1]) + 1
    return {
        name: value[:, :end]
        if isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == tokens
        else value
        for name, value in one.items()
    }


def _is_plain(module: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether the inputs are tensors and plain values, and ask for the last states alone."""
    config = getattr(module, "config", None)
    for name in ("output_hidden_states", "output_attentions"):
        if inputs.get(name, getattr(config, name, False)):
            return False
    plain = (Tensor, bool, int, float, str)
    return all(isinstance(v, plain) for v in inputs.values()) and not inputs.get("use_cache")


def _bytes(tensor: Tensor, count: int, tokens: int | None) -> tuple[bytes, np.ndarray, bool]:
    """What tells a tensor from others of equal values, its rows as bytes, and if they have tokens.

    The bytes are (B, T, n) where the tensor has a column per token, and (B, n) otherwise.
    """
    columns = tokens is not None and tensor.dim() > 1 and tensor.shape[1] == tokens
    shape = tuple(tensor.shape[2:] if columns else tensor.shape[1:])
    flat = tensor.detach().cpu().reshape(*tensor.shape[: 2 if columns else 1], -1).contiguous()
    found = flat.view(torch.uint8).numpy()
    if len(found) != count:
        found = np.repeat(found, count, axis=0)
    return f"{tensor.dtype}{shape}".encode(), found, columns


def _digest(
    start: bytes,
    columns: Mapping[str, tuple[bytes, np.ndarray, bool]],
    row: int,
    kept: np.ndarray | None,
) -> bytes:
    found = hashlib.blake2b(start, digest_size=DIGEST)
    if kept is not None and kept[-1] + 1 != len(kept):  # not the first tokens of the row
        found.update(b"places" + kept.tobytes())
    for name, (kind, values, has_tokens) in columns.items():
        own = values[row] if kept is None or not has_tokens else values[row][kept]
        found.update(f"{name}{own.shape}".encode() + kind)
        found.update(own.tobytes())
    return found.digest()


def caches_by_default(module: nn.Module) -> bool:
    """Whether a base makes a cache of keys and values unless ``use_cache`` is False."""
    config = getattr(module, "config", None)
    return bool(getattr(config, "use_cache", False)) and "use_cache" in argument_names(module)
