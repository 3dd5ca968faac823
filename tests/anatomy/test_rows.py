"""Stacks that do not have the rows of the batch first: gates there do not pool over tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families.catalogue import by_label
from zoo import build

from lightning_pelt import Gate, LoRA, UniPELT, attach
from lightning_pelt.anatomy import examine
from lightning_pelt.testing import awaken


@pytest.mark.parametrize(
    ("label", "rowless"),
    [
        ("pixtral", {"encoder"}),  # the patches of all images in one row
        ("qwen2_vl", {"vision"}),  # (N, d)
        ("longformer", {"encoder"}),  # (T, B, d)
        ("llava", set()),
    ],
)
def test_rowless(label: str, rowless: set[str]) -> None:
    assert examine(by_label()[label].build()).rowless == rowless


@pytest.mark.parametrize("name", ["bert", "vit", "clip", "t5", "whisper"])
def test_rows_of_the_batch(name: str) -> None:
    assert examine(build(name)).rowless == frozenset()


@torch.no_grad()
def test_an_image_does_not_change_another() -> None:
    model: Any = by_label()["pixtral"].build()
    attachment = attach(model, UniPELT([LoRA()]))
    awaken(attachment, std=0.3)
    images = torch.randn(3, 3, *[model.config.image_size] * 2, generator=torch.manual_seed(0))
    one = model(images[[0, 1]]).last_hidden_state
    other = model(images[[0, 2]]).last_hidden_state
    first = one.shape[1] // 2
    torch.testing.assert_close(one[:, :first], other[:, :first], rtol=0, atol=1e-5)
    assert not torch.allclose(one[:, first:], other[:, first:], atol=1e-3)


@pytest.mark.parametrize("pool", ["masked", "all"])
def test_pooling_is_refused_with_the_remedy(pool: Any) -> None:
    model = by_label()["pixtral"].build()
    with pytest.raises(ValueError, match=rf"pool='{pool}'.*the encoder of pixtral.*pool='token'"):
        attach(model, UniPELT([LoRA()], gate=Gate(pool=pool)))
