"""The gates' numbers arrive in every logger, and they are the right ones."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import wandb
from callbacks.offline_wandb import history
from callbacks.tiny import Tiny, loader, trainer
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from matplotlib.image import imread
from zoo import build

from lightning_pelt import LoRA, Plan, UniPELT, attach
from lightning_pelt.attach import find_attachments
from lightning_pelt.callbacks._gate_means import GateMeans
from lightning_pelt.callbacks.gate_monitor import GateMonitor, gate_table, summarise

SITES = ("lora.query", "lora.value", "adapter")


class View:
    """As much of a gate as a reading needs."""

    def __init__(self, name: str, value: list) -> None:
        self.name, self.method = name, name.partition("/")[2].partition(".")[0]
        self.value = torch.tensor(value)


def logged(folder: Path) -> dict[str, list[float]]:
    with (folder / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {k: [float(row[k]) for row in rows if row[k]] for k in rows[0]}


def test_means_and_spreads_by_hand():
    gates = [
        View("00/lora.query", [0.2, 0.6]),  # mean 0.4, deviation 0.2
        View("01/lora.query", [0.5, 0.5]),  # 0.5, 0
        View("00/adapter", [[0.0, 0.2, 0.4], [0.6, 0.8, 1.0]]),  # examples 0.2, 0.8: 0.5, 0.3
        View("00/prefix", 0.7),  # one openness for all examples
    ]
    means, scalars = summarise({gate.name: gate for gate in gates})
    assert means == pytest.approx(
        {"00/lora.query": 0.4, "01/lora.query": 0.5, "00/adapter": 0.5, "00/prefix": 0.7}
    )
    assert scalars == pytest.approx(
        {
            **{f"gate/{name}": mean for name, mean in means.items()},
            "gate/mean/lora": 0.45,
            "gate/spread/lora": 0.1,
            "gate/mean/adapter": 0.5,
            "gate/spread/adapter": 0.3,
            "gate/mean/prefix": 0.7,
            "gate/spread/prefix": 0.0,
        }
    )


def test_each_example_of_a_packed_row_counts_once():
    """Rows of two examples and of one example and padding; their gates are 0.2, 0.8 and 0.5."""
    batch = {"position_ids": torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]])}
    values = [[0.1, 0.2, 0.3, 0.7, 0.9], [0.4, 0.6, 9.0, 9.0, 9.0]]
    gates = {"00/lora": View("00/lora", values), "00/prefix": View("00/prefix", 0.7)}
    means, scalars = summarise(gates, batch)
    assert means == pytest.approx({"00/lora": 0.5, "00/prefix": 0.7})
    assert scalars["gate/spread/lora"] == pytest.approx((2 * 0.3**2 / 3) ** 0.5)
    whole = GateMeans(gates, torch.device("cpu"))
    whole.update(batch)
    whole.update({"input_ids": torch.ones(2, 5)})  # not packed: the means of its two rows
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda sums, reduce_op: sums))
    rows = [sum(row) / 5 for row in values]
    found = whole.compute(trainer)
    assert found["00/lora"] == pytest.approx((0.2 + 0.8 + 0.5 + sum(rows)) / 5)
    assert found["00/prefix"] == pytest.approx(0.7)
    masked = {**batch, "attention_mask": torch.ones(2, 5)}
    assert summarise(gates, masked)[0]["00/lora"] == pytest.approx(sum(rows) / 2)


class Values(Callback):
    """Keeps every training batch's gates, read the slow way."""

    def __init__(self) -> None:
        self.means: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        gates = pl_module.attachment.gates
        self.means.append({name: gate.value.mean().item() for name, gate in gates.items()})


