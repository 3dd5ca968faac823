"""Requests for tests of the server, valid and invalid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from small import WORDS

from lightning_pelt import ProfileStore

PEOPLE = ["ann", "bob", "cid", "dora", "eve"]
TEXTS = [" ".join(WORDS[i : i + 1 + i % 4]) for i in range(10)]
MAX_BYTES, MAX_CHARACTERS, MAX_TEXTS = 3000, 100, 6


def request(text: Any, profile: Any) -> dict[str, Any]:
    """The body of a request."""
    return {"text": text, "profile": profile}


def several(texts: Any, profile: Any = "ann") -> dict[str, Any]:
    """The body of a request with several texts."""
    return {"texts": texts, "profile": profile}


# Bodies, as JSON or bytes, and a part of the message of the answer.
INVALID: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{", "is not JSON"),
    "not text": (b"\xff\xfe\x00", "is not JSON"),
    "too many levels": (b"[" * 2000, "is not JSON"),
    "an empty body": (b"", "is not JSON"),
    "a list": ([request("one", "ann")], "the request is a list"),
    "no text": ({"profile": "ann"}, "'text' is missing"),
    "no profile": ({"text": "one"}, "'profile' is missing"),
    "a number": (request(7, "ann"), "'text' is a int"),
    "null": (request("one", None), "'profile' is a NoneType"),
    "empty text": (request(" \n", "ann"), "'text' is empty"),
    "empty profile": (request("one", ""), "'profile' is empty"),
    "long text": (request("a" * 101, "ann"), "'text' has 101 characters, and 100 are allowed"),
    "a lone surrogate": (b'{"text": "a \\ud800", "profile": "ann"}', "'text' contains a lone"),
    "no texts": (several([]), "'texts' is empty"),
    "texts that are one": (several("one"), "'texts' is a str"),
    "texts without a profile": ({"texts": ["one"]}, "'profile' is missing"),
    "text and texts": ({**several(["one"]), "text": "one"}, "has 'text' and 'texts'"),
    "an empty text of several": (several(["one", " "]), "'texts'[1] is empty"),
    "a text of several is null": (several(["one", None]), "'texts'[1] is a NoneType"),
    "a long text of several": (several(["one", "a" * 101]), "'texts'[1] has 101 characters, and"),
}
TOO_LARGE = [MAX_BYTES + 1, 15 * MAX_BYTES, 4_000_000]  # bytes


UNFIT = {
    "checkpoint": "there is no checkpoint",
    "store": "there is no store",
    "bank": "the profiles of the store belong to the bank ffff",
}


def unfit(trained: tuple[Path, Path], folder: Path, wrong: str) -> tuple[Path, Path]:
    """A checkpoint and a store that cannot be served together."""
    if wrong == "checkpoint":
        return folder / "nothing.ckpt", trained[1]
    if wrong == "store":
        return trained[0], folder / "nothing.db"
    with ProfileStore(trained[1]) as own, ProfileStore(folder / "other.db") as other:
        other.put("ann", replace(own.get("ann"), bank="f" * 64))
    return trained[0], folder / "other.db"
