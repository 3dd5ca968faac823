"""The size of checkpoints: little more than the attached tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import trainer
from small import Sentences

from lightning_pelt import PELTModule, UniPELT

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Short(Sentences):
    """As many labels as in the quickstart."""

    @property
    def labels(self) -> list[str]:
        return [f"chapter {number}" for number in range(16)]


@pytest.mark.slow
def test_at_most_five_percent_more_than_its_tensors(tmp_path: Path) -> None:
    data = Short(MINILM)
    module = PELTModule(MINILM, UniPELT(), labels=data.labels)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    run.save_checkpoint(tmp_path / "all.ckpt")

    attachment = module.attachment
    assert attachment is not None
    state = module.model.state_dict()  # type: ignore[union-attr]
    assert state.keys() == attachment.owned
    owned = size(state.values())
    groups = attachment.parameter_groups()
    parameters = [p for group in groups.values() for p in group]
    # And the openness of each gate.
    assert owned == size(parameters) + 4 * len(attachment.gates)
    assert owned < (tmp_path / "weights.ckpt").stat().st_size <= 1.05 * owned

    (optimizer,) = run.optimizers
    moments = size(value for p in parameters for value in optimizer.state[p].values())
    assert moments > 1.99 * size(parameters)
    full = (tmp_path / "all.ckpt").stat().st_size
    assert owned + moments < full <= 1.05 * (owned + moments)
    backbone = sum(p.numel() for p in module.parameters()) * 4
    assert full < backbone / 2
    torch.load(tmp_path / "all.ckpt", weights_only=True)
