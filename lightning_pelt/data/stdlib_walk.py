"""The first paragraphs of the standard library's docstrings, by chapter: a script of its own.

``stdlib_docs`` runs this file in a fresh, isolated interpreter (``python -I -S``): what it finds
does not depend on what the caller has imported or patched, and nothing it imports stays behind.
It reads ``{chapter: [modules]}`` as JSON on stdin and writes ``[[text, chapter], ...]`` to stdout.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import re
import sys
import warnings
from collections.abc import Iterator

MIN_WORDS = 5


def first_paragraph(doc: object) -> str:
    """The text up to the first empty line, on one line; empty if ``doc`` is no string."""
    if not isinstance(doc, str):
        return ""
    return " ".join(re.split(r"\n\s*\n", inspect.cleandoc(doc), maxsplit=1)[0].split())


def documented(module: object, chapter: str, homes: dict[str, str]) -> Iterator[str]:
    """Docstrings of what ``module`` defines: its functions, its classes and their methods.

    What it imported from a module of another chapter belongs there, and an inherited docstring
    to the class that wrote it: only an object's own ``__doc__`` counts.
    """
    for name, value in list(vars(module).items()):
        if name.startswith("__") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if home_chapter(value, homes) not in (None, chapter):
            continue
        yield first_paragraph(vars(value).get("__doc__") if inspect.isclass(value) else _doc(value))
        if inspect.isclass(value):
            for member_name, member in list(vars(value).items()):
                if not member_name.startswith("__") and _is_method(member):
                    yield first_paragraph(_doc(member))


def home_chapter(value: object, homes: dict[str, str]) -> str | None:
    """The chapter of the module that defines ``value``; None if no chapter lists that module."""
    home = getattr(value, "__module__", None)
    if not isinstance(home, str):
        return None
    home = home.lstrip("_")  # `_heapq` is what `heapq` is made of
    return homes.get(home, homes.get(home.partition(".")[0]))


def _doc(value: object) -> object:
    return getattr(value, "__doc__", None)


def _is_method(value: object) -> bool:
    return inspect.isroutine(value) or isinstance(value, property | classmethod | staticmethod)


def walk(chapters: dict[str, list[str]]) -> list[tuple[str, str]]:
    """``(text, chapter)`` of every paragraph of five words or more, each text once."""
    homes: dict[str, str] = {}
    for chapter, modules in chapters.items():
        for name in modules:
            homes[name] = chapter
            homes.setdefault(name.partition(".")[0], chapter)
    found: dict[str, str] = {}
    for chapter, modules in chapters.items():
        for name in modules:
            try:
                module = importlib.import_module(name)
            except Exception:  # not built for this platform, or no longer in the library
                continue
            for text in documented(module, chapter, homes):
                if len(text.split()) >= MIN_WORDS:
                    found.setdefault(text, chapter)
    return list(found.items())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        rows = walk(json.load(sys.stdin))
    json.dump(rows, sys.stdout)
