"""The tokens of a conversation, and which of them are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from lightning_pelt.data._chat_rendering import ChatRenderer, Span
from lightning_pelt.data._messages import WEIGHT, Message
from lightning_pelt.data.collator import IGNORED

TrainOn = Literal["last", "all"]


class TurnsRewrittenError(ValueError):
    """A template renders a turn in another way when other turns follow it."""


@dataclass(frozen=True)
class Encoded:
    """The tokens of a conversation, and its labels: -100 where a token is not trained."""

    ids: list[int]
    labels: list[int]

    def without(self, start: int, end: int) -> Encoded:
        """Without the tokens from ``start`` to before ``end``."""
        return Encoded(self.ids[:start] + self.ids[end:], self.labels[:start] + self.labels[end:])

    @property
    def trained(self) -> bool:
        return any(label != IGNORED for label in self.labels[1:])  # nothing predicts the first


class ChatTokens:
    """The tokens of conversations under one chat template.

    The trained tokens are those of the assistant's turns with the token that ends each turn. They
    are found by the ``{% generation %}`` marks of the template. Without marks, a turn starts where
    the conversation so far ends, rendered with the prompt of an answer (``add_generation_prompt``),
    and it ends where the conversation ends that is rendered up to it. What the two differ in from
    the whole conversation cannot be told apart, so that is an error.

    A last turn that the template does not end with a special token gets the tokenizer's end of
    text, or the model would not learn to stop.

    Args:
        tokenizer: a fast one, which knows the characters of its tokens.
        template: a template, or several by name, as transformers keeps them.

    Raises:
        ValueError: the tokenizer does not know the characters of its tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | dict[str, str]) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} does not know the characters of its tokens, by which "
                "the trained ones are found: use a tokenizer with a tokenizer.json"
            )
        self.tokenizer = tokenizer
        self.template = template
        special: dict[str, Any] = tokenizer.special_tokens_map
        self.rendered = ChatRenderer(special, template)

    def prompt(self, messages: Sequence[Message], tools: Any) -> Encoded:
        """The tokens from which an answer to ``messages`` is generated; no label is trained."""
        ids, _ = self._tokens(self.rendered.checked(messages, tools, prompt=True))
        return Encoded(ids, [IGNORED] * len(ids))

    def conversation(
        self, messages: Sequence[Message], tools: Any, train_on: TrainOn = "all"
    ) -> Encoded:
        """The tokens of a conversation with the labels of its trained turns.

        Raises:
            TurnsRewrittenError: the trained turns cannot be found.
            ValueError: the template refuses the conversation, or leaves out a part of it.
        """
        text = self.rendered.checked(messages, tools)
        turns = _trained_turns(messages, train_on)
        if self.rendered.marks(tools):
            spans = self._marked(messages, tools, turns)
        else:
            spans = [self._compared(messages, tools, text, turn) for turn in turns]
        ids, offsets = self._tokens(text)
        learnt = _overlapping(offsets, spans)
        self._add_ends(ids, learnt, last=bool(turns) and turns[-1] == len(messages) - 1)
        labels = [i if trained else IGNORED for i, trained in zip(ids, learnt, strict=True)]
        return Encoded(ids, labels)

    def content(self, messages: Sequence[Message], tools: Any, turn: int, *, prompt: bool) -> Span:
        """The first token of the words of a message, and the one behind its last.

        They are (0, 0) if the template has changed the words.
        """
        text = self.rendered.text(messages, tools, prompt=prompt)
        words = messages[turn].get("content", "").strip()
        upto = self.rendered.text(messages[: turn + 1], tools)  # an answer may repeat the words
        start = upto.rfind(words) if words else -1
        end = start + len(words)
        if start < 0 or text[:end] != upto[:end]:
            return 0, 0
        ids, offsets = self._tokens(text)
        inside = _overlapping(offsets, [(start, end)])
        return inside.index(True), len(ids) - inside[::-1].index(True)

    @cached_property
    def end_of_turn(self) -> int | None:
        """The token with which a turn of the assistant ends; None if it is no special token."""
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            labels = self.conversation(messages, None, "last").labels
        except ValueError:  # a template that needs other turns
            return None
        ends = [label for label in labels if label in self._special]
        return ends[-1] if ends else None

    @cached_property
    def _special(self) -> set[int]:
        """Special and added tokens that are not white space (Gemma has added line breaks)."""
        added = {
            i for i, token in self.tokenizer.added_tokens_decoder.items() if str(token).strip()
        }
        return added | set(self.tokenizer.all_special_ids)

    def _marked(self, messages: Sequence[Message], tools: Any, turns: Sequence[int]) -> list[Span]:
        """The spans that the template marks, of the trained turns."""
        spans = self.rendered.spans(messages, tools)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if list(turns) == answers:
            return spans
        chosen = []
        for turn in turns:  # a turn may have several spans
            first, after = (
                self._spans_before(messages, tools, t, spans) for t in _bounds(answers, turn)
            )
            chosen += spans[first:after]
        return chosen

    def _spans_before(
        self, messages: Sequence[Message], tools: Any, turn: int | None, spans: Sequence[Span]
    ) -> int:
        if turn is None:
            return len(spans)
        return len(self.rendered.spans(messages[:turn], tools)) if turn else 0

    def _compared(self, messages: Sequence[Message], tools: Any, text: str, turn: int) -> Span:
        """The span of an answer, by comparison with the conversation before and up to it.

        Raises:
            TurnsRewrittenError: they are not the start of ``text``.
        """
        if turn == 0:  # a greeting: its words are what differs from those of another one
            others = ([{"role": "assistant", "content": c}] for c in "ab")
            start = _shared(*(self.rendered.text(other, tools) for other in others))
            return start, self._end(messages, tools, text, turn)
        prompt = self.rendered.text(messages[:turn], tools, prompt=True)
        start = len(prompt)
        if not text.startswith(prompt):  # such as one that starts a thought
            before = self.rendered.text(messages[:turn], tools)
            start = _shared(prompt, text)
            if start < len(before):
                raise TurnsRewrittenError(
                    f"the chat template renders the messages before message {turn + 1} in another "
                    "way when an answer follows, so that the start of the answer is unknown: mark "
                    "it in the template with {% generation %} and {% endgeneration %}"
                )
        return start, self._end(messages, tools, text, turn)

    def _end(self, messages: Sequence[Message], tools: Any, text: str, turn: int) -> int:
        if turn == len(messages) - 1:
            return len(text)
        upto = self.rendered.text(messages[: turn + 1], tools)
        if not text.startswith(upto):
            raise TurnsRewrittenError(
                f"the chat template renders message {turn + 1} in another way when others follow"
            )
        return len(upto)

    def _tokens(self, text: str) -> tuple[list[int], list[Span]]:
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(found["input_ids"]), [tuple(span) for span in found["offset_mapping"]]

    def _add_ends(self, ids: list[int], learnt: list[bool], *, last: bool) -> None:
        """Train the token that ends each trained turn, and end the last turn if nothing does."""
        for at in [i for i in range(1, len(ids)) if learnt[i - 1] and not learnt[i]]:
            if not self._ended(ids, learnt, at) and ids[at] in self._special:
                learnt[at] = True
        behind = len(learnt) - learnt[::-1].index(True) if any(learnt) else 0
        if last and behind and not self._ended(ids, learnt, behind):
            end = self.tokenizer.eos_token_id
            if end is None:
                raise ValueError(
                    "the chat template does not end the answer with a special token, and the "
                    "tokenizer has no end-of-text token: the model would not learn to stop. Give "
                    "a template that ends turns with a token of the tokenizer"
                )
            ids.append(end)
            learnt.append(True)

    def _ended(self, ids: Sequence[int], learnt: Sequence[bool], at: int) -> bool:
        """Whether the last trained token before ``at`` that is not white space is special."""
        for i in range(at - 1, -1, -1):
            if ids[i] in self._special:
                return learnt[i]
            if str(self.tokenizer.decode([ids[i]])).strip():
                return False
        return False


def _bounds(answers: Sequence[int], turn: int) -> tuple[int, int | None]:
    """An answer and the one after it, if there is one."""
    at = answers.index(turn)
    return turn, answers[at + 1] if at + 1 < len(answers) else None


def _trained_turns(messages: Sequence[Message], train_on: TrainOn) -> list[int]:
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    chosen = answers[-1:] if train_on == "last" else answers
    return [i for i in chosen if messages[i].get(WEIGHT, 1)]


def _shared(one: str, other: str) -> int:
    """The number of characters with which both texts start."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)


def _overlapping(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token has a character of a span; both are in order."""
    inside, rest = [], list(reversed(spans))
    for start, end in offsets:
        while rest and start >= rest[-1][1]:
            rest.pop()
        inside.append(bool(rest) and end > rest[-1][0])
    return inside
