"""The commit of a model is read in the cache, where it is sure."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants
from transformers import BertConfig

from lightning_pelt.utils.hub_commit import commit_of

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path / "models--them--base"


def add(repo: Path, commit: str, weights: str | None) -> Path:
    """A commit in the cache: its weights are a link to the file that several commits share."""
    folder = repo / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    if weights is not None:
        (repo / "blobs").mkdir(exist_ok=True)
        (repo / "blobs" / weights).write_text(weights)
        (folder / "model.safetensors").symlink_to(Path("..", "..", "blobs", weights))
    return folder


def main(repo: Path, commit: str) -> None:
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / "main").write_text(commit)


def found(name: str = "them/base") -> str | None:
    config = BertConfig()
    config.name_or_path = name
    return commit_of(config)


def test_the_only_commit_with_weights_is_that_of_the_model(repo: Path) -> None:
    assert found() is None
    add(repo, OLD, "one")
    add(repo, NEW, None)  # of a tokenizer
    main(repo, NEW)
    assert found() == OLD


def test_of_several_with_equal_weights_it_is_the_one_of_the_branch(repo: Path) -> None:
    for commit in (OLD, NEW):
        add(repo, commit, "one")
    main(repo, NEW)
    assert found() == NEW


def test_several_with_other_weights_do_not_tell(repo: Path) -> None:
    add(repo, OLD, "one")
    add(repo, NEW, "two")
    main(repo, NEW)
    assert found() is None


def test_a_folder_has_no_commit(repo: Path) -> None:
    assert found(str(add(repo, OLD, "one"))) is None
    assert found("") is None


def test_what_transformers_says_comes_first(repo: Path) -> None:
    config = BertConfig()
    config.name_or_path, config._commit_hash = "them/base", NEW
    add(repo, OLD, "one")
    assert commit_of(config) == NEW
