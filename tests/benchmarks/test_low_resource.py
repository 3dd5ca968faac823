"""The study with few rows, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import low_resource
import pytest
import small
from scipy.stats import ttest_rel

TEXTS = {"one two three": 0, "red blue four": 1}


@pytest.mark.slow
def test_a_study_tunes_tests_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    meta = {"labels": ["low", "high"], "metric": "accuracy"}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    rows = [json.dumps({"text": text, "label": label}) for text, label in TEXTS.items()] * 32
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.setattr(low_resource, "RATES", low_resource.RATES[:1])
    monkeypatch.setattr(low_resource, "SEEDS", [0, 1])
    options = ["--out", str(tmp_path / "out"), "--k", "16", "--tasks", "sst2"]
    options += ["--all_tasks", "sst2", "--contestants", "lora", "unipelt, late"]
    given = [str(tmp_path / "data"), *options, "--steps", "6"]
    given += ["--backbone", str(small.bert(tmp_path / "bert"))]
    with pytest.raises(ValueError, match=r"2 fits are missing, such as tune k=16 sst2 lora"):
        low_resource.main(["test", *given])
    low_resource.main(["tune", *given])
    low_resource.main(["test", *given])
    fits = tmp_path / "out" / "fits.jsonl"
    lines = fits.read_text().splitlines()
    assert len(lines) == 2 * (2 + 2)
    fits.write_text("\n".join(lines[:-1]) + '\n{"key": "te')  # killed while it wrote
    low_resource.main(["test", *given])
    assert fits.read_text().splitlines() == [*lines[:-1], '{"key": "te', lines[-1]]
    with pytest.raises(ValueError, match="name another --out"):
        low_resource.main(["test", *given, "--precision", "bf16"])
    assert "unipelt, late" in low_resource.main(["levers", *options])
    table = low_resource.main(["table", *options])
    assert table is not None and "unipelt, late" in table and "against lora" in table


def test_an_interval_is_that_of_a_paired_test() -> None:
    ours, theirs = (
        [[80.0, 70.0], [82.0, 71.0], [79.0, 74.0]],
        [[78.0, 70.0], [81.0, 69.0], [80.0, 70.0]],
    )
    interval = ttest_rel([75, 76.5, 76.5], [74, 75, 75]).confidence_interval(0.95)
    middle, half = (interval.high + interval.low) / 2, (interval.high - interval.low) / 2
    assert low_resource.difference(ours, theirs) == f"{middle:+.2f} ± {half:.2f}"
