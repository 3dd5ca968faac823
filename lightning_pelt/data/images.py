"""Images with a label, in folders, tables or data sets."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from PIL import Image, ImageOps
from torch import Tensor

from lightning_pelt.data._media_batch import MediaBatch
from lightning_pelt.data.labelled_media import LabelledMedia
from lightning_pelt.utils.processors import load_image_processor

MAX_PIXELS = 64_000_000  # a small file may state more than the memory holds


class LabelledImages(LabelledMedia):
    """Images with a label.

    A batch has ``pixel_values`` (B, 3, H, W), as the backbone's own processor makes them, and
    ``labels`` (B,). Images are turned as their EXIF data says and converted to RGB; there is no
    augmentation.

    Args:
        backbone: hub id or folder whose image processor is used.
        **places: see :class:`LabelledMedia` and :class:`MediaDataModule`.

    Example::

        data = LabelledImages("google/vit-base-patch16-224", train="pets/train", test="pets/test")
        # pets/train/cat/1.jpg, pets/train/dog/2.jpg, ...
    """

    suffixes: ClassVar[frozenset[str]] = frozenset(
        {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    )

    def collate(self) -> MediaBatch:
        """Decodes images and gives them to the processor of the backbone."""
        return ImageBatch(self.processor)

    @cached_property
    def processor(self) -> Any:
        """The image processor of the backbone."""
        return load_image_processor(self.backbone)


class ImageBatch(MediaBatch):
    """A batch of images.

    Args:
        processor: an image processor of transformers.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def decode(self, source: Any) -> Image.Image:
        """The first frame of an image, upright, in RGB.

        Raises:
            ValueError: it has more than 64 million pixels.
        """
        with Image.open(source) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(
                    f"it has {width} x {height} pixels, and {MAX_PIXELS:,} are read at most: make "
                    "it smaller, since the processor of the backbone does so anyway"
                )
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")

    def inputs(self, contents: list[Any]) -> dict[str, Tensor]:
        """``pixel_values`` (B, 3, H, W)."""
        return dict(self.processor(images=contents, return_tensors="pt"))
