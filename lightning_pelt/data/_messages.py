"""Convert conversations: messages in the OpenAI and the ShareGPT form, and lists of tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any, ClassVar

from datasets import Value

from lightning_pelt.data._columns import MESSAGES, Text, check_unicode
from lightning_pelt.utils.errors import unknown

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
# Names of the roles in the ShareGPT form, beside those above.
SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",  # its value is the call as JSON
    "observation": "tool",
    "function_response": "tool",
}
FORMS = '[{"role": "user", "content": "..."}] or [{"from": "human", "value": "..."}]'
WEIGHT = "weight"  # of OpenAI's files: 0 for a turn of the assistant that is not trained


@dataclass(frozen=True)
class Messages:
    """A conversation as JSON text, in the OpenAI form: ``[{"role": ..., "content": ...}]``.

    The messages may have the ShareGPT form, and may themselves be JSON text. Keys without a value
    are left out, and the arguments of tool calls become objects, as chat templates expect.

    Args:
        answered: whether there must be a turn of the assistant.
        role: a plain text is one message of this role; None if a text must be JSON.
    """

    answered: bool = False
    role: str | None = None
    feature: ClassVar[Any] = Value("string")

    def __call__(self, value: Any) -> str:
        messages = [_numbered(i, each) for i, each in enumerate(self._items(value), start=1)]
        if not messages:
            raise ValueError(f"the conversation is empty, expected {FORMS}")
        if self.answered and all(message["role"] != "assistant" for message in messages):
            roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
            raise ValueError(
                f"no message is from the assistant, only from {roles}: there is nothing to learn. "
                "Remove the row, or use it as predict="
            )
        return to_json(messages)

    def _items(self, value: Any) -> list[Any]:
        if self.role and not isinstance(value, list | Mapping):
            value = Text()(value)
            if not MESSAGES.match(value):
                return [{"role": self.role, "content": value}]
        if isinstance(value, str):
            value = parse_json(value, f"messages such as {FORMS}")
        if isinstance(value, Mapping) and any(isinstance(v, list) for v in value.values()):
            value = _rows(value)  # how older versions of datasets store a list of messages
        if value is None or not isinstance(value, list):
            raise ValueError(f"{shortened(value)} is no list of messages, expected {FORMS}")
        return value


@dataclass(frozen=True)
class Tools:
    """The tools that the assistant may call, as JSON text; empty for none.

    A tool is a JSON schema: ``{"type": "function", "function": {"name": ..., ...}}``, or only what
    is inside ``function``.
    """

    feature: ClassVar[Any] = Value("string")

    def __call__(self, value: Any) -> str:
        if isinstance(value, str) and value.strip():
            value = parse_json(value, "a list of tools")
        if not value:
            return ""
        if not isinstance(value, list):
            raise ValueError(f"{shortened(value)} is no list of tools")
        return to_json([_tool(each) for each in value])


def to_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if not text.isascii():
        check_unicode(text)
    return text


def parse_json(text: str, expected: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{shortened(text)} is not JSON ({error}), expected {expected}: write it with "
            "json.dumps, not with str"
        ) from None


def _rows(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    if len({len(values) for values in lists.values()}) > 1:
        raise ValueError(f"the lists {', '.join(lists)} of the messages have different lengths")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _numbered(number: int, value: Any) -> Message:
    try:
        return _message(value)
    except ValueError as error:
        raise ValueError(f"message {number}: {error}") from None


def _message(value: Any) -> Message:
    """A message in the OpenAI form.

    Raises:
        ValueError: it is no message, or an answer without words and calls.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{shortened(value)} is no message, expected one as in {FORMS}")
    given = without_missing(value)
    if "role" not in given and "from" in given:
        given = _from_sharegpt(given)
    if "role" not in given:
        raise ValueError(f"it has no role, only {', '.join(given) or 'no keys'}")
    if given["role"] not in ROLES:
        raise unknown("role", given["role"], ROLES)
    if "content" in given:
        given["content"] = _text(given["content"])
    calls = given.pop("tool_calls", None)
    if calls:  # templates may ask whether there is a list, even if it is empty
        given["tool_calls"] = [_call(each) for each in calls]
    if given.get(WEIGHT, 1) not in (0, 1):
        raise ValueError(f"its {WEIGHT} is {given[WEIGHT]!r}, expected 0 (not trained) or 1")
    _check_words(given)
    return given


def _check_words(message: Message) -> None:
    words, calls = message.get("content"), message.get("tool_calls")
    if words is None and not calls:
        raise ValueError("it has no content")
    if message["role"] == "assistant" and not calls and not str(words).strip():
        raise ValueError("the answer of the assistant is empty: write it, or remove the row")
    if calls and message["role"] != "assistant":
        raise ValueError(f"only the assistant calls tools, and this is from {message['role']}")


def _from_sharegpt(message: Message) -> Message:
    kind, value = message.pop("from"), message.pop("value", None)
    if kind == "function_call":
        calls = parse_json(value, "a call of a tool") if isinstance(value, str) else value
        calls = calls if isinstance(calls, list) else [calls]
        return {**message, "role": "assistant", "tool_calls": calls}
    role = SHAREGPT.get(kind, kind)
    if role not in ROLES:
        raise unknown("role", kind, [*ROLES, *SHAREGPT])
    return {**message, "role": role, **({} if value is None else {"content": value})}


def _text(content: Any) -> str:
    """The text of a message, whose content may be a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"its content {shortened(content)} is no text")
    kinds = [part.get("type") if isinstance(part, Mapping) else None for part in content]
    if other := [kind for kind in kinds if kind != "text"]:
        raise ValueError(f"a part of its content is {other[0]!r}, and only text can be read")
    return "".join(str(part.get("text", "")) for part in content)


def _call(value: Any) -> dict[str, Any]:
    """A call of a tool whose arguments are an object."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{shortened(value)} is no call of a tool")
    call = dict(value) if "function" in value else {"type": "function", "function": {**value}}
    function = call["function"]
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"the call {shortened(value)} names no function")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = parse_json(arguments, "the arguments of a call") if arguments.strip() else {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"the arguments {shortened(arguments)} of a call are no object")
    return {**call, "function": {**function, "arguments": arguments}}


def _tool(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{shortened(value)} is no tool, expected a JSON schema")
    given = without_missing(value)
    tool = given if "function" in given else {"type": "function", "function": given}
    if not isinstance(tool["function"], Mapping) or "name" not in tool["function"]:
        raise ValueError(f"the tool {shortened(value)} has no name")
    return tool


def without_missing(value: Any) -> Any:
    """Leave out keys without a value, which tables of Arrow add to all rows of a column."""
    if isinstance(value, Mapping):
        return {name: without_missing(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [without_missing(each) for each in value]
    return value
