"""Initial values of single tensors, from the initialisation of the whole model."""

from __future__ import annotations

import pytest
import torch
from zoo import build

from lightning_pelt.anatomy import initialise


@pytest.mark.parametrize("name", ["clip", "bert", "t5", "mixtral"])
def test_all_other_tensors_keep_their_values(name: str) -> None:
    """CLIP's embeddings initialise the weights of modules inside them."""
    model = build(name)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    chosen = {id(buffer) for buffer in model.buffers()}
    for buffer in model.buffers():
        buffer.zero_()
    initialise(model, lambda tensor: id(tensor) in chosen)
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(after[key] is tensor for key, tensor in tensors.items())
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_new_head_is_drawn_as_the_model_draws_it() -> None:
    model = build("bert")
    weight = model.classifier.weight
    expected = torch.empty_like(weight)
    torch.manual_seed(3)
    expected.normal_(std=model.config.initializer_range)
    torch.manual_seed(3)
    initialise(model, lambda tensor: tensor is weight)
    assert torch.equal(weight, expected)
