"""Other libraries beside this one in the step-time benchmark. No test depends on real times."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
from torch import nn

from lightning_pelt.benchmark import peers, timing
from lightning_pelt.benchmark.__main__ import main
from lightning_pelt.benchmark.contestants import PeerMethod, peers_of
from lightning_pelt.benchmark.plans import PLANS, preparation

TINY = timing.Setting(blocks=1, width=48, batch=2, length=8, threads=1)
SHRUNK = "--blocks 1 --width 48 --batch 2 --length 8 --threads 1 --rounds 1 --steps 1"


def trained(model: nn.Module) -> int:
    inside = {n: p for n, p in model.named_parameters() if "classifier" not in n}
    return sum(p.numel() for p in inside.values() if p.requires_grad)


def test_methods_are_named_like_plans_and_have_their_sizes() -> None:
    assert all(set(methods) <= set(PLANS) for methods in peers.METHODS.values())
    theirs = peers.METHODS["peft"]["lora"](TINY.model())
    assert trained(theirs) == trained(preparation("lora")(TINY.model())) == 4 * 8 * 48


@pytest.mark.slow
def test_a_run_with_peers(capsys: pytest.CaptureFixture[str]) -> None:
    """PEFT has no prefixes on BERT, which the run says."""
    main([*SHRUNK.split(), "--plans", "lora", "prefix", "head", "--peers"])
    printed = capsys.readouterr().out
    assert "\npeft:lora / lora: time " in printed
    assert "\npeft:floor / floor: time " in printed
    assert f"\n{sys.executable}: peft " in printed
    assert "\nnot measured: peft:prefix: ValueError: Model does not support past key" in printed
    assert "peft:head" not in printed


@pytest.mark.slow
def test_a_process_that_has_ended_is_named() -> None:
    with PeerMethod("peft:lora", TINY, python=sys.executable) as method:
        method._process.kill()
        with pytest.raises(RuntimeError, match="peft:lora: the process has ended"):
            method.memory()


def test_an_environment_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*SHRUNK.split(), "--peers", str(tmp_path / "python")])
    assert "No such file" in capsys.readouterr().err
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho no torch here >&2\nexit 1\n")
    other.chmod(0o755)
    with pytest.raises(ValueError, match=r"other cannot run the benchmark: no torch here"):
        peers_of(str(other))


@pytest.mark.skipif(sys.platform != "linux", reason="the peak cannot be reset elsewhere")
def test_the_peak_starts_from_the_idle_model() -> None:
    training = timing.TimedTraining(preparation("head"), TINY)
    size = 64 * 2**20
    with mmap.mmap(-1, size) as pages:  # new pages, unlike those of an allocator
        for page in range(0, size, mmap.PAGESIZE):
            pages[page] = 1
    assert training.memory_over_idle() >= 60 * 2**20
    assert timing.TimedTraining(preparation("head"), TINY).memory_over_idle() < 32 * 2**20
