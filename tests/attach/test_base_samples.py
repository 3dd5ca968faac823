"""Samples that tell whether the base has changed."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp._common_utils import _set_fsdp_flattened

from lightning_pelt.attach.base_samples import BaseSamples


def test_another_value_is_a_change() -> None:
    bias = nn.Parameter(torch.arange(8.0))
    samples = BaseSamples.of({"bias": bias})
    assert samples.changed({"bias": bias}) == set()
    assert samples.changed({"bias": bias + 1}) == {"bias"}


def test_a_shard_of_fsdp1_is_not_judged() -> None:
    """It may start at any place of the tensor."""
    samples = BaseSamples.of({"bias": nn.Parameter(torch.arange(8.0))})
    shard = nn.Parameter(torch.arange(4.0, 8.0))
    _set_fsdp_flattened(shard)
    assert samples.changed({"bias": shard}) == set()
