"""Attention with a prefix: learned keys and values in front of the real ones.

The prefix is prepended after position embeddings and cache, so that real tokens keep their
positions and the cache holds only real tokens. The configured attention function computes the
result. Activation checkpointing recomputes the prefix like any other computation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt.methods._kept import of_mask
from lightning_pelt.methods._ops import cast
from lightning_pelt.methods.current import recording

AttentionFunction = Callable[..., tuple[Tensor, Any]]

ORDER = ("module", "query", "key", "value", "attention_mask")  # of an attention function


class PrefixSource(Protocol):
    """The prefix of an attention module."""

    @property
    def closed(self) -> bool: ...

    @property
    def shown(self) -> Tensor: ...

    def __call__(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]: ...

    def gate_for(self, query: Tensor) -> Tensor | float | None: ...

    def extended_bias(self, bias: Tensor, length: int) -> Tensor: ...


def attend(
    prefix: PrefixSource,
    function: AttentionFunction,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Tensor, Any]:
    """Call ``function``, the implementation called ``name``, with a prefix before keys and values.

    Shapes: query (B, heads, T, d_k), key (B, kv, S, d_k), value (B, kv, S, d_v), in ``args`` or in
    ``kwargs``, as the caller passes them.

    Raises:
        ValueError: the arguments place the keys by numbers, which a prefix shifts.
    """
    module, query, key, value, mask = _in_order(function, args, kwargs)
    _refuse_numbered_keys(name, query, mask, kwargs)
    prefix_key, prefix_value = prefix(key, value)
    gate = prefix.gate_for(query)
    # Compiled code hides the columns: it would be compiled once more for each set of closed gates.
    hides = gate is not None and torch.compiler.is_dynamo_compiling() and _hides(mask, name)
    if gate is not None and not hides and prefix.closed:
        # No columns, rather than null tokens that absorb attention.
        read = (gate,) if isinstance(gate, Tensor) else ()  # a number has no gradient
        key = _with_null_gradients(key, prefix_key, prefix_value, *read)
        return function(module, query, key, value, mask, **kwargs)
    length, keys = prefix_key.shape[2], key.shape[2]
    mask = extend_mask(
        mask, length, module=module, query=query, keys=keys, name=name, kwargs=kwargs
    )
    if hides:
        mask = _hide_unless(prefix.shown, mask, length, query, keys)
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = prefix.extended_bias(kwargs["position_bias"], length)
    if isinstance(gate, Tensor) and gate.shape[1] > 1:
        if kwargs.get("scaling") is None:
            kwargs["scaling"] = query.shape[-1] ** -0.5
        tensors = _per_token(query, key, value, prefix_key, prefix_value, gate)
        output, weights = function(module, *tensors, mask, **kwargs)
        return _gated_sum(output, gate), weights
    if gate is not None:
        scale = gate.unsqueeze(-1) if isinstance(gate, Tensor) else gate
        prefix_key, prefix_value = prefix_key * scale, prefix_value * scale
    key, value = _in_front(prefix_key, key), _in_front(prefix_value, value)
    return function(module, query, key, value, mask, **kwargs)


def _in_order(
    function: AttentionFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Any]:
    """Module, query, key, value and mask, taken out of ``args`` and ``kwargs``.

    What else comes by position gets into ``kwargs``, by the names of ``function``.
    """
    ordered = list(args[: len(ORDER)])
    for name in ORDER[len(args) :]:
        ordered.append(kwargs.pop(name, None) if name == ORDER[-1] else kwargs.pop(name))
    if further := args[len(ORDER) :]:
        names = list(inspect.signature(function).parameters)[len(ORDER) :]
        kwargs.update(zip(names, further, strict=False))
    return ordered


def _refuse_numbered_keys(name: str, query: Tensor, mask: Any, kwargs: dict[str, Any]) -> None:
    """Raise where an argument counts the keys, and so does not know of those of the prefix."""
    if kwargs.get("cache") is not None:
        raise ValueError(
            "a prefix cannot be used with a paged cache, which is written inside the attention "
            "function and would store the prefix: generate without continuous batching"
        )
    numbers = [n for n in ("indices", "block_indices") if kwargs.get(n) is not None]
    if "flash" in name and mask is None:
        numbers += [n for n in ("cu_seq_lens_q", "cu_seq_lens_k") if kwargs.get(n) is not None]
        numbers += ["position_ids"] if _is_packed(kwargs.get("position_ids"), query) else []
    if numbers and not name.startswith(("sdpa", "eager", "flex")):
        raise ValueError(
            f"a prefix cannot be used with {numbers[0]} in {name}, which place keys by their "
            "numbers: set attn_implementation='sdpa'"
        )


def _is_packed(positions: Tensor | None, query: Tensor) -> bool:
    """Whether flash attention takes one row for several sequences, by its position ids."""
    if torch.compiler.is_compiling() or positions is None or query.shape[0] > 1:
        return False
    return bool((positions.diff(dim=-1) != 1).any())


def _with_null_gradients(key: Tensor, *others: Tensor) -> Tensor:
    """``key``, for whose gradient ``others`` are in the graph: DDP waits for every parameter's."""
    if not torch.is_grad_enabled():
        return key
    nothing = 0.0 * torch.stack([other.float().sum() for other in others]).sum()
    return key + nothing.to(key.dtype)


