"""The study on new authors with a tiny model, and how it divides them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import new_authors
import pytest
import small
from author_fits import SETUPS
from new_author_masks import WAYS

AUTHORS = [f"author {number}" for number in range(16)]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sixteen authors with rows of two labels, and a BERT 16 wide."""
    for split in ("train", "dev", "test"):
        rows = [
            {"text": f"{text} {word}", "label_name": label, "profile": author}
            for author in AUTHORS
            for label, text in {"low": "one two", "high": "red blue"}.items()
            for word in ("three", "four", "five")
        ]
        lines = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    for name in ("hard-100", "adapter"):
        setup = replace(SETUPS[name], method=replace(SETUPS[name].method, bottleneck=4))
        monkeypatch.setitem(SETUPS, name, setup)
    options = ["--episodes.steps=2", "--episodes.rows=2", "--epochs=1", "--fit.epochs=1"]
    backbone = small.bert(tmp_path / "bert", attention_probs_dropout_prob=0.0)
    return [f"--data={tmp_path}", f"--out={tmp_path}/out", f"--backbone={backbone}", *options]


@pytest.mark.slow
def test_every_way_is_scored_and_a_second_call_trains_nothing(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = new_authors.main(given)
    lines = [[cell.strip() for cell in line.split("|")] for line in printed.splitlines()[2:]]
    assert [line[1] for line in lines] == ["head", "adapter", *WAYS]
    assert {line[4] for line in lines} == {str(8 * 6)}
    monkeypatch.setattr(new_authors, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert new_authors.main(given) == printed
    other = new_authors.main([*given, "--group=selection"])  # reads the fits
    assert f"| {5 * 6} |" in " ".join(other.split())
    capsys.readouterr()


def test_new_authors_are_in_no_other_group() -> None:
    for seed in range(5):
        groups = new_authors.divide(AUTHORS, seed)
        assert sorted(name for group in groups.values() for name in group) == sorted(AUTHORS)
        assert [len(groups[name]) for name in ("new", "selection", "seen")] == [8, 5, 3]
    assert new_authors.divide(AUTHORS[::-1], 4) == groups
