"""Trained models and existing stores, opened for use."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_pelt.methods.xpeft.masks import masks_of
from lightning_pelt.profiles.store import ProfileStore
from lightning_pelt.training.module import PELTModule

Dtype = Literal["float32", "bfloat16", "float16"]


def load_model(
    checkpoint: str | Path, device: str = "cpu", *, dtype: Dtype | None = None
) -> PELTModule:
    """Load a checkpoint with X-PEFT in eval mode; pickled objects are not loaded.

    Args:
        checkpoint: of ``lightning-pelt fit``.
        device: to which the model is moved.
        dtype: of the base's weights; by default that of the training.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the backbone of the checkpoint cannot be loaded.
        ValueError: the file is not a checkpoint of ``lightning-pelt fit``, it is damaged, or its
            plan has no X-PEFT.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # of any kind, since a changed byte can be anywhere
        raise _unreadable(path, error) from error
    changed: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    try:
        module = PELTModule.load_from_checkpoint(
            path, map_location=device, weights_only=True, **changed
        )
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    masks_of(module)
    return module.to(device).eval()


def _unreadable(path: Path, error: Exception) -> ValueError:
    # torch's message about a pickle recommends to unpickle it.
    why = "" if isinstance(error, pickle.UnpicklingError) else f": {error}"
    return ValueError(
        f"{path} is not a checkpoint that `lightning-pelt fit` wrote, or it is damaged{why}"
    )


def open_store(url: str) -> ProfileStore:
    """Open a store that exists; :class:`ProfileStore` would create a file for a misspelt name.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: see :class:`ProfileStore`.
    """
    check_store_exists(url)
    return ProfileStore(url)


def check_store_exists(url: str) -> None:
    """Raise a ``FileNotFoundError`` if ``url`` is a file that does not exist."""
    path = url.removeprefix("sqlite:///")
    if "://" not in path and not Path(path).exists():
        raise FileNotFoundError(f"there is no store {path}")
