"""The tokenizer or processor that belongs to adapters: in their folder, or that of the base."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from lightning_pelt.utils.backbone import refuse_without_words, resolve_backbone

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
PROCESSORS = {
    "image": (AutoImageProcessor, "preprocessor_config.json"),
    "audio": (AutoFeatureExtractor, "preprocessor_config.json"),
}


class Parts:
    """Finds the tokenizer or processor that belongs to adapters.

    Args:
        folder: of the adapters.
        saved: what their file says of the base.
        backbone: hub id or folder of the base, if it was given.
        options: of ``from_pretrained``.
    """

    def __init__(
        self,
        folder: Path,
        saved: Mapping[str, Any],
        backbone: str | None,
        options: Mapping[str, Any],
    ) -> None:
        self.folder, self.saved, self.backbone = folder, saved, backbone
        names = ("token", "trust_remote_code", "cache_dir", "local_files_only")
        self.options = {name: options[name] for name in names if name in options}

    def tokenizer(
        self, given: str | PreTrainedTokenizerBase | None
    ) -> PreTrainedTokenizerBase | None:
        """The one given, of the folder of the adapters, or of the base."""
        if isinstance(given, PreTrainedTokenizerBase):
            return given
        own = any((self.folder / name).is_file() for name in TOKENIZER_FILES)
        named, base = self.saved.get("tokenizer"), self.saved.get("name")
        named = self.backbone if self.backbone and named == base else named
        name = given or (str(self.folder) if own else named)
        found: Any = self._load(AutoTokenizer, name, "tokenizer", must=bool(given or own))
        if found is not None and found.pad_token is None:
            found.pad_token = found.eos_token
        return found

    def processor(self, reads: str, given: Any) -> Any:
        """The one given, of the folder of the adapters, or of the base.

        Args:
            reads: ``"image"`` or ``"audio"``.
            given: a processor, or its hub id or folder; or None.
        """
        if given is not None and not isinstance(given, str):
            return given
        loader, file = PROCESSORS[reads]
        own = (self.folder / file).is_file()
        name = given or (str(self.folder) if own else self.backbone or self.saved.get("name"))
        return self._load(loader, name, "processor", must=bool(given or own))

    def _load(self, loader: Any, name: str | None, part: str, *, must: bool) -> Any:
        of_base = self.backbone is None and name == self.saved.get("name")
        revision = self.saved.get("revision") if of_base else None
        pinned = {"revision": revision} if revision else {}
        try:
            if not name:
                raise OSError("the file names none")
            found = loader.from_pretrained(resolve_backbone(name), **pinned, **self.options)
            if isinstance(found, PreTrainedTokenizerBase):
                refuse_without_words(found)
            return found
        except (OSError, ValueError, KeyError) as error:
            if must:
                raise
            reason = str(error).split("\n")[0][:200]
            warnings.warn(
                f"{self.folder}: the {part} {name or ''} cannot be loaded: {reason}. Give "
                f"load_pelt(folder, {part}=...) to predict from "
                f"{'texts' if part == 'tokenizer' else 'files'}",
                stacklevel=4,
            )
            return None
