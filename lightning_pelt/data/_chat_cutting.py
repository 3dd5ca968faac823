"""Shorten a conversation by whole turns, so that its tokens fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal

from lightning_pelt.data._chat_tokens import Encoded
from lightning_pelt.data._messages import Message

Side = Literal["left", "right"]


def shortened(
    messages: Sequence[Message],
    encode: Callable[[Sequence[Message]], Encoded],
    *,
    length: int,
    side: Side,
    answered: bool = True,
) -> tuple[list[Message], Encoded]:
    """The longest part of a conversation that fits, and its tokens.

    System messages at the beginning remain. From the left, the first turns are left out, and what
    remains starts with a message of the user. From the right, the last turns are left out, and what
    remains ends with an answer.

    Args:
        messages: of the conversation.
        encode: its tokens.
        length: maximum number of tokens.
        side: from which turns are left out.
        answered: whether the conversation ends with an answer, not with a question.

    Returns:
        The shortest part, with more tokens than ``length``, if none fits.
    """
    parts = _parts(messages, side, answered)
    tokens: dict[int, Encoded] = {}

    def fits(number: int) -> bool:
        tokens[number] = encode(parts[number])
        return len(tokens[number].ids) <= length

    number = 0
    if not fits(0) and len(parts) > 1:
        number = bisect_left(range(len(parts) - 1), True, lo=1, key=fits)
    if number not in tokens:
        fits(number)
    return parts[number], tokens[number]


def _parts(messages: Sequence[Message], side: Side, answered: bool) -> list[list[Message]]:
    """What may remain, from the whole conversation to the shortest part."""
    roles = [message["role"] for message in messages]
    head = next((i for i, r in enumerate(roles) if r not in ("system", "developer")), len(roles))
    if side == "left":
        last = max((i for i, r in enumerate(roles) if r == "assistant"), default=len(roles))
        starts = [
            i for i in range(head + 1, last if answered else len(roles)) if roles[i] == "user"
        ]
        return [list(messages), *([*messages[:head], *messages[i:]] for i in starts)]
    ends = [i + 1 for i in range(head, len(roles) - 1) if roles[i] == "assistant"]
    return [list(messages), *(list(messages[:end]) for end in reversed(ends))]
