"""Render a conversation with a chat template, and refuse what the template would leave out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from lightning_pelt.data._messages import WEIGHT, Message

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
THOUGHTS = {"reasoning_content", "reasoning", "thinking"}  # keys of an answer
Span = tuple[int, int]  # of characters: the first, and the one behind the last


class ChatRenderer:
    """Renders conversations with a chat template.

    Args:
        special: the special tokens of the tokenizer by name, which templates refer to.
        template: a template, or several by name, as transformers keeps them.
    """

    def __init__(self, special: dict[str, Any], template: str | dict[str, str]) -> None:
        self.special = special
        self.template = template

    def marks(self, tools: Any) -> bool:
        """Whether the template marks what the assistant says with ``{% generation %}``."""
        return bool(MARK.search(self._template_of(tools)))

    def text(self, messages: Sequence[Message], tools: Any, *, prompt: bool = False) -> str:
        """The rendered conversation, with the start of an answer if ``prompt``.

        Raises:
            ValueError: the template refuses it.
        """
        return self._render(messages, tools, prompt=prompt)[0]

    def checked(self, messages: Sequence[Message], tools: Any, *, prompt: bool = False) -> str:
        """The rendered conversation, with nothing left out.

        Raises:
            ValueError: the template leaves out the tools, or the words of a message.
        """
        text = self.text(messages, tools, prompt=prompt)
        if tools and text == self.text(messages, None, prompt=prompt):
            raise ValueError(
                "the chat template leaves out the tools: give the template of a model with tools, "
                "or leave out the column"
            )
        for number, message in enumerate(messages, start=1):
            words = message.get("content", "").rpartition("</think>")[2].strip()
            if message["role"] != "tool" and words not in text:  # results may be JSON in the text
                raise ValueError(
                    f"the chat template leaves out the words of message {number}, from "
                    f"{message['role']}: give a template that has them, or leave them out of the "
                    "row"
                )
        for name in THOUGHTS & messages[-1].keys():  # of earlier answers, templates leave them out
            if str(messages[-1][name]).strip() not in text:
                raise ValueError(
                    f"the chat template leaves out the {name} of the last answer: give a template "
                    "that has it, or leave it out of the row"
                )
        return text

    def spans(self, messages: Sequence[Message], tools: Any) -> list[Span]:
        """The spans of the rendered conversation that the template marks."""
        return self._render(messages, tools, marks=True)[1]

    def _template_of(self, tools: Any) -> str:
        if isinstance(self.template, str):
            return self.template
        name = "tool_use" if tools and "tool_use" in self.template else "default"
        if name not in self.template:
            raise ValueError(
                f"the tokenizer has the chat templates {', '.join(self.template)} and no default: "
                "name one as chat_template"
            )
        return self.template[name]

    def _render(
        self, messages: Sequence[Message], tools: Any, *, prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[Span]]:
        template = self._template_of(tools)
        shown = [{k: v for k, v in message.items() if k != WEIGHT} for message in messages]
        try:
            found: Any = render_jinja_template(
                conversations=[shown],
                tools=tools or None,
                chat_template=template,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=prompt,
                **self.special,
            )
        except (TemplateError, TypeError) as error:  # TypeError: a sum of a text and a missing key
            raise ValueError(f"the chat template refuses it: {error}") from error
        texts, spans = found
        return texts[0], [tuple(span) for span in spans[0]] if marks else []
