"""A run that is interrupted after any step, and again after any later one, is the whole run."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from small import bert
from training.continued import Run, assert_continues, every_step, tuned

OPTIONS: dict[str, dict[str, Any]] = {
    "each-epoch": {},
    "every-third-epoch": {"check_val_every_n_epoch": 3},
    "no-validation": {"limit_val_batches": 0},
    "max-steps": {"max_steps": 8},
    "within-epochs": {"val_check_interval": 2, "batches": 4, "max_epochs": 2},
    "across-epochs": {"val_check_interval": 4, "check_val_every_n_epoch": None},
    "part-of-the-data": {"limit_train_batches": 3, "batches": 5, "check_val_every_n_epoch": 2},
    "reloaded": {"reload_dataloaders_every_n_epochs": 1, "num_sanity_val_steps": 2},
    "accumulated": {"accumulate_grad_batches": 2, "batches": 5, "max_epochs": 2},
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert(tmp_path_factory.mktemp("backbone"))


def interrupted(folder: Path, backbone: str, *steps: int, **options: Any) -> Run:
    """The end of a run that begins again after each of ``steps``, from its last checkpoint."""
    tuned(folder / "0", backbone, every_step(folder / "0"), **options)
    for last, step in pairwise((0, *steps)):
        checkpoint = folder / str(last) / f"step={step}.ckpt"
        here = folder / str(step)
        run = tuned(here, backbone, every_step(here), resume=checkpoint, **options)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("options", ["each-epoch", "every-third-epoch", "no-validation"])
def test_interrupted_at_ends_of_epochs(tmp_path, backbone, options):
    """At the end of the first epoch, and of the second."""
    whole = tuned(tmp_path / "whole", backbone, **OPTIONS[options])
    assert_continues(interrupted(tmp_path, backbone, 3, 6, **OPTIONS[options]), whole)


@pytest.mark.parametrize(
    ("options", "steps"),
    [("max-steps", (3, 6)), ("within-epochs", (2, 3)), ("accumulated", (1, 3))],
)
@pytest.mark.slow
def test_interrupted_twice(tmp_path, backbone, options, steps):
    whole = tuned(tmp_path / "whole", backbone, **OPTIONS[options])
    assert_continues(interrupted(tmp_path, backbone, *steps, **OPTIONS[options]), whole)


@pytest.mark.slow
def test_the_runs_would_tell_a_difference(tmp_path, backbone):
    """Validations close gates, and gates change what the rest of the run does."""
    whole = tuned(tmp_path / "a", backbone)
    assert whole.kinds == ["batch", "batch", "batch", "validation", "epoch"] * 3
    assert 0 < len(whole.pruned["pruned"]) < 8
    without = tuned(tmp_path / "b", backbone, limit_val_batches=0)
    with pytest.raises(AssertionError):
        assert_continues(without, whole)


@pytest.mark.nightly
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_pair_of_interruptions(tmp_path, backbone, options):
    first = tmp_path / "whole"
    whole = tuned(first, backbone, every_step(first), **options)
    checkpoints = sorted(first.glob("*.ckpt"))
    assert len(checkpoints) == whole.trainer.global_step
    for one in checkpoints:
        folder = tmp_path / one.stem
        assert_continues(tuned(folder, backbone, every_step(folder), resume=one, **options), whole)
        for other in sorted(folder.glob("*.ckpt")):
            assert_continues(tuned(tmp_path, backbone, resume=other, **options), whole)
