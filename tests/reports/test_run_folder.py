"""Which folder is a run, and what is said of others."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from lightning_pelt.reports.run_folder import find_run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def runs(*folders: str, name: str = "metrics.csv") -> None:
    for folder in folders:
        Path(folder).mkdir(parents=True)
        (Path(folder) / name).write_text("step\n")


@pytest.mark.parametrize(
    "given", ["runs/quick/version_0", "runs/quick/version_0/", "runs/quick/version_0/metrics.csv"]
)
def test_a_run_is_itself(given: str, tmp_path: Path) -> None:
    runs("runs/quick/version_0", "runs/quick/version_1")
    found = find_run(given)
    assert found.path == str(tmp_path / "runs/quick/version_0")
    assert (found.name, found.notes) == ("quick/version_0", ())


@pytest.mark.parametrize("given", ["runs", "runs/quick", "."])
def test_the_newest_version_by_number(given: str) -> None:
    runs("runs/quick/version_10", "runs/quick/version_9")
    found = find_run(given)
    assert found.name == "quick/version_10"
    assert found.notes == ("version_10 is the newest of 2 versions in its folder.",)


def test_a_newer_version_without_metrics_is_named() -> None:
    runs("runs/version_0")
    runs("runs/version_1", name="hparams.yaml")
    assert "version_1 is newer, but has no metrics.csv yet" in find_run("runs").notes[0]


def test_named_versions_go_by_time() -> None:
    runs("runs/b", "runs/a")
    os.utime("runs/b/metrics.csv", (1, 1))
    assert find_run("runs").name == "runs/a"


def test_a_url() -> None:
    with fsspec.open("memory://kept/version_3/metrics.csv", "wt") as file:
        file.write("step\n")
    found = find_run("memory://kept")
    assert found.name == "kept/version_3"
    assert found.read("metrics.csv") == b"step\n"
    assert found.read("hparams.yaml") is None


def test_runs_of_several_folders_are_listed() -> None:
    runs("runs/quick/version_0", "runs/glue/version_4")
    with pytest.raises(ValueError, match="name one of glue/version_4, quick/version_0"):
        find_run("runs")


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("runs/quikstart/version_0", "runs/quickstart"),
        ("rums/quickstart", "runs"),
        ("runs/quickstart/version_7", "runs/quickstart/version_0"),
    ],
)
def test_a_missing_folder_names_the_nearest(given: str, nearest: str) -> None:
    runs("runs/quickstart/version_0")
    with pytest.raises(FileNotFoundError, match=f"did you mean '{nearest}'.*CSVLogger"):
        find_run(given)


def test_a_folder_inside_a_run_names_the_run() -> None:
    runs("runs/version_0")
    Path("runs/version_0/checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"Did you mean \S*runs/version_0\?"):
        find_run("runs/version_0/checkpoints")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("events.out.tfevents.1", "files of TensorBoard; add a CSVLogger"),
        ("hparams.yaml", "nothing may have been logged"),
        ("notes.txt", "A run is a folder"),
    ],
)
def test_a_folder_without_metrics(file: str, words: str) -> None:
    runs("other", name=file)
    with pytest.raises(FileNotFoundError, match=words):
        find_run("other")
