"""Script: collects first paragraphs of the standard library's docstrings by chapter.

``stdlib_docs`` runs this file in a new, isolated interpreter (``python -I -S``), so that the result
does not depend on modules that the caller has imported or patched, and no import remains loaded.
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
    """The text up to the first empty line, on one line; empty if ``doc`` is not a string."""
    if not isinstance(doc, str):
        return ""
    return " ".join(re.split(r"\n\s*\n", inspect.cleandoc(doc), maxsplit=1)[0].split())


def docstrings_of(module: object, chapter: str, chapter_of: dict[str, str]) -> Iterator[str]:
    """First paragraphs of the docstrings of the functions, classes and methods in ``module``.

    Objects that ``module`` imports from a module of another chapter are left out, and so are
    inherited docstrings: only an object's own ``__doc__`` counts.
    """
    for name, value in list(vars(module).items()):
        if name.startswith("__") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if find_chapter(value, chapter_of) not in (None, chapter):
            continue
        yield first_paragraph(vars(value).get("__doc__") if inspect.isclass(value) else _doc(value))
        if inspect.isclass(value):
            for member_name, member in list(vars(value).items()):
                if not member_name.startswith("__") and _is_method(member):
                    yield first_paragraph(_doc(member))


def find_chapter(value: object, chapter_of: dict[str, str]) -> str | None:
    """The chapter of the module that defines ``value``; None if no chapter lists that module."""
    module = getattr(value, "__module__", None)
    if not isinstance(module, str):
        return None
    module = module.lstrip("_")  # `_heapq` implements `heapq`
    return chapter_of.get(module, chapter_of.get(module.partition(".")[0]))


def _doc(value: object) -> object:
    return getattr(value, "__doc__", None)


def _is_method(value: object) -> bool:
    return inspect.isroutine(value) or isinstance(value, property | classmethod | staticmethod)


def walk(chapters: dict[str, list[str]]) -> list[tuple[str, str]]:
    """``(text, chapter)`` of every first paragraph of five words or more, each text once."""
    chapter_of: dict[str, str] = {}
    for chapter, modules in chapters.items():
        for name in modules:
            chapter_of[name] = chapter
            chapter_of.setdefault(name.partition(".")[0], chapter)
    found: dict[str, str] = {}
    for chapter, modules in chapters.items():
        for name in modules:
            try:
                module = importlib.import_module(name)
            except Exception:  # not built for this platform, or no longer in the library
                continue
            for text in docstrings_of(module, chapter, chapter_of):
                if len(text.split()) >= MIN_WORDS:
                    found.setdefault(text, chapter)
    return list(found.items())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        rows = walk(json.load(sys.stdin))
    json.dump(rows, sys.stdout)
