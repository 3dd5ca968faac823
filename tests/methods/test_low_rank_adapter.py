"""Low-rank adapters: matrix products for every rank."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_pelt import Gate, LowRankAdapter, Plan, attach
from lightning_pelt.methods._stacked_bottlenecks import StackedBottlenecks
from lightning_pelt.testing import MethodConformance, awaken, tiny_bert


class TestLowRankAdapter(MethodConformance):
    method = LowRankAdapter(bottleneck=8)


@pytest.mark.slow  # gated bottlenecks: TestGatedAdapter
class TestGatedLowRankAdapter(MethodConformance):
    compiled = ("bert",)
    method = LowRankAdapter(bottleneck=8, rank=3, gate=Gate())


@pytest.mark.parametrize("rank", [1, 3])
def test_by_hand(rank: int) -> None:
    attachment = attach(tiny_bert(), Plan.uniform(LowRankAdapter(bottleneck=8, rank=rank)))
    awaken(attachment)
    stack, *placed = attachment.submodules["low_rank"]
    assert isinstance(stack, StackedBottlenecks)
    f = torch.randn(2, 5, 32)
    with torch.no_grad():
        stack.refresh()
        for index, module in enumerate(placed):
            down = stack.down_32x8x32.S[index, 0] @ stack.down_32x8x32.R[index, 0]
            up = stack.up_32x8x32.S[index, 0] @ stack.up_32x8x32.R[index, 0]
            assert torch.linalg.matrix_rank(down) == rank
            inner = F.gelu(f @ down + stack.bias_32x8x32[index], approximate="tanh")
            by_hand = f + inner @ up + stack.out_32x8x32[index]
            torch.testing.assert_close(module(f, f), by_hand, rtol=1e-5, atol=1e-5)


def test_a_rank_below_one() -> None:
    with pytest.raises(ValueError, match="rank=0: it must be at least 1"):
        LowRankAdapter(rank=0)
