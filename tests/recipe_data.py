"""Small data and a small backbone for each recipe, so that it runs without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import media
from small import t5

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def offline(recipe: Path, folder: Path) -> list[str]:
    """The options with which ``recipe`` reads files in ``folder`` instead of the hub."""
    if recipe.stem in OWN:
        return OWN[recipe.stem](folder)
    text = recipe.read_text()
    options = glue(folder / "glue") if "class_path: GLUE" in text else []
    if "TextToText" in text:
        return [*options, "--data.max_length=32", f"--model.backbone={t5(folder / 't5')}"]
    return [*options, f"--model.backbone={MINILM}"]


def glue(folder: Path) -> list[str]:
    """Files of SST-2, large enough for the low-resource protocol."""
    folder.mkdir()
    rows = [
        {"text": f"film number {i} is {'good' if i % 2 else 'bad'}", "label": i % 2}
        for i in range(1110)
    ]
    for split, count in (("train", 1110), ("dev", 20)):
        lines = [json.dumps(row) for row in rows[:count]]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [f"--data.folder={folder}"]


def image_classification(folder: Path) -> list[str]:
    train = media.images(folder / "train")
    places = [f"--data.train={train}", f"--data.test={train}", "--data.num_workers=0"]
    return [*places, f"--model.backbone={media.vit(folder / 'vit')}"]


def audio_classification(folder: Path) -> list[str]:
    train = media.sounds(folder / "train")
    places = [f"--data.train={train}", f"--data.test={train}", "--data.num_workers=0"]
    return [*places, f"--model.backbone={media.wav2vec2(folder / 'wav2vec2')}"]


def speech_recognition(folder: Path) -> list[str]:
    train = media.speech(folder / "train")
    places = [f"--data.train={train}", f"--data.test={train}", "--data.num_workers=0"]
    tokens = "--model.task.init_args.max_new_tokens=8"
    return [*places, tokens, f"--model.backbone={media.whisper(folder / 'whisper')}"]


# Recipes with other data or another backbone: by the name of the file, what writes them into a
# folder and gives the options, with --model.backbone among them.
OWN: dict[str, Callable[[Path], list[str]]] = {
    "audio_classification": audio_classification,
    "image_classification": image_classification,
    "speech_recognition": speech_recognition,
}
