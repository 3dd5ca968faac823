"""Many profiles in one fit, with one process and with two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from profiles import sharded_profiles
from profiles.training import fit
from scripts import run_script
from small import bert
from twenty_steps import assert_same

from lightning_pelt.methods.xpeft.masks import Masks, masks_of
from lightning_pelt.profiles import read_profile, write_profile


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("backbone")
    return bert(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.mark.parametrize("own", ["shared", "profile"])
def test_profiles_in_the_data_are_trained_and_others_are_not(
    tmp_path: Path, backbone: str, own: str
) -> None:
    masks = masks_of(fit(tmp_path, backbone, norm=own, head=own))
    fresh = Masks(
        profiles=1,
        sites=2,
        size=12,
        k=4,
        scale=8.0,
        temperature=1.0,
        noise=0.0,
        init_std=0.01,
        bottleneck=4,
        norm=None,
    )
    spread = [float(logits.abs().max()) for logits in masks.logits]
    assert min(spread[:3]) > 0.1  # ten steps of Adam at 0.05
    assert spread[3] < 4 * float(fresh.logits[0].std()) + 0.04  # as drawn at the start
    assert masks.temperature == 1.0
    if own == "profile":
        assert torch.equal(masks.norms[3][:, 0], torch.ones(2, 4))


@pytest.mark.slow
def test_two_processes_take_the_same_steps(tmp_path: Path, backbone: str) -> None:
    """A profile of one rank's batch is updated on both ranks, an absent profile on none."""
    fit(tmp_path / "one", backbone, norm="profile")
    strategy = DDPStrategy(start_method="fork", find_unused_parameters=True)
    fit(tmp_path / "two", backbone, norm="profile", strategy=strategy, devices=2)
    assert_same(tmp_path / "one" / "last.ckpt", tmp_path / "two" / "last.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_two_sharded_processes_take_the_same_steps(
    tmp_path: Path, backbone: str, accumulate: int
) -> None:
    """Their batches have different profiles, and each profile a norm and a head."""
    fit(tmp_path / "one", backbone, norm="profile", head="profile", accumulate=accumulate)
    options = ("--accumulate", str(accumulate))
    run_script(sharded_profiles, str(tmp_path), backbone, *options, ranks=2)
    assert_same(tmp_path / "one" / "last.ckpt", tmp_path / "last.ckpt")


@pytest.mark.slow
def test_a_written_profile_can_be_trained(tmp_path: Path, backbone: str) -> None:
    module = fit(tmp_path, backbone)
    kept = read_profile(module, 0)
    write_profile(module, 2, kept)
    assert read_profile(module, 2) == kept
    assert masks_of(module).logits[2].std() > 0
    other = fit(tmp_path, backbone, profiles=5, mask="soft")
    with pytest.raises(ValueError, match="k 4, and the model's plan None"):
        write_profile(other, 0, kept)
