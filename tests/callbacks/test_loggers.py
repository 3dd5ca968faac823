"""Each logger of a fit gets the same scalars, hyperparameters, pictures and tables."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
import yaml
from callbacks import offline_wandb
from callbacks.tiny import Tiny, loader, trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.image import imread

from lightning_pelt import GateMonitor, GateSchedule, ParameterCount, Phase
from lightning_pelt.reports.dashboard import SECTIONS, Lines

pytestmark = pytest.mark.slow  # one fit, with all loggers

Curves = dict[str, list[tuple[int, float]]]


class Logged(Tiny):
    """Logs its losses, and its learning rate as a hyperparameter."""

    def __init__(self, lr: float = 0.02) -> None:
        super().__init__(lr=lr)
        self.save_hyperparameters()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self(batch))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a fit of two epochs of three steps has left."""
    folder = tmp_path_factory.mktemp("loggers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.chdir(folder)
        loggers: list[Any] = [
            CSVLogger(folder, "csv", 0, flush_logs_every_n_steps=1),
            TensorBoardLogger(folder, "board", 0),
            WandbLogger(save_dir=folder / "wb", offline=True),
        ]
        if has_mlflow():
            loggers.append(MLFlowLogger("pelt", tracking_uri=f"file:{folder}/mlruns"))
        callbacks = [
            GateMonitor(every_n_steps=1),
            GateSchedule({"prefix": [Phase(until=1, state="closed")]}),
            ParameterCount(),
            LearningRateMonitor(),
        ]
        fit = trainer(folder, *callbacks, logger=loggers, max_epochs=2)
        try:
            fit.fit(Logged(), loader(3), loader(1))
        finally:
            wandb.finish()
            wandb.teardown()  # finish() alone may return before all of the file is written
        yield folder


def has_mlflow() -> bool:
    try:
        import mlflow  # noqa: F401
    except ImportError:
        return False
    return True


def csv_curves(folder: Path) -> Curves:
    with (folder / "csv/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = rows[0].keys() - {"step"}
    return {n: [(int(row["step"]), float(row[n])) for row in rows if row[n]] for n in names}


def board(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "board/version_0"), {"images": 0, "tensors": 0}).Reload()


def mlflow_run(folder: Path) -> tuple[Any, Any]:
    """A client, and the run."""
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(f"file:{folder}/mlruns")
    experiment = client.get_experiment_by_name("pelt")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def test_csv_has_every_value_also_of_names_that_appear_later(folder):
    curves = csv_curves(folder)
    assert len(curves["gate/00/lora.query"]) == len(curves["train/loss"]) == 6
    assert [step for step, _ in curves["val/loss"]] == [2, 5]
    assert [step for step, _ in curves["gate/mean/prefix"]] == [0, 1, 2, 3, 4, 5]
    sections = {name.partition("/")[0] for name in curves}
    assert sections == {"train", "val", "gate", "schedule", "lr-AdamW", "epoch"}


def test_tensorboard_has_the_scalars_of_csv(folder):
    events = board(folder)
    found = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
        if name != "hp_metric"  # of TensorBoard's table of hyperparameters
    }
    assert_same(found, csv_curves(folder))


def test_wandb_has_the_scalars_of_csv(folder):
    found: Curves = {}
    for row in offline_wandb.history(folder / "wb"):
        for name, value in row.items():
            if isinstance(value, int | float) and "trainer/global_step" in row:
                found.setdefault(name, []).append((row["trainer/global_step"], value))
    expected = csv_curves(folder)
    assert_same({name: found[name] for name in found.keys() & expected.keys()}, expected)


def test_mlflow_has_the_scalars_of_csv(folder):
    client, run = mlflow_run(folder)
    found = {
        name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    assert_same(found, csv_curves(folder))
    assert run.info.status == "FINISHED"


def assert_same(found: Curves, expected: Curves) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in values], name
        assert [v for _, v in found[name]] == pytest.approx([v for _, v in values]), name


def test_hyperparameters_and_counts_are_in_every_logger(folder):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    trained = 2 * 2 * (8 * 32 * 2)  # two blocks, query and value, A (8, 32) and B (32, 8)
    files = [folder / name / "version_0/hparams.yaml" for name in ("csv", "board")]
    content = board(folder).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    shown = HParamsPluginData.FromString(content).session_start_info.hparams
    every = [
        *(yaml.safe_load(file.read_text()) for file in files),
        {name: value.number_value for name, value in shown.items()},  # in TensorBoard's table
        offline_wandb.config(folder / "wb"),
    ]
    if has_mlflow():
        every.append({k: float(v) for k, v in mlflow_run(folder)[1].data.params.items()})
    for found in every:
        assert (found["lr"], found["parameters/lora/trained"]) == (0.02, trained)
        assert {"parameters/bytes", "parameters/total/share"} <= found.keys()


