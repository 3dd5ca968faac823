from __future__ import annotations

import json
from pathlib import Path

from lightning_pelt.data import TextToText


def test_sources_and_targets_become_tokens(words: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"q": "a b", "answer": "c d e"}, {"q": "f", "answer": "g"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    data = TextToText(
        words, train=str(path), test=str(path), dev_share=0, source="q", target="answer",
        prefix="x ", max_target_length=3, bucketed=False, label_names=["g", "c d"],
    )  # fmt: skip
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch["input_ids"].tolist() == [[0, 25, 2, 3], [0, 25, 7, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[0, 4, 5], [0, 8, -100]]
    assert data.labels == ["g", "c d"]
    (batch,) = data.predict_dataloader()
    assert set(batch) == {"input_ids", "attention_mask"}
