"""JSON from files that others wrote."""

from __future__ import annotations

import json
from typing import Any

DEEPEST = 100  # levels of nesting, far more than any file of this package has


def parse_json(text: str | bytes, source: object) -> Any:
    """The data that ``text`` holds, nested at most 100 levels deep.

    Args:
        text: in UTF-8 if it is bytes.
        source: named in errors, such as the path of the file.

    Raises:
        ValueError: the text is not UTF-8 or not JSON, or is nested too deeply.

    >>> parse_json('{"r": 8', "config.json")
    Traceback (most recent call last):
    ...
    ValueError: config.json is not valid JSON: Expecting ',' delimiter: line 1 column 8 (char 7)
    """
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except RecursionError:
        raise _too_deep(source) from None
    except ValueError as error:  # of the decoder, of the syntax, or of a number with many digits
        raise ValueError(f"{source} is not valid JSON: {error}") from error
    level, depth = [value], 0
    while level := [item for parent in level for item in _items(parent)]:
        depth += 1
        if depth > DEEPEST:
            raise _too_deep(source)
    return value


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _too_deep(source: object) -> ValueError:
    return ValueError(f"{source} is nested more than {DEEPEST} levels deep")
