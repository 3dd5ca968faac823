"""Loads what turns images and sounds into the inputs of a backbone."""

from __future__ import annotations

from typing import Any

from transformers import AutoFeatureExtractor, AutoImageProcessor

from lightning_pelt.utils.backbone import resolve_backbone


def load_image_processor(name: str) -> Any:
    """The image processor of a backbone: it resizes and normalises images as in pretraining.

    Raises:
        OSError: the backbone cannot be found, or has no processor of images.
    """
    return _load(AutoImageProcessor, name, "images")


def load_feature_extractor(name: str) -> Any:
    """The feature extractor of a backbone: it turns sounds into waves or spectrograms.

    Raises:
        OSError: the backbone cannot be found, or has no processor of sounds.
    """
    extractor = _load(AutoFeatureExtractor, name, "sounds")
    if getattr(extractor, "sampling_rate", None) is None:
        raise OSError(_missing(name, "sounds", f"it has a {type(extractor).__name__}"))
    return extractor


def _load(auto: Any, name: str, kind: str) -> Any:
    folder = resolve_backbone(name)
    try:
        return auto.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise OSError(_missing(name, kind, str(error).split("\n")[0][:200])) from error


def _missing(name: str, kind: str, cause: str) -> str:
    return (
        f"the backbone {name!r} has no processor of {kind} ({cause}): name a backbone that reads "
        f"{kind}, or save its processor into the folder, processor.save_pretrained({name!r})"
    )
