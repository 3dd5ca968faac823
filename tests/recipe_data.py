"""Small data and a small backbone for each recipe, so that it runs without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import chat
import colours
import media
from choices import questions
from masked import circles, mask_bert
from pairs import translations
from small import bert, t5

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


def multiple_choice(folder: Path) -> list[str]:
    rows = questions(folder / "questions.jsonl", count=12)
    places = [f"--data.{split}={rows}" for split in ("train", "dev", "test")]
    columns = ["--data.answer=answer", "--data.max_length=32"]
    hub = ["--data.dataset=null", "--data.config=null"]
    return [*places, *columns, *hub, f"--model.backbone={bert(folder / 'bert')}"]


def conversations(folder: Path) -> list[str]:
    rows = [[chat.says("user", f"Hi {n}"), chat.says("assistant", f"Paris {n}")] for n in range(40)]
    path = chat.saved(folder / "chats.jsonl", rows)
    places = [f"--data.train={path}", f"--data.test={path}", "--test_after_fit=true"]
    options = ["--data.chat_template=zephyr", "--model.task.init_args.max_new_tokens=4"]
    return [*places, *options, f"--model.backbone={chat.llama(folder / 'llama', chat.tokenizer())}"]


def masked_lm(folder: Path) -> list[str]:
    rows = circles(folder / "texts.jsonl")
    places = [f"--data.{split}={rows}" for split in ("train", "dev", "test")]
    hub = ["--data.dataset=null", "--data.config=null", "--data.max_length=16"]
    return [*places, *hub, f"--model.backbone={mask_bert(folder / 'bert')}"]


def contrastive(folder: Path) -> list[str]:
    rows = translations(folder / "pairs.jsonl", count=24, negatives=1)
    places = [f"--data.{split}={rows}" for split in ("train", "dev", "test")]
    hub = ["--data.dataset=null", "--data.config=null", "--data.negatives=[negative0]"]
    options = ["--data.max_length=16", f"--model.backbone={bert(folder / 'bert')}"]
    return [*places, *hub, *options]


def token_classification(folder: Path) -> list[str]:
    rows = colours.saved(folder / "words.jsonl", colours.tagged(24, seed=0))
    places = [f"--data.{split}={rows}" for split in ("train", "dev", "test")]
    hub = ["--data.dataset=null", "--data.config=null"]
    options = ["--data.max_length=20", "--data.stride=4"]
    return [*places, *hub, *options, f"--model.backbone={bert(folder / 'bert')}"]


def question_answering(folder: Path) -> list[str]:
    rows = colours.saved(folder / "questions.jsonl", colours.questions(24, seed=0))
    places = [f"--data.{split}={rows}" for split in ("train", "dev", "test")]
    options = ["--data.max_length=20", "--data.stride=4", "--data.max_question_length=4"]
    return [*places, "--data.dataset=null", *options, f"--model.backbone={bert(folder / 'bert')}"]


def multi_label(folder: Path) -> list[str]:
    rows = colours.saved(folder / "sets.jsonl", colours.sets(24, seed=0))
    places = [f"--data.{split}={rows}" for split in ("train", "dev", "test")]
    hub = ["--data.dataset=null", "--data.config=null", "--data.max_length=16"]
    return [*places, *hub, f"--model.backbone={bert(folder / 'bert')}"]


def sentence_similarity(folder: Path) -> list[str]:
    rows = folder / "scored.jsonl"
    texts = [
        {"sentence1": "one two", "sentence2": f"{word} two", "score": i}
        for i, word in enumerate(["one", "three", "four", "five"] * 4)
    ]
    rows.write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    places = [f"--data.{split}={rows}" for split in ("train", "dev", "test")]
    options = ["--data.dataset=null", "--data.max_length=16"]
    return [*places, *options, f"--model.backbone={bert(folder / 'bert')}"]


# Recipes with other data or another backbone: by the name of the file, what writes them into a
# folder and gives the options, with --model.backbone among them.
OWN: dict[str, Callable[[Path], list[str]]] = {
    "audio_classification": audio_classification,
    "chat": conversations,
    "contrastive": contrastive,
    "image_classification": image_classification,
    "masked_lm": masked_lm,
    "multi_label": multi_label,
    "multiple_choice": multiple_choice,
    "question_answering": question_answering,
    "sentence_similarity": sentence_similarity,
    "speech_recognition": speech_recognition,
    "token_classification": token_classification,
}
