"""What a plan computes for a row does not depend on the rows that it is batched with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import LABELS, WORDS, bert

from lightning_pelt import PELTModule, UniPELT
from lightning_pelt.data import TextClassification
from lightning_pelt.testing import awaken

KINDS: dict[str, dict[str, Any]] = {
    "fixed": {"bucketed": False, "pad": "max_length"},
    "longest": {"bucketed": False},
    "bucketed": {},
}


def rows_of(folder: Path) -> str:
    """Texts of one to fifteen words, all different."""
    random = np.random.default_rng(0)
    path = folder / "rows.jsonl"
    texts = {" ".join(random.choice(WORDS, 1 + number % 15)) for number in range(60)}
    rows = [{"text": text, "label": LABELS[len(text) % 3]} for text in sorted(texts)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def epoch(module: PELTModule, backbone: str, rows: str, kind: str) -> dict[tuple, Any]:
    """The logits of each row, and the gradients of the sum of all losses."""
    data = TextClassification(
        backbone, train=rows, labels=LABELS, batch_size=8, max_length=24, **KINDS[kind]
    )
    model, places, found = module.model, 0, {}
    assert model is not None
    model.zero_grad()
    for batch in data.train_dataloader():
        places += batch["input_ids"].numel()
        output = model(**batch)
        (output.loss * len(batch["labels"])).backward()
        for ids, real, logits in zip(
            batch["input_ids"], batch["attention_mask"], output.logits, strict=True
        ):
            found[tuple(ids[real.bool()].tolist())] = logits.detach()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return {("places",): places, ("gradients",): gradients, **found}


@pytest.mark.slow
def test_logits_and_gradients_of_an_epoch_do_not_depend_on_its_batches(tmp_path: Path) -> None:
    """With gates that pool over real tokens, and a prefix."""
    backbone, rows = str(bert(tmp_path / "bert")), rows_of(tmp_path)
    module = PELTModule(backbone, UniPELT(), labels=LABELS)
    module.configure_model()
    assert module.attachment is not None
    awaken(module.attachment, std=1.0)
    module.eval()
    fixed, *others = [epoch(module, backbone, rows, kind) for kind in KINDS]
    for other in others:
        assert other.keys() == fixed.keys()
        assert other.pop(("places",)) < fixed[("places",)]
        for one, two in zip(other.pop(("gradients",)), fixed[("gradients",)], strict=True):
            assert (one - two).abs().max() <= 1e-4 * two.abs().max()
        for row, logits in other.items():
            assert logits.tolist() == pytest.approx(fixed[row].tolist(), rel=1e-4, abs=1e-6)
