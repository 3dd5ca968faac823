"""DDP on two processes takes the steps that one process takes on the same global batches."""

from __future__ import annotations

import pytest
from twenty_steps import COMPILED, assert_same, fit, half, last

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("two")
    fit(folder, tiny, strategy="ddp_fork", devices=2)
    return folder


def test_two_processes_take_the_same_steps(one, two):
    assert_same(last(one), last(two))
    assert_same(half(one), half(two))


@pytest.mark.nightly  # CI spawns the processes of a stranger's module
def test_spawned_processes_too(tmp_path, tiny, one):
    fit(tmp_path, tiny, strategy="ddp_spawn", devices=2)
    assert_same(last(one), last(tmp_path))


def test_from_one_to_two(tmp_path, tiny, one):
    fit(tmp_path, tiny, strategy="ddp_fork", devices=2, resume=half(one))
    assert_same(last(one), last(tmp_path))


def test_from_two_to_one(tmp_path, tiny, one, two):
    fit(tmp_path, tiny, resume=half(two))
    assert_same(last(one), last(tmp_path))


@pytest.mark.nightly
def test_compiled(tmp_path, tiny, one):
    compiled = {**COMPILED, "fullgraph": True}
    fit(tmp_path, tiny, strategy="ddp_fork", devices=2, compile=compiled)
    assert_same(last(one), last(tmp_path))


def test_bf16_mixed(tmp_path, tiny):
    """Sums of other halves round otherwise, so near is all there can be."""
    fit(tmp_path / "one", tiny, precision="bf16-mixed")
    fit(tmp_path / "two", tiny, precision="bf16-mixed", strategy="ddp_fork", devices=2)
    assert_same(last(tmp_path / "one"), last(tmp_path / "two"), within=2e-2)


def test_compacter_prompt_and_norms(tmp_path, tiny, one_compacter):
    fit(tmp_path, tiny, plan="compacter", strategy="ddp_fork", devices=2)
    assert_same(last(one_compacter), last(tmp_path))
