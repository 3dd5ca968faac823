"""The table of strategies is read as it was written, and runs only what is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import strategy_matrix
from strategy_matrix import NAMES, NOT_RUN, ON_A_GPU, known_results, page, selected
from strategy_table import Cell, read_tables, tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "strategies.md"
RESULTS = {
    Cell("ddp", "unipelt", "32-true"): "4e-07, 1e-08",
    Cell("fsdp2", "s4", "32-true"): "**2e-05**",
    Cell("ddp", "s4", "bf16-true"): "ValueError: no / such thing",
}


def test_tables_are_read_as_they_were_written() -> None:
    text = tables(RESULTS, RESULTS, NAMES)
    assert text.splitlines()[:5] == [
        "## 32-true", "", "| Strategy | unipelt | s4 |", "|---|---|---|",
        "| `ddp` | 4e-07, 1e-08 | - |",
    ]  # fmt: skip
    assert read_tables(text, NAMES) == RESULTS
    assert read_tables(f"# T\n\n| a | b |\n\n{text}\n\nText | with bars\n", NAMES) == RESULTS
    with pytest.raises(ValueError, match="zip"):
        read_tables(text.replace("| - |", "|"), NAMES)


def test_only_what_is_missing_or_asked_for_runs() -> None:
    everything = selected(None, RESULTS)
    assert not any(cell.precision == ON_A_GPU for cell in everything)
    assert set(everything) - set(selected([], RESULTS)) == set(RESULTS)
    asked = selected(["ddp/s4/*", "fsdp2_tp/unipelt/32-true"], RESULTS)
    assert len(asked) == 4
    with pytest.raises(SystemExit, match=r"no cell matches dpp/\*"):
        selected(["dpp/*"], RESULTS)


def test_results_of_other_versions_are_not_mixed(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "strategies.md"
    assert known_results(path) == {}
    path.write_text(page(RESULTS))
    assert known_results(path) == RESULTS
    monkeypatch.setattr(strategy_matrix, "versions", lambda: "torch 1.0")
    with pytest.raises(SystemExit, match=r"other versions than torch 1\.0: run without --only"):
        known_results(path)


def test_the_document_says_what_was_not_run() -> None:
    found = read_tables(DOCUMENT.read_text(), NAMES)
    assert set(found) <= set(strategy_matrix.cells())
    exact = {cell for cell in strategy_matrix.cells() if cell.precision == "32-true"}
    assert exact <= set(found)
    assert not any("**" in found[cell] for cell in exact)
    on_a_gpu = {text for cell, text in found.items() if cell.precision == ON_A_GPU}
    assert on_a_gpu == {NOT_RUN}
