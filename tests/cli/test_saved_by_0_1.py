"""What version 0.1 saved loads: configurations of runs, checkpoints and adapters."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from lightning_pelt import S4, XPEFT, Compacter, PELTModule, load_adapters, profiles_of
from lightning_pelt.callbacks import GateSchedule
from lightning_pelt.cli import plan
from lightning_pelt.cli.base import PELTCLI, main

SAVED = Path(__file__).parent / "saved_by_0_1"
RUNS = ("gated", "profiles", "s4", "compacter")
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture(autouse=True)
def _files(monkeypatch: pytest.MonkeyPatch, _isolated: None, tmp_path: Path) -> None:
    """The working folder is a copy of the saved files, as their paths are relative to it."""
    monkeypatch.setattr(sys, "argv", ["lightning-pelt"])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    shutil.copytree(SAVED, tmp_path, dirs_exist_ok=True)


def batch(record: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(record[name]) for name in ("input_ids", "attention_mask")}


def recorded(folder: str) -> dict[str, Any]:
    return json.loads((SAVED / folder / "logits.json").read_text())


def assert_same(logits: torch.Tensor, record: dict[str, Any]) -> None:
    torch.testing.assert_close(logits, torch.tensor(record["logits"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("run", ["gated", "profiles"])
def test_a_checkpoint_gives_the_logits_of_then(run: str) -> None:
    module = PELTModule.load_from_checkpoint(f"{run}/fit.ckpt", weights_only=True).eval()
    assert module.model is not None
    record = recorded(run)
    rows = profiles_of(module, record["profiles"]) if "profiles" in record else nullcontext()
    with torch.no_grad(), rows:
        assert_same(module.model(**batch(record)).logits, record)


def test_adapters_give_the_logits_of_then() -> None:
    model = AutoModelForSequenceClassification.from_pretrained("backbone", num_labels=3)
    load_adapters(model, "adapters")
    record = recorded("adapters")
    with torch.no_grad():
        assert_same(model.eval()(**batch(record)).logits, record)


class Read(PELTCLI):
    """Builds everything and fits nothing."""

    def fit(self, **_: Any) -> None:
        """Leave the model as it is."""

    def after_fit(self) -> None:
        """Do not test."""


def deep_backbone() -> None:
    """The four blocks that the run of S4 had."""
    config = BertConfig.from_pretrained("backbone", num_hidden_layers=4)
    shutil.copytree("backbone", "deep")
    BertModel(config).save_pretrained("deep")


def glue() -> None:
    Path("glue").mkdir()
    for split in ("train", "dev"):
        rows = [{"text": f"one {i}", "label": i % 2} for i in range(8)]
        Path(f"glue/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.slow
def test_the_configuration_of_a_run_builds_the_same_run(run: str) -> None:
    deep_backbone()
    glue()
    read = main(["fit", f"--config={run}/config.yaml"], Read)
    saved = yaml.safe_load(Path(run, "config.yaml").read_text())
    again = yaml.safe_load(read.parser.dump(read.config, skip_none=False))["fit"]
    # A class may be public under a shorter path than then, and options may have been added.
    assert_within(saved, again)
    read.model.configure_model()
    methods = read.model.plan.methods
    kinds = {"profiles": XPEFT, "compacter": Compacter}
    assert run not in kinds or [type(method) for method in methods] == [kinds[run]]
    assert run != "s4" or read.model.plan == S4(0.3)
    schedules = [each for each in read.trainer.callbacks if isinstance(each, GateSchedule)]
    assert [*schedules[0].phases] == ["prefix", "lora"] if run == "gated" else not schedules


def assert_within(part: Any, whole: Any) -> None:
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "class_path":
                assert value.rpartition(".")[2] == whole[name].rpartition(".")[2]
            else:
                assert_within(value, whole[name])
    elif isinstance(part, list):
        assert len(part) == len(whole)
        for one, other in zip(part, whole, strict=True):
            assert_within(one, other)
    else:
        assert part == whole


@pytest.mark.slow
def test_a_run_is_tested_and_fitted_again_from_its_configuration() -> None:
    saved = ["--config=gated/config.yaml", *QUIET, "--trainer.logger=false"]
    tested = main(["test", *saved, "--ckpt_path=gated/fit.ckpt"])
    assert 0 <= tested.trainer.callback_metrics["test/accuracy"] <= 1
    fitted = main(["fit", *saved, "--test_after_fit=false"])
    assert fitted.trainer.global_step == 2


@pytest.mark.slow
def test_the_plan_of_a_run_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    plan.main(["--config=gated/config.yaml", "--data.labels=[high, low]"])
    assert "compacter" in capsys.readouterr().out
