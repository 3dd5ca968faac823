"""The zoo: properties of its models that other tests assume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface
from zoo import BLOCKS, FIRST_WORD, LAST_WORD, ZOO, build, inputs, output

# Parameters that a forward does not read, or that are fixed tables.
UNREAD = ("embed_positions.weight", "masked_spec_embed", "mask_token", "logit_scale")


@contextmanager
def recorded_attention() -> Iterator[list[nn.Module]]:
    """The modules that look up their attention function, in order."""
    seen: list[nn.Module] = []
    original = AttentionInterface.get_interface

    def recording(self, name, default):  # type: ignore[no-untyped-def]
        function = original(self, name, default)

        def call(module, *args, **kwargs):  # type: ignore[no-untyped-def]
            seen.append(module)
            return function(module, *args, **kwargs)

        return call

    AttentionInterface.get_interface = recording
    try:
        yield seen
    finally:
        AttentionInterface.get_interface = original


def changed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with another third token, or another start of the signal, in row 0."""
    name = next(iter(batch))
    values = batch[name].clone()
    if values.is_floating_point():
        values[0].view(-1)[:20] += 0.5
    else:
        values[0, 2] = (values[0, 2] + 7 - FIRST_WORD) % (LAST_WORD - FIRST_WORD) + FIRST_WORD
    return {**batch, name: values}


def test_zoo_is_large_enough() -> None:
    assert len({entry.config().model_type for entry in ZOO.values()}) >= 34
    assert len({entry.kind for entry in ZOO.values()}) == 6
    checkpoints = [entry.checkpoint for entry in ZOO.values()]
    assert len(set(checkpoints)) == len(ZOO)
    assert all(checkpoint.count("/") == 1 for checkpoint in checkpoints)


@pytest.mark.parametrize("name", ZOO)
def test_entry(name: str) -> None:
    model, batch = build(name), inputs(name)
    assert not model.training
    assert model.supports_gradient_checkpointing == ZOO[name].checkpointing
    with recorded_attention() as sites:
        first = output(model, batch)
    assert bool(sites) == ZOO[name].interface
    assert first.isfinite().all()

    with torch.no_grad():
        # A bias that requires a gradient selects another kernel: compare in one grad mode.
        assert output(build(name), batch).equal(output(model, batch))
        assert (output(build(name, seed=1), batch) - first).abs().max() > 1e-2
        assert (output(model, changed(batch)) - first)[0].abs().max() > 1e-3

    # Squared: the sum of a normalised embedding or of a softmax has no gradient.
    first.square().sum().backward()
    dropped = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {n for n in dropped if not n.endswith(UNREAD)} == set()


@pytest.mark.parametrize("name", ZOO)
def test_every_norm_and_mask_matters(name: str) -> None:
    model, batch = build(name), inputs(name)
    with torch.no_grad():
        whole = output(model, batch)
        # CLIP's text tower is causal and is read at the end of the sentence, before the padding.
        if "attention_mask" in batch and ZOO[name].kind != "clip":
            unmasked = {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}
            assert (output(model, unmasked) - whole)[1].abs().max() > 1e-4
        norms = [
            (n, p) for n, p in model.named_parameters() if "norm" in n.lower() and "weight" in n
        ]
        for parameter_name, parameter in norms:
            kept = parameter.clone()
            parameter.mul_(torch.linspace(0.5, 1.5, parameter.numel()).view_as(parameter))
            assert (output(model, batch) - whole).abs().max() > 1e-4, parameter_name
            parameter.copy_(kept)


@pytest.mark.parametrize("name", ZOO)
def test_bare_model_and_unpadded_inputs(name: str) -> None:
    model, batch = build(name, task=False), inputs(name, padded=False, batch=3)
    assert "attention_mask" not in batch
    with torch.no_grad():
        assert len(output(model, batch)) == 3
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == BLOCKS]
    assert stacks or name == "albert"
    assert all(getattr(m, "p", 0.0) == 0.0 for m in model.modules() if isinstance(m, nn.Dropout))