def test_curves_reach_the_csv_logger_every_n_steps(tmp_path):
    values = Values()
    monitor = GateMonitor(every_n_steps=2)
    trainer(tmp_path, values, monitor, limit_val_batches=0).fit(Tiny(), loader(5))
    found = logged(tmp_path)
    names = {f"{block}/{site}" for block in ("00", "01") for site in SITES}
    assert names <= set(values.means[0])
    for name in values.means[0]:
        expected = [values.means[step][name] for step in (0, 2, 4)]
        assert found[f"gate/{name}"] == pytest.approx(expected), name
    assert len(set(found["gate/00/adapter"])) == 3, "training should move the gate"
    assert {"gate/mean/lora", "gate/spread/lora", "gate/mean/adapter"} <= set(found)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["gate/mean/lora"]]
    assert steps == [0, 2, 4]


def test_an_accumulated_gradient_is_one_step(tmp_path):
    fit = trainer(tmp_path, GateMonitor(every_n_steps=1), accumulate_grad_batches=2)
    fit.fit(Tiny(), loader(4))
    assert len(logged(tmp_path)["gate/mean/lora"]) == 2


@pytest.mark.slow
def test_curves_and_picture_reach_an_offline_wandb_run(tmp_path):
    values = Values()
    logger = WandbLogger(offline=True, save_dir=tmp_path, project="gates")
    fit = trainer(tmp_path, values, GateMonitor(every_n_steps=1), logger=logger)
    try:
        fit.fit(Tiny(), loader(3), loader(1))
    finally:
        wandb.finish()
        wandb.teardown()  # finish() alone may return before all of the file is written
    rows = history(tmp_path)
    for name in values.means[0]:
        series = [row[f"gate/{name}"] for row in rows if f"gate/{name}" in row]
        assert series == pytest.approx([means[name] for means in values.means]), name
    steps = [r["trainer/global_step"] for r in rows if "gate/mean/lora" in r]
    assert steps == [0, 1, 2]
    (picture,) = [row for row in rows if row.get("gate/heatmap/_type") == "images/separated"]
    (file,) = tmp_path.glob("**/gate/heatmap*.png")
    size = imread(file).shape[:2]
    assert size == (picture["gate/heatmap/height"], picture["gate/heatmap/width"])


@pytest.mark.slow
def test_the_picture_reaches_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="run")
    trainer(tmp_path, GateMonitor(), logger=logger).fit(Tiny(), loader(2), loader(1))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert len(events.Images("gate/heatmap")) == 1
    assert "gate/mean/lora" in events.Tags()["scalars"]
    assert (tmp_path / "run" / "gates.png").is_file()


@pytest.mark.slow
def test_the_heat_map_shows_means_over_all_validation_examples(tmp_path, monkeypatch):
    """Batches of 4, 4 and 1: an example counts the same in each."""
    from lightning_pelt.reports import figures as plots

    drawn, examples = [], []

    class Examples(Callback):
        def on_validation_batch_end(self, trainer, pl_module, *args):
            if not trainer.sanity_checking:
                examples.extend(pl_module.attachment.gates["01/adapter"].value.tolist())

    original = plots.gate_heatmap
    monkeypatch.setattr(plots, "gate_heatmap", lambda g: drawn.append(g) or original(g))
    validation = loader(3)
    validation = torch.utils.data.DataLoader(validation.dataset[:9], batch_size=4)
    monitor = GateMonitor()
    fit = trainer(tmp_path, monitor, Examples(), num_sanity_val_steps=1)
    fit.fit(Tiny(), loader(1), validation)
    assert len(examples) == 9
    assert len(drawn) == 1, "the sanity check draws nothing"
    assert drawn[0]["01/adapter"] == pytest.approx(sum(examples) / 9)
    assert monitor.latest == drawn[0]
    assert imread(tmp_path / "run" / "gates.png").ndim == 3


def test_without_a_logger_the_picture_lies_in_the_root_folder(tmp_path):
    trainer(tmp_path, GateMonitor(), logger=False).fit(Tiny(), loader(1), loader(1))
    assert (tmp_path / "gates.png").is_file()


def test_validating_alone_draws_too(tmp_path):
    trainer(tmp_path, GateMonitor(), logger=False).validate(Tiny(), loader(1), verbose=False)
    assert (tmp_path / "gates.png").is_file()


