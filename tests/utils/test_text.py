from __future__ import annotations

import pytest

from lightning_pelt.utils.text import readable_bytes, readable_duration


@pytest.mark.parametrize(
    ("size", "text"),
    [(17, "17 B"), (2048, "2.0 KiB"), (5_242_880, "5.0 MiB"), (3 * 2**30, "3.00 GiB")],
)
def test_readable_bytes(size: int, text: str) -> None:
    assert readable_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(75, "75 s"), (600, "10 min"), (9000, "2.5 h"), (259_200, "3.0 days")]
)
def test_readable_duration(seconds: float, text: str) -> None:
    assert readable_duration(seconds) == text
