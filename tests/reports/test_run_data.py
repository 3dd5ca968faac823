"""Runs are read as they were logged, also cut, resumed and damaged ones."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from reports.run_files import COUNTED, HOSTILE, gated, log

from lightning_pelt.reports.run_data import read_run


def written(folder: Path, text: str, settings: str | None = "lr: 0.1\n") -> Path:
    (folder / "metrics.csv").write_bytes(text.encode())
    if settings is not None:
        (folder / "hparams.yaml").write_text(settings)
    return folder


def pairs(folder: Path, name: str) -> list[tuple[int, float]]:
    series = read_run(str(folder)).series[name]
    return list(zip(series.steps, series.values, strict=True))


def test_what_the_logger_of_lightning_writes(tmp_path: Path) -> None:
    run = read_run(str(log(tmp_path / "version_0", gated([0, 50, 100]), COUNTED)))
    assert run.notes == []
    assert run.series["train/loss"].steps == [0, 50, 100]
    assert run.series["train/loss"].values == [2, 1.5, 1]
    assert run.series["gate/01/prefix"].values == [0.5, 0.45, 0.4]
    assert (run.epochs.values, run.last_step) == ([0, 1, 2], 100)
    assert run.parameters["prefix/trained"] == 6000
    assert run.settings == {"backbone": "bert-base", "lr": "0.001"}
    assert not {"step", "epoch"} & {*run.series}


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path, "step,loss\r\n1,0.5\r\n2,0.4")  # 0.4, or the start of 0.45
    assert pairs(folder, "loss") == [(1, 0.5)]
    assert "not complete" in read_run(str(folder)).notes[0]


@pytest.mark.parametrize("text", ["", "step,loss\r\n", "step,lo"])
def test_a_run_that_has_logged_nothing(tmp_path: Path, text: str) -> None:
    run = read_run(str(written(tmp_path, text)))
    assert (run.series, run.last_step) == ({}, None)
    assert "metrics.csv has no values yet." in run.notes


def test_a_resumed_run_has_the_later_values(tmp_path: Path) -> None:
    """Steps 3 and 4 were trained, lost, and trained again up to 3."""
    text = "step,loss\n1,5\n2,4\n3,3\n4,2\n3,1\n"
    folder = written(tmp_path, text)
    assert pairs(folder, "loss") == [(1, 5), (2, 4), (3, 1)]
    assert "2 earlier values are replaced" in read_run(str(folder)).notes[0]


def test_a_step_that_is_logged_twice_has_the_later_value(tmp_path: Path) -> None:
    folder = written(tmp_path, "step,loss,acc\n1,5,\n1,4,\n1,,7\n")
    assert pairs(folder, "loss") == [(1, 4)]
    assert pairs(folder, "acc") == [(1, 7)]


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    folder = written(tmp_path, "step,loss\n1,5\n2,nan\n3,inf\n4,2\n")
    assert [math.isfinite(v) for _, v in pairs(folder, "loss")] == [True, False, False, True]
    run = read_run(str(folder))
    assert run.notes == ["loss is NaN or infinite 2 times, first at step 2."]
    assert run.series["loss"].finite() == [(1, 5), (4, 2)]


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    folder = written(tmp_path, "step,loss\n1,5\n,4\n2,4,9\n3\n4,abc\nx,1\n\n5,1\n")
    assert pairs(folder, "loss") == [(1, 5), (5, 1)]
    lines, cells = read_run(str(folder)).notes
    assert "4 lines" in lines and "1 values" in cells


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics.csv has no column 'step'.*'date', 'price'"):
        read_run(str(written(tmp_path, "date,price\n1,2\n")))


def test_columns_with_equal_and_odd_names(tmp_path: Path) -> None:
    text = f'step,a,a,"{HOSTILE.replace(chr(34), chr(34) * 2)}"\n1,2,3,4\n'
    assert {*read_run(str(written(tmp_path, text))).series} == {"a", "a (2)", HOSTILE}


def test_settings_are_flat_text(tmp_path: Path) -> None:
    yaml = """
plan: {class_path: Plan, init_args: {groups: [{blocks: [0, 1]}], norms: true}}
labels: [a, b]
head: null
made: !!python/object/apply:os.system [exit 1]
kind: !Mine text
"""
    assert read_run(str(written(tmp_path, "step\n", yaml))).settings == {
        "plan.class_path": "Plan",
        "plan.init_args.groups.0.blocks": "[0, 1]",
        "plan.init_args.norms": "true",
        "labels": "[a, b]",
        "head": "null",
        "made": "<tag:yaml.org,2002:python/object/apply:os.system>",
        "kind": "text",
    }


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        (None, "There is no hparams.yaml"),
        ("a: [1", "hparams.yaml cannot be read"),
        ("a: &a [*a, {b: *a}]", None),  # contains itself
    ],
)
def test_settings_that_cannot_be_read(tmp_path: Path, yaml: str | None, words: str | None) -> None:
    run = read_run(str(written(tmp_path, "step,loss\n1,2\n", yaml)))
    assert run.series["loss"].values == [2]
    assert words is None or words in run.notes[0]


def test_settings_without_end_are_cut(tmp_path: Path) -> None:
    """Forty levels of ten references each would be 10**40 entries."""
    lines = ["l0: &l0 {x: 1}"]
    for level in range(1, 41):
        inner = ", ".join(f"k{i}: *l{level - 1}" for i in range(10))
        lines.append(f"l{level}: &l{level} {{{inner}}}")
    run = read_run(str(written(tmp_path, "step,loss\n1,2\n", "\n".join(lines))))
    assert len(run.settings) == 2000
    assert "more than 2,000 entries" in run.notes[0]


def test_settings_that_are_a_list(tmp_path: Path) -> None:
    run = read_run(str(written(tmp_path, "step,loss\n1,2\n", "[1, 2]")))
    assert (run.settings, run.notes) == ({}, ["hparams.yaml has no settings by name."])
