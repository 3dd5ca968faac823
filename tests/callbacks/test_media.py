"""Pictures, tables and texts: what each logger gets, and what a fault of one does to the others."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.image import imread

from lightning_pelt.callbacks._media import log_media, log_numbers
from lightning_pelt.callbacks._sinks import Table, folder_of, markdown
from lightning_pelt.reports.figures import gate_heatmap

TABLE = Table(("step", "text"), [[3, "two\nlines | of <b>text</b>, é"], [3, "*"]])


class Plain(Logger):
    """A logger of a user, with the two compulsory attributes only."""

    def __init__(self, save_dir: Any = None, version: Any = 4) -> None:
        super().__init__()
        self._save_dir, self._version = save_dir, version

    name = "mine"
    version = property(lambda self: self._version)
    save_dir = property(lambda self: self._save_dir)

    def log_metrics(self, metrics: Any, step: Any = None) -> None: ...

    def log_hyperparams(self, params: Any) -> None: ...


class Trainer:
    """As much of a trainer as media need."""

    fast_dev_run = 0
    fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=12))

    def __init__(self, folder: Any, *loggers: Any, rank: int = 0) -> None:
        self.default_root_dir, self.loggers = str(folder), loggers
        self.is_global_zero = rank == 0


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_logger_without_pictures_gets_files(tmp_path):
    run: Any = Trainer(tmp_path, Plain(tmp_path / "logs"))
    log_media(run, "gate/heatmap", gate_heatmap({"00/lora": 0.5}))
    log_media(run, "val/samples", TABLE)
    log_media(run, "plan", "LoRA(r=8)\n")
    media = tmp_path / "logs/mine/version_4/media"
    assert files(media) == [
        "gate/heatmap/00000012.png",
        "plan/00000012.txt",
        "val/samples/00000012.jsonl",
    ]
    assert imread(media / "gate/heatmap/00000012.png").ndim == 3
    lines = (media / "val/samples/00000012.jsonl").read_text(encoding="utf-8").splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == [tuple(r) for r in TABLE.rows]
    assert (media / "plan/00000012.txt").read_text() == "LoRA(r=8)\n"


def test_without_a_logger_and_without_a_folder_the_files_are_in_the_root_folder(tmp_path):
    for number, loggers in enumerate(((), (Plain(),))):
        log_media(Trainer(tmp_path / str(number), *loggers), "plan", "text")  # type: ignore[arg-type]
        assert files(tmp_path / str(number)) == ["media/plan/00000012.txt"]


def test_the_root_folder_may_be_a_url():
    log_media(Trainer("memory://runs/media"), "plan", "text")  # type: ignore[arg-type]
    with fsspec.open("memory://runs/media/media/plan/00000012.txt", "rt") as file:
        assert file.read() == "text"


def test_the_folder_of_a_run(tmp_path):
    assert folder_of(CSVLogger(tmp_path, "a", version=2)) == str(tmp_path / "a/version_2")
    assert folder_of(Plain("gs://b/", "x")) == "gs://b/mine/x"
    assert folder_of(Plain("runs", None)) == "runs/mine"
    assert folder_of(Plain()) is None


def test_other_processes_and_trial_runs_write_nothing(tmp_path):
    log_media(Trainer(tmp_path, rank=1), "plan", "text")  # type: ignore[arg-type]
    log_media(Trainer(tmp_path, DummyLogger()), "plan", "text")  # type: ignore[arg-type]
    trial: Any = Trainer(tmp_path)
    trial.fast_dev_run = 1
    log_media(trial, "plan", "text")
    assert files(tmp_path) == []


def test_a_fault_is_named_once_and_harms_no_other_logger(tmp_path):
    broken = TensorBoardLogger(tmp_path)
    broken._experiment = SimpleNamespace()  # type: ignore[assignment]
    (tmp_path / "file").write_text("in the way")
    run: Any = Trainer(tmp_path, broken, Plain(tmp_path / "file"), Plain(tmp_path))
    with pytest.warns(UserWarning) as seen:
        log_media(run, "plan", "first")
    assert [str(each.message).partition(" failed, and")[0] for each in seen] == [
        "logging plan with TensorBoardLogger",
        "logging plan with Plain",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_media(run, "plan", "second")
    assert (tmp_path / "mine/version_4/media/plan/00000012.txt").read_text() == "second"
    with pytest.warns(UserWarning, match="logging notes with TensorBoardLogger failed"):
        log_media(run, "notes", "third")
    empty: Any = Trainer(tmp_path / "file")
    with pytest.warns(UserWarning, match="logging plan with Trainer failed.*NotADirectory|exists"):
        log_media(empty, "plan", "fourth")


def test_a_cell_of_markdown_stays_a_cell():
    plugin_util = pytest.importorskip("tensorboard.plugin_util")
    shown = plugin_util.markdown_to_safe_html(markdown(TABLE)).replace("<br />", "<br>")
    shown = shown.replace("&#124;", "|").replace("&#42;", "*")  # versions of TensorBoard differ
    assert shown.count("<tr>") == 3 and shown.count("<td>") == 4
    assert "<td>two<br>lines | of &lt;b&gt;text&lt;/b&gt;, é</td>" in shown
    assert "<td>*</td>" in shown


@pytest.mark.slow
def test_mlflow_has_the_table_of_each_step(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    logger = MLFlowLogger("pelt", tracking_uri=f"file:{tmp_path}/mlruns")
    run: Any = Trainer(tmp_path, logger)
    log_media(run, "val/samples", TABLE)
    log_media(run, "plan", "LoRA")
    client = logger.experiment
    file = client.download_artifacts(logger.run_id, "val/samples/00000012.json")
    assert json.loads(Path(file).read_text()) == {
        "columns": ["step", "text"],
        "data": [*TABLE.rows],
    }
    text = client.download_artifacts(logger.run_id, "plan/00000012.txt")
    assert Path(text).read_text() == "LoRA"
    for rank in (8, 8):
        log_numbers(run, None, {"parameters/lora": rank})  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="the numbers of parameters with MLFlowLogger failed"):
        log_numbers(run, None, {"parameters/lora": 4})  # type: ignore[arg-type]
    assert client.get_run(logger.run_id).data.params == {"parameters/lora": "8"}
    assert not (tmp_path / "media").exists()
