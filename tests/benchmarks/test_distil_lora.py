"""The study on distilled LoRAs with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import distil_lora
import pytest
import small


@pytest.mark.slow
def test_the_study_keeps_its_models_and_compares_them(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    meta = json.dumps({"labels": ["low", "high"]})
    (folder / "meta.json").write_text(meta, encoding="utf-8")
    texts = {"one two three": 0, "red blue four": 1}
    rows = [json.dumps({"text": t, "label": label}) for t, label in texts.items()] * 64
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    backbone = str(small.bert(tmp_path / "bert"))
    arguments = [str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--backbone", backbone]
    arguments += ["--tasks", "sst2", "--seeds", "3", "--epochs", "1", "--rank", "4"]
    first, second = distil_lora.main(arguments), distil_lora.main(arguments)
    ((name, seed, plan, lora, points, equal, *_),) = first
    assert (name, seed) == ("sst2", 3)
    assert points == lora - plan and 0 <= plan <= 100 and 0 <= equal <= 100
    assert (tmp_path / "out" / "sst2-3" / "adapters.safetensors").is_file()
    assert first[0][:-1] == second[0][:-1]  # all but the seconds
