"""DeepSpeed's ZeRO on two processes: the steps of one process, saved and resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from scripts import run_script

PLANS = ["unipelt", "compacter", "xpeft"]
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

os.environ.setdefault("DS_ACCELERATOR", "cpu")
pytest.importorskip(
    "deepspeed", reason="deepspeed is not installed: DS_ACCELERATOR=cpu pip install deepspeed"
)
import zero_steps  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zero")
    run_script(zero_steps, str(folder), *PLANS, launcher=LAUNCHER)
    return folder


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("plan", PLANS)
def test_two_processes_take_the_same_steps(folder, plan, stage):
    whole, resumed = json.loads((folder / "losses.json").read_text())[f"{plan}-{stage}"]
    assert whole == pytest.approx(zero_steps.one_process(plan), abs=1e-5)
    assert resumed == pytest.approx(whole[zero_steps.HALF :], abs=1e-6)


@pytest.mark.parametrize("plan", PLANS)
def test_a_checkpoint_holds_nothing_of_the_base(folder, plan):
    (file,) = (folder / f"{plan}-2").glob("*/mp_rank_00_model_states.pt")
    state = torch.load(file, weights_only=False)["module"]  # DeepSpeed pickles its options
    trained = ("pelt", "classifier", *(["LayerNorm"] if plan == "compacter" else []))
    assert state and all(any(part in name for part in trained) for name in state)
