"""The commit of a model that was loaded from the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from transformers import PreTrainedConfig

WEIGHTS = ("*.safetensors", "*.bin")


def commit_of(config: PreTrainedConfig) -> str | None:
    """The commit that a model was loaded from; None for a folder, or if the cache does not tell.

    transformers 5 no longer keeps the commit. The cache of huggingface_hub has a folder per commit.
    If several of them hold different weights, nothing says which of them were loaded.

    Example:
        >>> from transformers import BertConfig
        >>> commit_of(BertConfig()) is None
        True
    """
    known: str | None = getattr(config, "_commit_hash", None)
    name = config.name_or_path
    if known or not name or name.count("/") > 1 or Path(name).is_dir():
        return known
    repo = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"))
    found = {path.name: _weights(path) for path in (repo / "snapshots").glob("*")}
    loaded = {commit: weights for commit, weights in found.items() if weights}
    if len(loaded) > 1 and len(set(loaded.values())) > 1:
        return None
    main = repo / "refs" / "main"
    default = main.read_text().strip() if main.is_file() else None
    return default if default in loaded else next(iter(sorted(loaded)), None)


def _weights(snapshot: Path) -> frozenset[tuple[str, Path]]:
    """The files of weights in a commit, as the cache stores them: equal ones once."""
    files = (file for pattern in WEIGHTS for file in snapshot.rglob(pattern))
    return frozenset((str(file.relative_to(snapshot)), file.resolve()) for file in files)
