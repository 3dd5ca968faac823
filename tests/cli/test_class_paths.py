"""Class paths of version 0.1 in recipes and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from small import bert

from lightning_pelt import Adapter, Gate, LoRA, UniPELT
from lightning_pelt.callbacks import GateMonitor
from lightning_pelt.cli.base import main
from lightning_pelt.cli.class_paths import update_paths

MOVED = {
    "lightning_pelt.plan.UniPELT": "lightning_pelt.UniPELT",
    "lightning_pelt.gate.Gate": "lightning_pelt.Gate",
    "lightning_pelt.schedule.Phase": "lightning_pelt.Phase",
    "lightning_pelt.module.PELTModule": "lightning_pelt.PELTModule",
    "lightning_pelt.design_space.plans.S4": "lightning_pelt.S4",
    "lightning_pelt.profiles.bank.RandomBank": "lightning_pelt.RandomBank",
    "lightning_pelt.data.profiles.ProfileDataModule": "lightning_pelt.ProfileDataModule",
    "lightning_pelt.data.readers.SimulatedReaders": "lightning_pelt.SimulatedReaders",
    "lightning_pelt.callbacks.temperature.MaskTemperature": "lightning_pelt.MaskTemperature",
    "lightning_pelt.callbacks.predictions.WritePredictions": "lightning_pelt.WritePredictions",
    "lightning_pelt.tasks.seq2seq.TextToText": "lightning_pelt.tasks.TextToText",
    "lightning_pelt.data.seq2seq.TextToText": "lightning_pelt.data.TextToText",
}
KEPT = [
    "lightning_pelt.LoRA",
    "lightning_pelt.methods.lora.LoRA",
    "lightning_pelt.methods.xpeft.XPEFT",
    "lightning_pelt.callbacks.gate_monitor.GateMonitor",
    "lightning_pelt.tasks.classification.Classification",
    "lightning_pelt.nowhere.Nothing",
    "my.lightning_pelt.plan.UniPELT",
    "runs/lightning_pelt.plan.UniPELT",
]


@pytest.mark.parametrize(("then", "now"), MOVED.items())
def test_a_moved_class_has_its_public_path(then: str, now: str) -> None:
    assert update_paths(then) == now
    data = {"plan": [{"class_path": then, "init_args": {"n": 1}}]}
    assert update_paths(data)["plan"][0] == {"class_path": now, "init_args": {"n": 1}}
    assert yaml.safe_load(update_paths(yaml.safe_dump(data))) == update_paths(data)


@pytest.mark.parametrize("path", KEPT)
def test_other_text_stays(path: str) -> None:
    assert update_paths(f"a: {path}") == f"a: {path}"


RECIPE = """
model:
  plan:
    class_path: lightning_pelt.plan.UniPELT
    init_args:
      methods:
        - {class_path: lightning_pelt.methods.lora.LoRA, init_args: {r: 2}}
        - {class_path: lightning_pelt.methods.adapter.Adapter, init_args: {bottleneck: 4}}
      gate: {pool: all}
trainer:
  logger: false
  callbacks: [{class_path: lightning_pelt.callbacks.monitor.GateMonitor}]
data:
  class_path: lightning_pelt.data.tables.TextClassification
  init_args: {train: rows.csv}
"""


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    Path("rows.csv").write_text("text,label\none,low\ntwo,high\n")
    return f"--model.backbone={bert(tmp_path / 'bert')}"


@pytest.mark.slow
def test_a_recipe_of_0_1_loads(backbone: str) -> None:
    Path("recipe.yaml").write_text(RECIPE)
    built = main(["--config=recipe.yaml", backbone], run=False)
    expected = UniPELT([LoRA(r=2), Adapter(bottleneck=4)], gate=Gate(pool="all"))
    assert built.model.plan == expected
    assert any(isinstance(each, GateMonitor) for each in built.trainer.callbacks)


def test_a_recipe_of_a_plan_alone_loads(backbone: str) -> None:
    Path("plan.yaml").write_text(yaml.safe_dump(yaml.safe_load(RECIPE)["model"]["plan"]))
    rows = ["--data=TextClassification", "--data.train=rows.csv", "--trainer.logger=false"]
    built = main([backbone, *rows, "--model.plan=plan.yaml"], run=False)
    assert built.model.plan.methods[0].r == 2


def test_the_command_line_of_0_1_is_understood(backbone: str) -> None:
    options = ["--data=TextClassification", "--data.train=rows.csv", "--trainer.logger=false"]
    plan = ["--model.plan=lightning_pelt.plan.UniPELT", "--model.plan.norms=true"]
    assert main([backbone, *options, *plan], run=False).model.plan == UniPELT(norms=True)
