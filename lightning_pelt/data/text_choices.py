"""Questions with several choices, of which one is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from lightning_pelt.data._choices import Answer, AnswerKind, Choices
from lightning_pelt.data._columns import Column, Text
from lightning_pelt.data._several_texts import CollateSeveral, grouped
from lightning_pelt.data.table import TableDataModule
from lightning_pelt.utils.errors import unknown


class TextChoices(TableDataModule):
    """Questions with choices. Rows may have different numbers of choices.

    A batch has ``input_ids``, ``attention_mask`` and, if the tokenizer returns them,
    ``token_type_ids``, all (B, C, T); ``present`` (B, C), true for the choices that a row has; and
    ``labels`` (B,), the index of the right choice. Each choice is tokenized as the pair of the
    prompt and the choice, and in a pair that is too long the longer text is cut. To predict, a
    batch has the texts of the choices too.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        prompt: name of the column of the question, or of the text that it is about.
        prompt2: name of a column of which the text comes before each choice, such as the question
            about a text, or the beginning of a sentence that the choice ends.
        choices: name of a column of lists of choices, or the names of columns, one for each choice.
            A list holds texts, or texts with labels as ``{"text": [...], "label": [...]}``.
        answer: name of the column of the right choice.
        answers: what that column holds: the "index" of a choice, its "letter" (A is the first), its
            "text", or its "label" in the list. "auto" finds out, and refuses an answer that may
            mean two choices.
        first_answer: the index of the first choice: 0 or 1.
        **table: see :class:`TableDataModule` (train, dev, test, predict, dataset, ...).

    Raises:
        ValueError: one column of a single choice, or an unknown kind of answers.

    Example::

        race = TextChoices(
            "roberta-base",
            train="race.jsonl",
            prompt="article",
            prompt2="question",
            choices="options",
        )
        swag = TextChoices(
            "roberta-base",
            train="swag.csv",
            prompt="sent1",
            prompt2="sent2",
            choices=["ending0", "ending1", "ending2", "ending3"],
            answer="label",
        )
    """

    def __init__(
        self,
        backbone: str,
        *,
        prompt: str = "question",
        prompt2: str | None = None,
        choices: str | list[str] = "choices",
        answer: str = "answer",
        answers: AnswerKind = "auto",
        first_answer: int = 0,
        **table: Any,
    ) -> None:
        super().__init__(backbone, **table)
        if not isinstance(choices, str) and len(choices) < 2:
            raise ValueError(
                f"choices is {choices}, expected the name of a column of lists, or the names of "
                "two or more columns"
            )
        if answers not in get_args(AnswerKind):
            raise unknown("kind of answers", answers, get_args(AnswerKind))
        if first_answer not in (0, 1):
            raise ValueError(f"first_answer is {first_answer}, expected 0 or 1")
        self.prompt, self.prompt2 = prompt, prompt2
        self.choices, self.answer = choices, answer
        self.answers, self.first_answer = answers, first_answer

    @property
    def pair(self) -> bool:
        """Whether a row is a pair of texts: the prompt and a choice."""
        return True

    def columns(self, split: str) -> Mapping[str, Column]:
        """``prompt``, ``prompt2`` if named, ``choices``, and ``answer`` except to predict."""
        listed = isinstance(self.choices, str)
        first, *more = [self.choices] if isinstance(self.choices, str) else self.choices
        columns = {"prompt": Column(self.prompt, Text())}
        if self.prompt2:
            columns["prompt2"] = Column(self.prompt2, Text())
        columns["choices"] = Column(first, Choices(), tuple(more))
        if split != "predict":
            kind = Answer(self.answers, self.first_answer, listed)
            columns["answer"] = Column(first, kind, (*more, self.answer))
        return columns

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens of each choice with its prompt, and the index of the right choice."""
        counts = [len(choices) for choices in rows["choices"]]
        tokens = self.tokenizer(
            _repeated(rows["prompt"], counts),
            self._endings(rows),
            truncation=True,
            max_length=self.max_length,
        )
        columns: dict[str, list[Any]] = {
            name: grouped(values, counts) for name, values in tokens.items()
        }
        columns["length"] = [max(map(len, texts)) for texts in columns["input_ids"]]
        if split == "predict":
            return {**columns, "choices": rows["choices"]}
        return {**columns, "labels": rows["answer"]}

    def _endings(self, rows: Mapping[str, list[Any]]) -> list[str]:
        starts = rows.get("prompt2")
        if starts is None:
            return [choice for choices in rows["choices"] for choice in choices]
        return [
            f"{start} {choice}"
            for start, choices in zip(starts, rows["choices"], strict=True)
            for choice in choices
        ]

    def collate(self) -> CollateSeveral:
        """Pads the choices of a batch."""
        return CollateSeveral(self.tokenizer, self.fixed_lengths())


def _repeated(texts: Sequence[str], counts: Sequence[int]) -> list[str]:
    return [text for text, count in zip(texts, counts, strict=True) for _ in range(count)]
