"""Prefixes inside transformers' attention interface.

Every attention module gets its attention function from ``AttentionInterface.get_interface``. That
method is wrapped once per process. Modules without a prefix call the function unchanged. For
modules with one, the prefix is prepended to keys and values after position embeddings and cache.
The configured implementation keeps its name, real tokens keep their positions, the cache holds only
real tokens, and activation checkpointing recomputes the prefix like any other computation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from lightning_pelt.anatomy.attention_mask import once
from lightning_pelt.anatomy.recording import INTERFACE
from lightning_pelt.methods.submodule import Removable, refer


class PrefixSource(Protocol):
    """The prefix of an attention module, its attribute ``pelt_prefix``."""

    @property
    def closed(self) -> bool: ...

    def __call__(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]: ...

    def gate_value(self) -> Tensor | None: ...


PREFIX = "pelt_prefix"  # the attribute of an attention module that refers to its prefix

AttentionFunction = Callable[..., tuple[Tensor, Any]]


def install() -> None:
    """Wrap the interface, once per process. Without prefixes the wrapper does nothing."""
    with INTERFACE:
        if not getattr(AttentionInterface.get_interface, "knows_prefixes", False):
            _wrap()


def _wrap() -> None:
    original = AttentionInterface.get_interface

    def get_interface(self: AttentionInterface, name: str, default: Callable) -> Callable:
        return partial(_attend, original(self, name, default), name or "eager")

    get_interface.knows_prefixes = True  # type: ignore[attr-defined]
    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign, assignment]


def put(prefix: nn.Module, model: nn.Module, path: str) -> Removable:
    """Let the attention module at ``path`` of ``model`` use ``prefix`` until it is removed.

    Raises:
        ValueError: the module has a prefix.
    """
    install()
    host = model.get_submodule(path)
    if PREFIX in host.__dict__:
        raise ValueError(f"{path} has a prefix already: one attention takes one prefix")
    refer(host, **{PREFIX: prefix})
    return _Put(host)


class _Put:
    def __init__(self, host: nn.Module) -> None:
        self.host = host

    def remove(self) -> None:
        self.host.__dict__.pop(PREFIX, None)


def _attend(
    function: AttentionFunction,
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """The attention function called ``name``, with the prefix of ``module`` if it has one."""
    prefix: PrefixSource | None = module.__dict__.get(PREFIX)
    if prefix is None:
        return function(module, query, key, value, *args, **kwargs)
    mask, args = (args[0], args[1:]) if args else (kwargs.pop("attention_mask", None), ())
    if kwargs.get("cache") is not None:
        raise ValueError(
            "a prefix cannot be used with a paged cache, which is written inside the attention "
            "function and would store the prefix: generate without continuous batching"
        )
    prefix_key, prefix_value = prefix(key, value)
    gate = prefix.gate_value()
    if gate is not None and prefix.closed:
        # No columns, rather than null tokens that absorb attention. All weights stay in the graph
        # with zero gradients, since DDP waits for the gradient of every parameter.
        if torch.is_grad_enabled():
            nothing = 0.0 * (prefix_key.sum() + prefix_value.sum() + gate.sum())
            key = key + nothing.to(key.dtype)
        return function(module, query, key, value, mask, *args, **kwargs)
    length = prefix_key.shape[2]
    mask = extend_mask(
        mask, length, module=module, query=query, keys=key.shape[2], name=name, kwargs=kwargs
    )
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = F.pad(kwargs["position_bias"], (length, 0))
    if gate is None or gate.dim() < 3 or gate.shape[1] == 1:
        if gate is not None:
            gate = gate.reshape(-1, 1, 1, 1)
            prefix_key = (prefix_key * gate).to(key.dtype)
            prefix_value = (prefix_value * gate).to(value.dtype)
        key = torch.cat([prefix_key.expand(key.shape[0], -1, -1, -1), key], 2)
        value = torch.cat([prefix_value.expand(value.shape[0], -1, -1, -1), value], 2)
        return function(module, query, key, value, mask, *args, **kwargs)
    kwargs.setdefault("scaling", None)
    if kwargs["scaling"] is None:
        kwargs["scaling"] = query.shape[-1] ** -0.5
    query, key, value = _per_token(query, key, value, prefix_key, prefix_value, gate)
    output, weights = function(module, query, key, value, mask, *args, **kwargs)
    real, prefixed = output.chunk(2, -1)  # (B, T, heads, d) each
    return real + (gate[..., None] * prefixed).to(real.dtype), weights


def _per_token(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    gate: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of an attention in which every query scales the prefix by a separate gate.

    Scaling the keys directly would need separate keys g_t P_K for every query t. In twice the width
    it does not: with q' = [q, g q], real keys [k, 0] and prefix keys [0, p], the scores are q k and
    g q p in one softmax. With values [v, 0] and [0, p] the output holds both sums side by side, the
    second of which is then gated. This is exact on any kernel, causal and cached.

    Shapes: query (B, heads, T, d), key and value (B, kv, S, d), prefixes (1, kv, L, d),
    gate (B, T, 1).
    """

    def beside(prefix: Tensor, real: Tensor) -> Tensor:
        width = real.shape[-1]
        prefix = prefix.to(real.dtype).expand(real.shape[0], -1, -1, -1)
        return torch.cat([F.pad(prefix, (width, 0)), F.pad(real, (0, width))], 2)

    scaled = (query * gate[:, None]).to(query.dtype)
    return torch.cat([query, scaled], -1), beside(prefix_key, key), beside(prefix_value, value)


def extend_mask(
    mask: Any, length: int, *, module: nn.Module, query: Tensor, keys: int, name: str, kwargs: dict
) -> Any:
    """``mask`` with ``length`` columns in front that every query sees, for any kind of mask.

    Without a mask, a causal one is built for SDPA: SDPA aligns its causal triangle with the first
    key, which then belongs to the prefix, and would hide the last real tokens.
    """
    if mask is None:
        return _causal_mask(length, module, query, keys, kwargs) if "sdpa" in name else None
    if not isinstance(mask, Tensor):
        blocks = (length, keys)
        return once(mask, blocks, lambda: _extend_block_mask(mask, length, query, keys))
    visible: float | bool = True if mask.dtype == torch.bool else 0.0
    if mask.dim() == 2:  # flash attention's padding mask
        visible = 1
        if kwargs.get("sliding_window"):
            raise ValueError(
                "a sliding window in flash attention hides the prefix from late tokens: set "
                "attn_implementation='sdpa'"
            )
    return once(mask, length, lambda: F.pad(mask, (length, 0), value=visible))


def _causal_mask(
    length: int, module: nn.Module, query: Tensor, keys: int, kwargs: dict
) -> Tensor | None:
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    queries = query.shape[2]
    if not causal or queries == 1:
        return None
    # Aligned with the first key, as SDPA does it: a cache of fixed length has keys to come.
    rows = torch.arange(queries, device=query.device)[:, None]
    visible = rows >= torch.arange(keys, device=query.device)[None]
    return F.pad(visible, (length, 0), value=True)[None, None]


def _extend_block_mask(mask: Any, length: int, query: Tensor, keys: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    original = mask.mask_mod

    def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (column < length) | original(batch, head, row, (column - length).clamp(min=0))

    return create_block_mask(
        visible, mask.shape[0], None, mask.seq_lengths[0], keys + length, device=str(query.device)
    )
