"""Fits that are killed and resumed end bitwise as one that is not; see ``killed_fits.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import dying_rank, killed_fits
from scripts import run_script
from small import bert

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert(tmp_path_factory.mktemp("backbone"))


def test_killed_fits(tmp_path: Path, backbone: str) -> None:
    run_script(killed_fits, str(tmp_path), backbone, *killed_fits.KINDS, "--kills", "3")


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [*killed_fits.KINDS])
def test_thirty_kills(tmp_path: Path, backbone: str, kind: str) -> None:
    run_script(killed_fits, str(tmp_path), backbone, kind, "--kills", "30", "--seed", "1")


STEP = ["on_train_batch_start", "on_train_batch_end", "on_after_backward"]
VALIDATION = ["on_validation_start", "on_validation_batch_start", "on_validation_epoch_end"]
FEW = ["on_after_backward:1", "on_validation_batch_start:0"]
ALL = [f"{hook}:{rank}" for hook in STEP + VALIDATION for rank in (0, 1)]


@pytest.mark.parametrize("places", [FEW, pytest.param(ALL, marks=pytest.mark.nightly)])
def test_one_of_two_processes_dies(tmp_path: Path, backbone: str, places: list[str]) -> None:
    """The other one ends with an error within a minute, without a launcher that watches both."""
    run_script(dying_rank, str(tmp_path), backbone, "SIGKILL", *places)


@pytest.mark.nightly
def test_one_of_two_processes_hangs(tmp_path: Path, backbone: str) -> None:
    """The ``timeout`` of the strategy ends the other one."""
    places = ["on_train_batch_start:0", "on_validation_batch_start:1"]
    run_script(dying_rank, str(tmp_path), backbone, "SIGSTOP", *places)