def test_the_picture_can_be_switched_off(tmp_path, capsys):
    monitor = GateMonitor(heatmap=False, table=False)
    trainer(tmp_path, monitor).fit(Tiny(), loader(1), loader(1))
    assert not list(tmp_path.glob("**/*.png"))
    assert "Mean gate" not in capsys.readouterr().out


def test_fast_dev_run_writes_nothing(tmp_path):
    trainer(tmp_path, GateMonitor(), logger=False, fast_dev_run=True).fit(
        Tiny(), loader(1), loader(1)
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_table_at_the_end(tmp_path, capsys):
    monitor = GateMonitor()
    trainer(tmp_path, monitor).fit(Tiny(), loader(2), loader(1))
    out = capsys.readouterr().out
    assert gate_table(monitor.latest) in out
    (row,) = [line for line in out.splitlines() if line.startswith("01 ")]
    assert f"{monitor.latest['01/adapter']:.3f}" in row.split()


def test_a_table_by_hand():
    table = gate_table({"00/lora.query": 0.5, "01/lora.query": 0.25, "01/adapter": 1.0})
    assert table.splitlines() == [
        "block      lora.query    adapter",
        "-------  ------------  ---------",
        "00              0.500",
        "01              0.250      1.000",
    ]


def test_no_gates_is_said_once(tmp_path):
    fit = trainer(tmp_path, GateMonitor(), max_epochs=2)
    with pytest.warns(UserWarning, match="no gates to monitor") as warned:
        fit.fit(Tiny(plan=Plan.uniform(LoRA())), loader(1), loader(1))
    assert sum("no gates to monitor" in str(w.message) for w in warned) == 1
    assert not list(tmp_path.glob("**/*.png"))


def test_reading_waits_for_the_device_once(monkeypatch):
    waits = []
    for name in ("tolist", "item", "cpu", "__float__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda s, n=name, o=original: waits.append(n) or o(s)
        )
    summarise({f"{i:02d}/lora": View(f"{i:02d}/lora", [0.1, 0.9]) for i in range(48)})
    assert waits == ["tolist"]


def test_every_n_steps_must_be_a_step():
    with pytest.raises(ValueError, match="every_n_steps=0"):
        GateMonitor(every_n_steps=0)


class Pair(Tiny):
    """Two models with plans of their own, attached by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.other = build("bert", seed=1)
        attach(self, UniPELT([LoRA(r=2)]), path="other")

    def training_step(self, batch, index):
        return super().training_step(batch, index) + self.other(**batch).loss


@pytest.mark.slow
def test_gates_of_two_models(tmp_path):
    module = Pair()
    monitor = GateMonitor(every_n_steps=1)
    fit = trainer(tmp_path, monitor)
    fit.fit(module, loader(2), loader(1))
    counts = {path: len(a.gates) for path, a in find_attachments(module).items()}
    assert len(counts) == 2
    for path, count in counts.items():
        assert sum(name.startswith(f"{path}.0") for name in monitor.latest) == count > 0
        assert sum(key.startswith(f"gate/{path}.0") for key in logged(tmp_path)) == count


class SameEverywhere(Callback):
    def on_train_end(self, trainer, pl_module):
        monitor = next(c for c in trainer.callbacks if isinstance(c, GateMonitor))
        values = torch.tensor(list(monitor.latest.values()))
        both = pl_module.all_gather(values)
        assert len(values) >= 6
        assert torch.equal(both[0], both[1])
        keys = sorted(k for k in trainer.callback_metrics if k.startswith("gate/"))
        digest = pl_module.all_gather(torch.tensor(float(sum(map(len, keys)))))
        assert digest[0] == digest[1] > 0


@pytest.mark.slow
def test_two_processes_agree_on_the_validation_and_write_one_picture(tmp_path):
    fit = trainer(tmp_path, GateMonitor(), SameEverywhere(), strategy="ddp_fork", devices=2)
    fit.fit(Tiny(), loader(4), loader(4, seed=1))
    assert (tmp_path / "run" / "gates.png").is_file()
