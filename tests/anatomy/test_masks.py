"""From which argument gates learn what is padding, and where they cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    CanineConfig,
    CanineModel,
    LxmertConfig,
    LxmertModel,
    PegasusXConfig,
    PegasusXModel,
    PreTrainedModel,
)
from zoo import build

from lightning_pelt import Adapter, Gate, LoRA, UniPELT, attach
from lightning_pelt.testing import awaken, draw

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = torch.arange(3, 11)[None]


def pegasus_x() -> PreTrainedModel:
    """Global tokens run through the norms and the feed-forward of each block too."""
    sides = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in SIDE.items()}
    return PegasusXModel(
        PegasusXConfig(vocab_size=100, d_model=32, block_size=4, num_global_tokens=3, **sides)
    )


SIDE = {"layers": 1, "attention_heads": 4, "ffn_dim": 64, "layerdrop": 0.0}


def lxmert() -> PreTrainedModel:
    """Words and regions attend to each other before they attend to themselves."""
    layers = {"l_layers": 1, "r_layers": 1, "x_layers": 1}
    return LxmertModel(
        LxmertConfig(vocab_size=100, visual_feat_dim=8, num_qa_labels=2, **SIZES, **layers)
    )


def canine() -> PreTrainedModel:
    """The first attention runs on every part of a text."""
    sizes = {"local_transformer_stride": 4, "num_hash_buckets": 50, "downsampling_rate": 4}
    return CanineModel(CanineConfig(num_hidden_layers=1, **SIZES, **sizes))


BESIDE: dict[Any, dict[str, torch.Tensor]] = {
    pegasus_x: {"decoder_input_ids": WORDS},
    lxmert: {"visual_feats": torch.ones(1, 3, 8), "visual_pos": torch.ones(1, 3, 4)},
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "without", "masked"),
    [
        (pegasus_x, {"encoder"}, set()),  # decoders do not pool
        (lxmert, {"x"}, {"encoder", "r"}),
        (canine, {"initial_char"}, {"encoder", "final_char"}),
    ],
    ids=["pegasus_x", "lxmert", "canine"],
)
def test_stacks_whose_padding_is_not_known(make: Any, without: set[str], masked: set[str]) -> None:
    """Their gates do not pool; a plan whose gates do was refused by the trial of attach."""
    model = draw(make())
    attachment = attach(model, UniPELT([LoRA(), Adapter(reduction_factor=2)]))
    pools: dict[str, set[str]] = {}
    for name, view in attachment.gates.items():
        pools.setdefault(name.partition(".")[0], set()).add(view.layer.pool)
    assert attachment.anatomy.unread == without
    assert all(pools[name] == {"token"} for name in without)
    assert all("masked" in pools[name] for name in masked)
    awaken(attachment, std=0.3)
    model(input_ids=WORDS, attention_mask=torch.ones_like(WORDS), **BESIDE.get(make, {}))


def test_pooling_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot tell padding from words: .* Gate\(pool='all'\)"):
        attach(draw(pegasus_x()), UniPELT([LoRA()], gate=Gate(pool="masked")))


def test_others_pool_over_real_tokens() -> None:
    attachment = attach(build("bert"), UniPELT([LoRA(), Adapter(reduction_factor=2)]))
    assert {view.layer.pool for view in attachment.gates.values()} == {"masked"}
    assert not attachment.anatomy.unread
