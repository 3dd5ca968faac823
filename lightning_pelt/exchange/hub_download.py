"""Downloads adapters from the hub, and nothing else of their repository."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from lightning_pelt.exchange.hub_errors import hub_errors
from lightning_pelt.utils.adapter_format import CONFIG, TENSORS
from lightning_pelt.utils.formats import OURS, format_of

TOKENIZER = (  # files of tokenizers and processors; none of them can hold a pickle
    *("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("chat_template*", "preprocessor_config.json"),
)


def download(repo: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Download the adapters in a repository, and its tokenizer if it has one; no other files.

    Args:
        repo: ``"name/repository"``.
        revision: branch, tag or commit.
        token: of the hub.

    Returns:
        The folder in the cache.

    Raises:
        OSError: as :func:`from_hub`.
    """
    patterns = [TENSORS, CONFIG, *TOKENIZER]
    with hub_errors(repo, revision=revision):
        folder = snapshot_download(repo, revision=revision, token=token, allow_patterns=patterns)
    path = Path(folder)
    if (path / TENSORS).is_file():
        return path
    instead, found = "", format_of(path)
    if found is not None and found != OURS:
        instead = (
            f": it is {found.what}. Download it with huggingface_hub.snapshot_download({repo!r}), "
            f"and load it with {found.loader}"
        )
    raise FileNotFoundError(
        f"{repo} on the hub has no {TENSORS}, which push_to_hub uploads{instead}"
    )


def looks_like_a_folder(name: str) -> bool:
    """Whether a name is that of a folder or file, and not of a repository.

    Example:
        >>> looks_like_a_folder("./adapters"), looks_like_a_folder("me/adapters")
        (True, False)
    """
    path = Path(name).expanduser()
    return path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
