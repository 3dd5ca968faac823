"""Images and sounds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
from fuzz.mutators import change_folder
from fuzz.target import Target
from PIL import Image
from transformers import ViTImageProcessor, Wav2Vec2FeatureExtractor

from lightning_pelt.data._media_batch import MediaBatch
from lightning_pelt.data._media_files import MediaFile, read_folder
from lightning_pelt.data._sounds import SUFFIXES
from lightning_pelt.data.audio import AudioBatch, _duration
from lightning_pelt.data.images import ImageBatch, LabelledImages

IMAGES = ("png", "jpg", "gif", "bmp", "tiff", "webp")
SOUNDS = ("wav", "flac", "ogg", "mp3", "aiff", "au")


class _Media(Target):
    """One file of each kind, of which one is changed and read."""

    errors = (ValueError,)
    kinds: tuple[str, ...]
    suffixes: frozenset[str]

    def batch(self) -> MediaBatch:
        raise NotImplementedError

    def write_file(self, path: Path) -> None:
        raise NotImplementedError

    def write(self, folder: Path) -> None:
        for kind in self.kinds:
            (folder / kind / "one").mkdir(parents=True)
            self.write_file(folder / kind / "one" / f"file.{kind}")

    def change(self, folder: Path, draw: Random) -> str:
        kind = draw.choice(self.kinds)
        (folder / "chosen").write_text(kind)
        return f"{kind}: {change_folder(folder / kind, draw)}"

    def load(self, folder: Path) -> Any:
        chosen = folder / "chosen"
        kinds = [chosen.read_text()] if chosen.exists() else self.kinds
        return _Read({kind: self.read(folder / kind) for kind in kinds})

    def read(self, folder: Path) -> Any:
        rows = read_folder(folder, self.suffixes, labelled=True).rows
        file = MediaFile()
        return self.content([file(name) for name in rows["file"]])

    def content(self, files: list[dict[str, Any]]) -> Any:
        batch = self.batch()({"file": files})
        return {name: (tuple(v.shape), _digest(v.numpy())) for name, v in batch.items()}


class _Read(dict[str, Any]):
    """What was read, by kind; equal to another if it is for the kinds that both have."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        both = self.keys() & other.keys() if isinstance(other, _Read) else ()
        return bool(both) and all(self[kind] == other[kind] for kind in both)


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


class Images(_Media):
    name, kinds, suffixes = "images", IMAGES, LabelledImages.suffixes
    mib = 640  # the largest image takes four bytes a pixel, and twice that while it is converted
    seconds = 20.0

    def __init__(self) -> None:
        self.processor = ViTImageProcessor(size={"height": 16, "width": 16})

    def batch(self) -> MediaBatch:
        return ImageBatch(self.processor)

    def write_file(self, path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


class Sounds(_Media):
    """Durations, which are read first, and waves."""

    name, kinds, suffixes = "sounds", SOUNDS, SUFFIXES

    def __init__(self) -> None:
        self.extractor = Wav2Vec2FeatureExtractor()

    def batch(self) -> MediaBatch:
        return AudioBatch(self.extractor, max_seconds=1.0)

    def write_file(self, path: Path) -> None:
        wave = np.random.default_rng(0).uniform(-0.5, 0.5, 2205).astype(np.float32)
        soundfile.write(path, wave, 22050)

    def content(self, files: list[dict[str, Any]]) -> Any:
        return [_duration({"file": file}) for file in files], super().content(files)
