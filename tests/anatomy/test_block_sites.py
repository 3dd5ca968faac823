"""Sites of role ``block``: the output of a whole block, which is the residual stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from zoo import BLOCKS, WIDTH, ZOO, build, inputs

from lightning_pelt.anatomy import OUTPUT, Anatomy, Site, Source, examine
from lightning_pelt.anatomy._layer_sites import block_sites
from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy._stacks import Position

FAMILIES = list(ZOO)


def sites_of(anatomy: Anatomy) -> list[Site]:
    return [site for site in anatomy.sites if site.role == "block"]


def block_outputs(model: PreTrainedModel, name: str, anatomy: Anatomy) -> tuple[Any, list[list]]:
    """The result of a forward, and the outputs of every call of the sites' modules."""
    seen: list[list[Tensor]] = []
    for site in sites_of(anatomy):
        calls: list[Tensor] = []
        seen.append(calls)

        def keep(module: nn.Module, args: Any, output: Any, calls: list[Tensor] = calls) -> None:
            calls.append(output[0] if isinstance(output, tuple) else output)

        model.get_submodule(site.path).register_forward_hook(keep)
    with torch.no_grad():
        return model(**inputs(name), output_hidden_states=True), seen


def hidden_states(result: Any) -> list[tuple[Tensor, ...]]:
    """transformers' hidden states, per stack: the embeddings, then each block's output."""
    if "text_model_output" in result:
        result = {"vision": result.vision_model_output, "text": result.text_model_output}
        return [part.hidden_states for part in result.values()]
    keys = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    return [result[key] for key in keys if key in result]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_block_has_one(name: str) -> None:
    """No family of the zoo lacks it: all of their blocks return (B, T, d)."""
    anatomy = examine(build(name))
    expected = [
        Site("block", stack.name, number, path, WIDTH, WIDTH, Source(path, OUTPUT, WIDTH))
        for stack in anatomy.stacks
        for number, path in enumerate(stack.blocks)
    ]
    assert sites_of(anatomy) == expected
    assert anatomy.width == WIDTH
    assert anatomy.select("block") == expected
    assert not any(site.is_linear for site in expected)


# The encoder of DeBERTa-v2-xlarge adds a convolution to the output of its first block.
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "deberta-v2-xlarge"])
def test_is_the_hidden_state_after_the_block(name: str) -> None:
    """That of the first block of each stack; after the last one some families apply a norm."""
    model = build(name)
    anatomy = examine(model)
    result, outputs = block_outputs(model, name, anatomy)
    sites = sites_of(anatomy)
    firsts = [calls for site, calls in zip(sites, outputs, strict=True) if site.block == 0]
    states = hidden_states(result)
    assert len(firsts) == len(states) == len(anatomy.stacks)
    for calls, (_, after_first, *_) in zip(firsts, states, strict=True):
        assert after_first.shape[-1] == WIDTH
        assert torch.equal(calls[0], after_first)


def test_shared_blocks_have_one_site_that_runs_more_than_once() -> None:
    """ALBERT runs one block for all of its layers."""
    model = build("albert")
    anatomy = examine(model)
    result, (calls,) = block_outputs(model, "albert", anatomy)
    (site,) = sites_of(anatomy)
    assert site.path == "albert.encoder.albert_layer_groups.0.albert_layers.0"
    assert len(calls) == BLOCKS
    for output, state in zip(calls, result.hidden_states[1:], strict=True):
        assert torch.equal(output, state)


@pytest.mark.parametrize("output", [None, torch.zeros(1, WIDTH), torch.zeros(1, 2, 2, WIDTH)])
def test_a_block_with_another_output_has_none(output: Tensor | None) -> None:
    """Such as an image of (B, H, W, d)."""
    recorded = RecordedModel(build("bert"))
    path = "bert.encoder.layer.0"
    recorded.first[recorded.model.get_submodule(path)].output = output
    assert block_sites(recorded, {path: Position("encoder", 0)}) == []
