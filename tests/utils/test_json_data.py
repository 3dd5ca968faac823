from __future__ import annotations

import json
from typing import Any

import pytest

from lightning_pelt.utils.json_data import DEEPEST, parse_json


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value, 0] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, "größer"]}, [], "x", nested(DEEPEST)])
def test_data_is_read_from_text_and_from_bytes(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert parse_json(text, "file") == parse_json(text.encode(), "file") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "file is not valid JSON"),
        ("{'a': 1}", "file is not valid JSON"),
        (b"\xff\xfe{}", "file is not valid JSON: 'utf-8' codec"),
        ("9" * 5000, "file is not valid JSON: Exceeds the limit"),
        (json.dumps(nested(DEEPEST + 1)), "file is nested more than 100 levels deep"),
        ("[" * 200_000 + "]" * 200_000, "file is nested more than 100 levels deep"),
    ],
)
def test_other_text_is_refused_with_its_source(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text, "file")
