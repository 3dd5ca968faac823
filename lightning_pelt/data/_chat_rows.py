"""Make examples of conversations: cut them to length, and say which are left out and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from lightning_pelt.data._chat_cutting import Side, shortened
from lightning_pelt.data._chat_tokens import ChatTokens, Encoded, TrainOn, TurnsRewrittenError
from lightning_pelt.data._messages import WEIGHT, Message

Overlong = Literal["drop", "cut", "error"]
REASONS = {
    "long": "{count} whose last turns alone are longer than max_length={length}",
    "untrained": "{count} without a trained token",
}


SHOWN = 60  # characters of a conversation in a message


class Example(NamedTuple):
    """An example, or why there is none: a key of ``REASONS``."""

    tokens: Encoded
    left_out: str = ""


@dataclass(frozen=True)
class ChatRows:
    """Makes examples of conversations.

    Args:
        tokens: under the chat template.
        length: maximum number of tokens of an example.
        train_on: the last turn of the assistant, or all.
        side: from which whole turns are left out of a conversation that is too long.
        overlong: what happens if its shortest part is too long: it is left out, cut, or an error.
    """

    tokens: ChatTokens
    length: int
    train_on: TrainOn
    side: Side
    overlong: Overlong

    def examples(self, messages: Sequence[Message], tools: Any) -> list[Example]:
        """The examples of a conversation, of which what follows the last answer is left out.

        It is one, unless the template renders an answer in another way when other turns follow it,
        as those do that leave out earlier thoughts. Then each trained answer is an example, with
        the turns before it.

        Raises:
            ValueError: see :meth:`ChatTokens.conversation`; or the conversation is too long and
                ``overlong`` says so.
        """
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        whole = messages[: answers[-1] + 1]
        try:
            return [self._example(whole, tools, self.train_on)]
        except TurnsRewrittenError:
            if self.train_on == "last":
                raise
        trained = [i for i in answers if messages[i].get(WEIGHT, 1)]
        return [self._example(messages[: i + 1], tools, "last") for i in trained]

    def prompt(self, messages: Sequence[Message], tools: Any) -> Encoded:
        """The tokens from which the last answer is generated; it may be missing.

        Whole turns are left out from the left. If the rest is too long, the beginning of its last
        message is left out.

        Raises:
            ValueError: there is no question, or even without its words the rest is too long.
        """
        questions = [i for i, message in enumerate(messages) if message["role"] != "assistant"]
        if not questions:
            raise ValueError("it has only answers, and nothing to answer")
        asked, found = shortened(
            messages[: questions[-1] + 1],
            lambda part: self.tokens.prompt(part, tools),
            length=self.length,
            side="left",
            answered=False,
        )
        found = self._without_words(asked, tools, found, len(asked) - 1, prompt=True)
        if len(found.ids) > self.length:
            raise ValueError(
                f"its system message and its last turn have {len(found.ids)} tokens, and "
                f"max_length is {self.length}: raise max_length, or shorten them"
            )
        return found

    def _example(self, messages: Sequence[Message], tools: Any, train_on: TrainOn) -> Example:
        part, found = shortened(
            messages,
            lambda part: self.tokens.conversation(part, tools, train_on),
            length=self.length,
            side=self.side,
        )
        if len(found.ids) > self.length:
            if self.overlong == "error":
                raise ValueError(
                    f"its shortest part of whole turns has {len(found.ids)} tokens, and max_length "
                    f"is {self.length}: raise max_length, or set overlong to 'cut' or 'drop'"
                )
            if self.overlong == "drop":
                return Example(found, "long")
            found = self._cut(part, tools, found)
        return Example(found, "" if found.trained else "untrained")

    def _cut(self, messages: Sequence[Message], tools: Any, found: Encoded) -> Encoded:
        """Cut the beginning of the last question, if that is enough, or the end of the answer."""
        asked = [i for i, message in enumerate(messages) if message["role"] == "user"]
        if self.side == "left" and asked:
            found = self._without_words(messages, tools, found, asked[-1])
        return found.without(self.length, len(found.ids))

    def _without_words(
        self,
        messages: Sequence[Message],
        tools: Any,
        found: Encoded,
        turn: int,
        *,
        prompt: bool = False,
    ) -> Encoded:
        """Without as many of the first tokens of a message as are too many, if some remain."""
        excess = len(found.ids) - self.length
        if excess <= 0:
            return found
        start, end = self.tokens.content(messages, tools, turn, prompt=prompt)
        return found.without(start, start + excess) if excess < end - start else found


def about(messages: Sequence[Message]) -> str:
    """The beginning of a conversation, by which a user finds it."""
    words = next((m["content"] for m in messages if m["role"] == "user" and m.get("content")), "")
    words = words or messages[0].get("content", "")
    return repr(words if len(words) <= SHOWN else f"{words[:SHOWN]}...")


def left_out_message(reasons: Sequence[str], starts: Sequence[str], length: int) -> str:
    """How many conversations are left out, why, and the first of each reason."""
    parts = []
    for reason, count in Counter(reasons).items():
        first = next(start for start, each in zip(starts, reasons, strict=True) if each == reason)
        parts.append(f"{REASONS[reason].format(count=count, length=length)} (first: {first})")
    return ", ".join(parts)


def conversations(rows: Mapping[str, Sequence[str]]) -> Iterator[tuple[list[Message], Any]]:
    """The messages and the tools of each row.

    Raises:
        ValueError: a row has two system messages.
    """
    for values in zip(*rows.values(), strict=True):
        row = dict(zip(rows, values, strict=True))
        asked = row.get("prompt")
        messages: list[Message] = json.loads(asked or row["messages"])
        if asked:
            messages = [{**m, WEIGHT: 0} if m["role"] == "assistant" else m for m in messages]
            messages += json.loads(row.get("response") or "[]")
        if row.get("system", "").strip():
            if messages[0]["role"] == "system":
                raise ValueError(
                    f"the conversation that starts {about(messages)} has a system message, and its "
                    "column of system messages has another: empty one of them"
                )
            messages = [{"role": "system", "content": row["system"]}, *messages]
        yield messages, json.loads(row.get("tools") or "null")
