"""PELTModule on a quantised base: resuming, checkpoints, counts, and precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from callbacks.tiny import trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from quantised import layers, needs
from small import LABELS, Sentences, bert
from torch import Tensor

from lightning_pelt import LoRA, ParameterCount, PELTModule, Plan, UniPELT, attach
from lightning_pelt.attach import Attachment
from lightning_pelt.reports.base_bytes import bytes_of_base
from lightning_pelt.reports.plan_breakdown import break_down
from lightning_pelt.reports.plan_table import format_breakdown
from lightning_pelt.testing import tiny_bert

PLAN = Plan.uniform(LoRA(r=2, dropout=0.1))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert(tmp_path_factory.mktemp("bert"))


def module(backbone: str, **options: Any) -> PELTModule:
    needs("int8")
    return PELTModule(backbone, PLAN, labels=LABELS, lr=1e-2, **{"quantise": "int8", **options})


def fit(
    folder: Path, one: PELTModule, *callbacks: Any, resume: str | None = None, **options: Any
) -> dict[str, Tensor]:
    saving = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    defaults = {"max_epochs": 2, "enable_checkpointing": True}
    run = trainer(folder, saving, *callbacks, **{**defaults, **options})
    run.fit(one, datamodule=Sentences(one.backbone), ckpt_path=resume)
    return {name: tensor.clone() for name, tensor in one.state_dict().items()}


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(backbone, tmp_path):
    whole = fit(tmp_path / "whole", module(backbone))
    again = module(backbone)
    resumed = fit(tmp_path / "again", again, resume=str(tmp_path / "whole" / "epoch=0.ckpt"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert len(layers(again)) == 12


@pytest.mark.slow
def test_checkpoints_hold_nothing_of_the_base_and_restore_the_quantisation(backbone, tmp_path):
    state = fit(tmp_path, module(backbone))
    path = tmp_path / "epoch=1.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["hyper_parameters"]["quantise"] == "int8"
    assert not [n for n in saved["state_dict"] if "encoder" in n and "pelt" not in n.split(".")]
    loaded = PELTModule.load_from_checkpoint(path)
    assert len(layers(loaded)) == 12
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    with pytest.warns(UserWarning, match=r"int8 \(torchao\) there, not quantised here"):
        PELTModule.load_from_checkpoint(path, quantise=None)


@pytest.mark.slow
def test_a_run_does_not_continue_on_another_base(backbone, tmp_path):
    fit(tmp_path, module(backbone), max_epochs=1)
    message = r"trained with quantise='int8', and this run has quantise=None"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, module(backbone, quantise=None), resume=str(tmp_path / "epoch=0.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_precisions(kind, precision, backbone, tmp_path):
    needs(kind)
    one = module(backbone, quantise=kind)
    state = fit(tmp_path, one, precision=precision, max_epochs=1)
    assert all(tensor.isfinite().all() for tensor in state.values() if tensor.dim())
    assert layers(one)


@pytest.mark.slow
def test_the_bytes_of_the_base_are_printed_and_logged(backbone, tmp_path, capsys):
    one = module(backbone)
    logger = CSVLogger(tmp_path, name="", version="run")
    fit(tmp_path, one, ParameterCount(), max_epochs=1, logger=logger)
    logged = yaml.safe_load((tmp_path / "run" / "hparams.yaml").read_text())
    full = attach(tiny_of(backbone), PLAN)
    assert logged["parameters/backbone"] == full.backbone_size
    weights = 2 * (4 * 16 * 16 + 2 * 16 * 32)  # of two blocks
    channels = 2 * (5 * 16 + 32)
    saved = bytes_of_base(full).stored - logged["parameters/backbone_bytes"]
    assert 3 * weights - 8 * channels - 12 * 64 <= saved <= 3 * weights - 4 * channels
    line = next(
        each
        for each in capsys.readouterr().out.splitlines()
        if "backbone 2" in each or "(frozen" in each
    )
    assert "(frozen, int8 (torchao): " in line and " -> " in line


def tiny_of(backbone: str) -> Any:
    return PELTModule(backbone, PLAN, labels=LABELS).task.load(backbone, labels=LABELS)


def test_the_table_of_a_plan_shows_them():
    from quantised import quantised

    found: Attachment = attach(quantised(tiny_bert(), "int8"), UniPELT())
    base = bytes_of_base(found)
    assert base.dense == 4 * found.backbone_size > 2 * base.stored
    text = format_breakdown(break_down(found))
    assert f"backbone  {found.backbone_size:,}, frozen, int8 (torchao): " in text


def test_an_unknown_quantisation_is_refused_at_once():
    with pytest.raises(ValueError, match="unknown quantisation 'int4'"):
        PELTModule("any", quantise="int4")  # type: ignore[arg-type]