def test_the_picture_of_each_validation_is_in_every_logger(folder):
    files = sorted((folder / "csv/version_0/media/gate/heatmap").iterdir())
    assert [file.name for file in files] == ["00000002.png", "00000005.png"]
    height, width, _ = imread(files[0]).shape
    latest = folder / "csv/version_0/gates.png"  # in the folder of the first logger
    assert np.abs(imread(latest) - imread(files[1])).max() < 0.05
    assert not (folder / "gates.png").exists()
    images = board(folder).Images("gate/heatmap")
    assert [(image.step, image.height, image.width) for image in images] == [
        (2, height, width),
        (5, height, width),
    ]
    rows = [r for r in offline_wandb.history(folder / "wb") if "gate/heatmap/_type" in r]
    assert [(r["trainer/global_step"], r["gate/heatmap/height"]) for r in rows] == [
        (2, height),
        (5, height),
    ]


def test_the_gates_over_time_are_in_every_logger(folder):
    files = sorted((folder / "csv/version_0/media/gate/over_time").iterdir())
    assert [file.name for file in files] == ["00000002.png", "00000005.png"]
    size = imread(files[1]).shape[:2]
    assert imread(folder / "csv/version_0/gates_over_time.png").shape[:2] == size
    images = board(folder).Images("gate/over_time")
    assert [image.step for image in images] == [2, 5]
    assert (images[1].height, images[1].width) == size
    rows = [r for r in offline_wandb.history(folder / "wb") if "gate/over_time/_type" in r]
    assert [r["trainer/global_step"] for r in rows] == [2, 5]


def test_pictures_and_tables_in_mlflow(folder):
    client, run = mlflow_run(folder)
    paths = sorted(each.path for each in client.list_artifacts(run.info.run_id, "images"))
    steps = [path for path in paths if path.endswith(".png")]
    assert [path.split("+")[:3] for path in steps] == [
        [f"images/gate~{name}", "step", step] for name in ("heatmap", "over_time") for step in "25"
    ]
    picture = imread(client.download_artifacts(run.info.run_id, steps[0]))
    first = imread(folder / "csv/version_0/media/gate/heatmap/00000002.png")
    assert picture.shape[:2] == first.shape[:2]
    file = client.download_artifacts(run.info.run_id, "parameters/methods/00000000.json")
    table = json.loads(Path(file).read_text())
    assert table["columns"] == ["method", "trained", "deployed", "gates", "share"]
    expected = [list(row.values()) for row in csv_table(folder)]
    assert [row[:4] for row in table["data"]] == [row[:4] for row in expected]
    assert [row[4] for row in table["data"]] == pytest.approx([row[4] for row in expected])


def csv_table(folder: Path) -> list[dict[str, Any]]:
    file = folder / "csv/version_0/media/parameters/methods/00000000.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_table_of_methods(folder):
    rows = csv_table(folder)
    params = yaml.safe_load((folder / "csv/version_0/hparams.yaml").read_text())
    assert {row["method"] for row in rows} == {"lora", "adapter", "prefix"}
    for row in rows:
        for column in ("trained", "deployed", "gates", "share"):
            assert row[column] == params[f"parameters/{row['method']}/{column}"]
    (file,) = (folder / "wb").glob("**/media/table/parameters/methods_[0-9]*.table.json")
    assert json.loads(file.read_text())["data"] == [list(row.values()) for row in rows]
    chart = offline_wandb.config(folder / "wb")["_wandb/visualize/parameters/methods_chart"]
    assert chart["panel_config"]["fieldSettings"] == {"label": "method", "value": "trained"}
    (event,) = board(folder).Tensors("parameters/methods/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == list(rows[0])
    assert len(lines) == 2 + len(rows)


def test_the_dashboard_shows_each_scalar_once(folder):
    lines = [p for section in SECTIONS for p in section.panels if isinstance(p, Lines)]
    for name in csv_curves(folder).keys() - {"epoch"}:
        assert len([line for line in lines if re.match(line.pattern, name)]) == 1, name
