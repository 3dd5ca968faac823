"""``lightning-pelt export``: a checkpoint of a run, or a folder of adapters, for PEFT."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from small import bert
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from lightning_pelt import LoRA, PELTModule, Plan, UniPELT, save_adapters
from lightning_pelt.cli import export
from lightning_pelt.cli.checkpoint_files import read_checkpoint
from lightning_pelt.cli.main import script
from lightning_pelt.exchange.peft import load_peft

ROWS = [("one two three", "low"), ("red green", "high"), ("four five", "low"), ("blue", "high")]
TOKENS = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4).long()}


def recipe(method: dict[str, Any]) -> dict[str, Any]:
    plan = {"class_path": "Plan", "init_args": {"groups": [{"methods": [method]}]}}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    files = dict.fromkeys(("train", "dev", "test"), "rows.csv")
    options = {**files, "batch_size": 2, "max_length": 16}
    return {
        "model": {"backbone": "bert", "plan": plan, "lr": 0.01},
        "data": {"class_path": "TextClassification", "init_args": options},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, **quiet},
    }


def write_checkpoint(path: Path, plan: Plan) -> PELTModule:
    """A checkpoint as a run writes it, of a module whose weights have an effect."""
    module = PELTModule("bert", plan, labels=["low", "high"])
    module.configure_model()
    assert module.attachment is not None and module.model is not None
    with torch.no_grad():
        for group in module.attachment.parameter_groups().values():
            for parameter in group:
                parameter.add_(0.1 * torch.randn_like(parameter))
    checkpoint = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": lightning.__version__,
    }
    torch.save(checkpoint, path)
    module.model.eval()
    return module


@pytest.fixture
def module(tmp_path) -> PELTModule:
    bert(Path("bert"))
    return write_checkpoint(Path("run.ckpt"), Plan.uniform(LoRA(r=2)))


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(**TOKENS).logits


def base() -> Any:
    return AutoModelForSequenceClassification.from_pretrained("bert", num_labels=2)


@pytest.mark.slow
def test_a_checkpoint_is_written_for_peft(module, capsys):
    export.main(["--checkpoint=run.ckpt", "--format=peft", "--output=out"])
    assert "peft adapter written to out: PeftModel.from_pretrained" in capsys.readouterr().out
    attachment = load_peft(base(), "out")
    assert torch.equal(logits(attachment.model), logits(module.model))
    assert json.loads(Path("out/adapter_config.json").read_text())["task_type"] == "SEQ_CLS"


def test_peft_computes_the_same(module):
    peft: Any = pytest.importorskip("peft")
    export.main(["--checkpoint", "run.ckpt", "--format", "peft", "--output", "out"])
    there = peft.AutoPeftModelForSequenceClassification.from_pretrained("out", num_labels=2)
    assert_close(logits(there), logits(module.model), atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_a_folder_of_adapters_and_a_backbone_that_has_moved(module):
    save_adapters(module.model, "adapters")
    shutil.move("bert", "moved")
    options = ["--format=peft", "--output=out", "--backbone=moved"]
    export.main(["--checkpoint=adapters", *options])
    shutil.move("moved", "bert")
    assert torch.equal(logits(load_peft(base(), "out").model), logits(module.model))
    export.main(["--checkpoint=run.ckpt", "--format=peft", "--output=again", "--backbone=bert"])
    assert torch.equal(logits(load_peft(base(), "again").model), logits(module.model))


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as exit:
        export.main(list(args))
    assert exit.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]  # after bars of transformers
    assert line.startswith("lightning-pelt export: ")
    return line


def test_mistakes_are_one_line(module, capsys):
    rest = ["--format=peft", "--output=out"]
    assert "there is no nowhere" in refused(capsys, "--checkpoint=nowhere", *rest)
    Path("text.ckpt").write_text("no checkpoint")
    assert "is not a checkpoint" in refused(capsys, "--checkpoint=text.ckpt", *rest)
    assert "whole model of transformers" in refused(capsys, "--checkpoint=bert", *rest)
    Path("shards").mkdir()
    Path("shards/meta.pt").touch()
    assert "consolidate_checkpoint" in refused(capsys, "--checkpoint=shards", *rest)
    assert "format" in refused(capsys, "--checkpoint=run.ckpt", "--format=pefd", "--output=out")
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_plan_that_peft_cannot_hold(tmp_path, capsys):
    bert(Path("bert"))
    write_checkpoint(Path("run.ckpt"), UniPELT())
    line = refused(capsys, "--checkpoint=run.ckpt", "--format=peft", "--output=out")
    assert "PEFT's format" in line and "distil_lora" in line
    assert not Path("out").exists()


@pytest.mark.slow
def test_after_fit(monkeypatch, capsys):
    bert(Path("bert"))
    with Path("rows.csv").open("w") as file:
        csv.writer(file).writerows([("text", "label"), *ROWS])
    method = {"class_path": "LoRA", "init_args": {"r": 2}}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe(method)))
    monkeypatch.setattr("sys.argv", ["lightning-pelt", "fit", "--config=recipe.yaml"])
    script()
    (saved,) = Path("checkpoints").glob("*.ckpt")
    export.main([f"--checkpoint={saved}", "--format=peft", "--output=out"])
    assert load_peft(base(), "out").counts["lora"].trained


@pytest.mark.parametrize("option", ["--checkpoint", "--ckpt_path"])
def test_messages_name_the_option_that_was_given(tmp_path, option):
    for path, error in ((tmp_path / "nowhere", FileNotFoundError), (tmp_path, ValueError)):
        with pytest.raises(error, match=f"{option} takes"):
            read_checkpoint(str(path), option=option)
