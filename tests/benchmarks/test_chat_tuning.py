"""The study on instruction tuning with few steps and rows."""

from __future__ import annotations

import chat_tuning
import pytest


@pytest.mark.slow
def test_the_study_scores_every_plan_before_and_after() -> None:
    arguments = ["--steps", "2", "--epochs", "1", "--chats", "chapters", "--rows", "16"]
    rows = chat_tuning.main(arguments)
    assert [row[0] for row in rows] == list(chat_tuning.PLANS)
    for _, match_before, match_after, before, after, _ in rows:
        assert 0 <= match_before <= 1 and 0 <= match_after <= 1
        assert after < before
