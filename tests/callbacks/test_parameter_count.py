"""The printed and logged numbers of parameters, against counting by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import yaml
from callbacks.tiny import Tiny, loader, trainer
from lightning.pytorch.loggers import CSVLogger

from lightning_pelt import LoRA, Plan
from lightning_pelt.callbacks.parameter_count import ParameterCount, count


def apl() -> SimpleNamespace:
    """UniPELT APL on BERT-base, with the published counts."""
    return SimpleNamespace(
        counts={
            "lora": SimpleNamespace(trained=294_912, deployed=294_912, gates=18_456),
            "prefix": SimpleNamespace(trained=9_857_024, deployed=184_320, gates=9_228),
            "adapter": SimpleNamespace(trained=894_528, deployed=894_528, gates=9_228),
        },
        backbone_size=109_482_240,
        head_size=1_538,
        model=torch.nn.Linear(2, 2),
        owned=frozenset(),
        plan=SimpleNamespace(train_base=False),
    )


def test_the_published_numbers_of_unipelt():
    numbers = count(apl())
    assert numbers["parameters/total/deployed"] == 1_373_760
    assert numbers["parameters/total/deployed"] + numbers["parameters/total/gates"] == 1_410_672
    assert numbers["parameters/total/share"] == pytest.approx(1.2885, abs=1e-4)
    assert numbers["parameters/prefix/trained"] == 9_857_024
    assert numbers["parameters/prefix/share"] == pytest.approx(100 * 193_548 / 109_482_240)
    assert numbers["parameters/head"] == 1_538
    assert numbers["parameters/trained"] == 11_084_914


def test_bytes_are_those_of_the_owned_tensors_in_their_dtypes():
    attachment = apl()
    attachment.model = torch.nn.Sequential(
        torch.nn.Linear(3, 5).to(torch.bfloat16), torch.nn.Linear(5, 7)
    )
    attachment.owned = frozenset({"0.weight", "1.bias"})
    assert count(attachment)["parameters/bytes"] == 15 * 2 + 7 * 4


def test_a_fit_prints_a_table_and_logs_every_number_once(tmp_path, capsys):
    module = Tiny(plan=Plan.uniform(LoRA(r=2)))
    trainer(tmp_path, ParameterCount()).fit(module, loader(1))
    # two blocks, query and value, each a (2, 32) and a (32, 2)
    row = ["lora", "512", "512", "0"]
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in out if line.startswith("lora")] == [row]
    assert sum(line.startswith("total") for line in out) == 1
    logged = yaml.safe_load((tmp_path / "run" / "hparams.yaml").read_text())
    assert logged["parameters/lora/trained"] == 512
    assert logged["parameters/head"] == 32 * 3 + 3
    backbone = logged["parameters/backbone"]
    assert logged["parameters/lora/share"] == pytest.approx(100 * 512 / backbone)
    assert logged["parameters/bytes"] == 4 * (512 + 32 * 3 + 3)


def test_every_logger_gets_them(tmp_path):
    loggers = [CSVLogger(tmp_path / name, name="", version="run") for name in "ab"]
    trainer(tmp_path, ParameterCount(), logger=loggers).fit(Tiny(), loader(1))
    for name in "ab":
        logged = yaml.safe_load((tmp_path / name / "run" / "hparams.yaml").read_text())
        assert logged["parameters/adapter/gates"] == 2 * (32 + 1)
        assert "parameters/total/share" in logged
