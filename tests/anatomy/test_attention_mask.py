"""Masks of every kind, and which tokens are real according to them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers.models.longt5.modeling_longt5 import _get_local_attention_mask

from lightning_pelt.anatomy.attention_mask import real_tokens

LOW = torch.finfo(torch.float32).min
TRIANGLE = [[True, False, False], [True, True, False], [True, True, True]]
KINDS: dict[str, tuple[Any, list[list[bool]]]] = {
    "integers": (torch.tensor([[1, 1, 1], [1, 1, 0]]), [[True] * 3, [True, True, False]]),
    "booleans": (torch.tensor([[True, False, True]]), [[True, False, True]]),
    "floats of ones": (torch.tensor([[1.0, 1.0, 0.0]]), [[True, True, False]]),
    "one row for all queries": (
        torch.tensor([[True, True, False]])[:, None, None],
        [[True, True, False]],
    ),
    "one triangle for all": (torch.tensor(TRIANGLE)[None, None], [[True] * 3]),
    "triangle and padding": (
        torch.tensor(TRIANGLE)[None, None] & torch.tensor([True, True, False]),
        [[True, True, False]],
    ),
    "triangle and left padding": (
        torch.tensor(TRIANGLE)[None, None] & torch.tensor([False, True, True]),
        [[False, True, True]],
    ),
    "added to the scores": (
        torch.tensor([[0.0, 0.0, LOW], [0.0, LOW, LOW]])[:, None, None],
        [[True, True, False], [True, False, False]],
    ),
    "added, minus infinity": (
        torch.tensor([[0.0, -math.inf, -math.inf]])[:, None, None],
        [[True, False, False]],
    ),
    "added, half precision": (
        torch.tensor([[0.0, 0.0, torch.finfo(torch.float16).min]], dtype=torch.float16)[
            :, None, None
        ],
        [[True, True, False]],
    ),
    "added twice": (
        torch.tensor([[0.0, 0.0, LOW]])[:, None, None] + torch.tensor([[0.0, 0.0, LOW]]),
        [[True, True, False]],
    ),
    "added with a position bias": (
        torch.tensor([[3.5, -9.0, LOW]])[:, None, None],
        [[True, True, False]],
    ),
    "integers for every pair": (
        torch.tensor([[[[1, 1, 0], [1, 1, 0], [0, 0, 0]]]]),
        [[True, True, False]],
    ),
    "for every head": (
        torch.tensor([[True, False, False], [False, True, False]])[None, :, None],
        [[True, True, False]],
    ),
    "blocks": (
        create_block_mask(lambda b, h, q, k: k <= 1, 1, None, 3, 3, device="cpu"),
        [[True, True, False]],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_real_tokens(kind: str) -> None:
    mask, expected = KINDS[kind]
    assert real_tokens(mask, len(expected), 3).tolist() == expected


PADDED = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
PAIRS = (PADDED[:, None] * PADDED[:, :, None]).bool()[:, None]  # (B, 1, T, T)
SEEN = {"keys": PADDED.bool()[:, None, None], "pairs": PAIRS, "heads": PAIRS.expand(2, 3, 7, 7)}


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize(
    "hidden", [-math.inf, torch.finfo(torch.float32).min, -1e9, -10000, -1e4 - 1, -65504]
)
def test_whatever_hides_is_padding(hidden: float, seen: str) -> None:
    mask = torch.where(SEEN[seen], 0.0, hidden)
    assert torch.equal(real_tokens(mask, 2, 7), PADDED.bool())
    bias = 3 * torch.randn(mask.shape)
    assert torch.equal(real_tokens(mask + bias, 2, 7), PADDED.bool())


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
def test_true_is_seen(dtype: torch.dtype, seen: str) -> None:
    assert torch.equal(real_tokens(SEEN[seen].to(dtype), 2, 7), PADDED.bool())
    if seen != "heads":  # (B, Q, K)
        assert torch.equal(real_tokens(SEEN[seen][:, 0].to(dtype), 2, 7), PADDED.bool())


def test_a_float_per_token() -> None:
    """Ones and zeros, or added to the scores: with Longformer's global tokens, or with nothing."""
    factors = PADDED.float()
    added = torch.where(PADDED.bool(), 0.0, -1e4)
    attends_to_all = added.clone()
    attends_to_all[:, 0] = 1e4
    assert torch.equal(real_tokens(factors, 2, 7), PADDED.bool())
    assert torch.equal(real_tokens(added, 2, 7), PADDED.bool())
    assert torch.equal(real_tokens(attends_to_all, 2, 7), PADDED.bool())
    assert real_tokens(torch.zeros(2, 7), 2, 7).all()


def in_blocks(length: int) -> Tensor:
    """LongT5's, as transformers makes it: (B, 1, blocks, L, 3 L)."""
    return _get_local_attention_mask(PADDED, length, torch.device("cpu"))


@pytest.mark.parametrize("length", [2, 3, 4, 7, 8, 20])
def test_block_local(length: int) -> None:
    mask = in_blocks(length)
    added = torch.where(mask, 0.0, -1e10)
    heads = mask.expand(-1, 3, -1, -1, -1)
    for each in (mask, added, heads, heads.transpose(1, 2), added.transpose(1, 2), mask[:, 0]):
        assert torch.equal(real_tokens(each, 2, 7), PADDED.bool()), each.shape


def test_columns_of_a_cache() -> None:
    """Two tokens are cached, and a cache of fixed length has columns for three to come."""
    mask = SEEN["keys"][..., :4]
    assert torch.equal(real_tokens(mask, 2, 2, cached=True), PADDED[:, 2:4].bool())
    later = torch.nn.functional.pad(PAIRS[..., 2:4, :4], (0, 3))
    found = real_tokens(later, 2, 2, cached=True, past=torch.tensor(2))
    assert torch.equal(found, PADDED[:, 2:4].bool())
    window = real_tokens(SEEN["keys"], 2, 2, cached=True, past=torch.tensor(90))
    assert torch.equal(window, PADDED[:, 5:].bool())


@pytest.mark.parametrize(
    "shape",
    [
        (7,),
        (2, 6),
        (2, 9),  # padded to a multiple of a block, and there is no cache
        (3, 1, 1, 7),
        (6, 7, 7),  # a row for every head
        (2, 3, 3, 7, 7),
        (2, 3, 2, 6),
        (2, 1, 1, 1, 7, 7),
        (0, 7),
    ],
)
def test_what_cannot_be_read(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"2 x 7 tokens and cannot tell.*shape.*pool='token'"):
        real_tokens(torch.ones(shape), 2, 7)
