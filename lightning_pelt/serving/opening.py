"""A trained model and a store, opened to be used: neither is made anew."""

from __future__ import annotations

import pickle
from pathlib import Path

from lightning_pelt.module import PELTModule
from lightning_pelt.profiles.masks import masks_of
from lightning_pelt.profiles.store import ProfileStore


def load_model(checkpoint: str | Path, device: str = "cpu") -> PELTModule:
    """The model of a checkpoint with X-PEFT, in eval mode; its weights are never read by pickle.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of ours, or its plan has no X-PEFT.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        module = PELTModule.load_from_checkpoint(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, EOFError, LookupError, RuntimeError, TypeError) as error:
        # What torch says of a pickle recommends to run it.
        why = "" if isinstance(error, pickle.UnpicklingError) else f": {error}"
        raise ValueError(
            f"{path} is not a checkpoint that `lightning-pelt fit` wrote, or it is damaged{why}"
        ) from error
    masks_of(module)
    return module.to(device).eval()


def open_store(url: str) -> ProfileStore:
    """A store that exists: :class:`ProfileStore` would make a file whose name is misspelt.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: see :class:`ProfileStore`.
    """
    path = url.removeprefix("sqlite:///")
    if "://" not in path and not Path(path).exists():
        raise FileNotFoundError(f"there is no store {path}")
    return ProfileStore(url)