def _in_front(prefix: Tensor, real: Tensor) -> Tensor:
    """prefix (1 or B, kv, L, d), real (B, kv, S, d) -> (B, kv, L + S, d).

    In the order of ``real`` in memory: SDPA on a CPU takes a quarter longer on keys that lie head
    by head than on those that lie token by token.
    """
    prefix = cast(prefix, real.dtype)
    if recording():
        return torch.cat([prefix.expand(real.shape[0], -1, -1, -1), real], 2)
    if len(prefix) != len(real):
        prefix = prefix.expand(len(real), -1, -1, -1)
    if real.stride(1) < real.stride(2):
        return torch.cat([prefix.transpose(1, 2), real.transpose(1, 2)], 1).transpose(1, 2)
    return torch.cat([prefix, real], 2)


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
        return _in_front(F.pad(prefix, (width, 0)), F.pad(real, (0, width)))

    scaled = (query * gate[:, None]).to(query.dtype)
    return torch.cat([query, scaled], -1), beside(prefix_key, key), beside(prefix_value, value)


def _gated_sum(output: Tensor, gate: Tensor) -> Tensor:
    """Sums over real and prefix values (B, T, heads, 2 d), gate (B, T, 1) -> (B, T, heads, d)."""
    real, prefixed = output.chunk(2, -1)
    return real + (gate[..., None] * prefixed).to(real.dtype)


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
        return of_mask(
            mask,
            (length, keys),
            lambda: _extend_block_mask(mask, length, query, keys),
            asker=module,
        )
    visible: float | bool = True if mask.dtype == torch.bool else 0.0
    if mask.dim() == 2:  # flash attention's padding mask
        visible = 1
        if kwargs.get("sliding_window"):
            raise ValueError(
                "a sliding window in flash attention hides the prefix from late tokens: set "
                "attn_implementation='sdpa'"
            )
    return of_mask(mask, length, lambda: F.pad(mask, (length, 0), value=visible), asker=module)


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


def _hides(mask: Any, name: str) -> bool:
    """Whether columns can be hidden in the mask that is given to the function called ``name``."""
    return isinstance(mask, Tensor) or (mask is None and "sdpa" in name)


def _hide_unless(
    shown: Tensor, mask: Tensor | None, length: int, query: Tensor, keys: int
) -> Tensor:
    """mask (..., length + S) that hides the first ``length`` columns unless ``shown``, () bool."""
    if mask is None:
        mask = torch.ones(1, 1, 1, length + keys, dtype=torch.bool, device=query.device)
    hidden = torch.finfo(mask.dtype).min if mask.is_floating_point() else 0
    prefixed = torch.arange(length + keys, device=mask.device) < length
    return mask.masked_fill(prefixed & ~shown, hidden)


def _extend_block_mask(mask: Any, length: int, query: Tensor, keys: int) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    original = mask.mask_mod

    def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (column < length) | original(batch, head, row, (column - length).clamp(min=0))

    return create_block_mask(
        visible, mask.shape[0], None, mask.seq_lengths[0], keys + length, device=str(query.device)
    )
