"""The upload of adapters, which a later folder of the package registers.

``push_to_hub`` of an attached model belongs to ``attach``, and the hub and its model card to
``exchange``, which imports ``attach``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

# Model, folder of save_adapters, options of transformers' push_to_hub with repo_id -> URL.
Upload = Callable[[nn.Module, Path, Mapping[str, Any]], str]
_registered: list[Upload] = []


def register_upload(upload: Upload) -> Upload:
    """Let ``push_to_hub`` of attached models call ``upload``. Usable as a decorator."""
    _registered[:] = [upload]
    return upload


def upload(model: nn.Module, folder: Path, options: Mapping[str, Any]) -> str:
    """Upload a folder that ``save_adapters`` has written.

    Args:
        model: whose method was called.
        folder: of ``save_adapters``.
        options: of that method, with ``repo_id``.

    Returns:
        The URL of the repository, of the branch, or of the pull request.

    Raises:
        ValueError: no upload was registered.
    """
    if not _registered:
        raise ValueError("uploads need `import lightning_pelt.exchange.hub`")
    return _registered[0](model, folder, options)
