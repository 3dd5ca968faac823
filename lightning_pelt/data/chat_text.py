"""Conversations of files or hub data sets, for instruction tuning of decoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_pelt.data._chat_cutting import Side
from lightning_pelt.data._chat_rows import (
    ChatRows,
    Example,
    Overlong,
    about,
    conversations,
    left_out_message,
)
from lightning_pelt.data._chat_stop import stop_tokens
from lightning_pelt.data._chat_templates import find_template
from lightning_pelt.data._chat_tokens import ChatTokens, TrainOn
from lightning_pelt.data._columns import Column, Text
from lightning_pelt.data._messages import Messages, Tools
from lightning_pelt.data.collator import Collate
from lightning_pelt.data.packing import POSITIONS, CollatePacked, pack
from lightning_pelt.data.table import TableDataModule
from lightning_pelt.utils.errors import unknown

CHOICES = {
    "train_on": ("last", "all"),
    "truncation": ("left", "right"),
    "overlong": ("drop", "cut", "error"),
}
LEFT_OUT, ABOUT = "left_out", "about"  # columns: why a row has no tokens, and how it starts


class ChatText(TableDataModule):
    """Conversations for instruction tuning. Only the turns of the assistant are trained.

    A row is a list of messages, in the OpenAI form (``{"role": "user", "content": "..."}``, also
    with ``tool_calls``) or in the ShareGPT form (``{"from": "human", "value": "..."}``), or JSON
    text of one; or it is a ``prompt`` and a ``response``. It is rendered with the chat template of
    the tokenizer. The trained tokens are those of the assistant's turns, with the token that ends a
    turn, so that the model learns to stop: those between the ``{% generation %}`` marks of the
    template or, without marks, those that follow the conversation so far and the start of an
    answer. ``lightning-pelt fit --print_data 3`` shows them. A turn of the assistant with
    ``"weight": 0`` is not trained.

    A template that renders an answer in another way when other turns follow, such as without its
    thoughts, makes an example of each trained answer and the turns before it. An answer that the
    template does not end with a special token gets the end-of-text token.

    A conversation with more than ``max_length`` tokens loses whole turns, but not its system
    message. Rows that are still too long, and rows without a trained token, are left out with a
    warning that counts them.

    In prediction, the last answer of a row is not used, and may be missing; the model generates it.
    No row is left out: a question that is too long loses its beginning.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        messages: name of the column of the conversation; by default "messages", unless there is a
            ``prompt``.
        prompt: name of the column of the question: a text, or messages, of which none is trained.
        response: name of the column of the answer: a text, or messages.
        system: name of a column of system messages, which may be empty.
        tools: name of a column of tools that the assistant may call: a list of JSON schemas.
        chat_template: a file of Jinja, a text of Jinja, or "chatml" or "zephyr"; by default the
            template of the tokenizer.
        train_on: all turns of the assistant, or the last.
        truncation: the side from which a conversation that is too long loses turns.
        overlong: what happens to a row of which the shortest part is too long. "drop" leaves it
            out; "cut" cuts the beginning of its last question (from the left) or the end of its
            answer; "error" raises.
        packing: put several training examples into one row of at most ``max_length`` tokens, each
            with its own positions and attention. The rows of other splits are not packed.
        max_length: maximum number of tokens per example, or per packed row.
        **table: see :class:`TableDataModule` (train, dev, test, predict, dataset, ...).

    Raises:
        ValueError: an unknown option, columns that exclude each other, or the tokenizer has no
            chat template and none is given. When the rows are read: a row that is no conversation,
            or that the template refuses; the message names it.

    Example::

        data = ChatText("Qwen/Qwen2.5-0.5B-Instruct", train="chats.jsonl", packing=True)
        data = ChatText("gpt2", train="qa.csv", prompt="q", response="a", chat_template="zephyr")
    """

    def __init__(
        self,
        backbone: str,
        *,
        messages: str | None = None,
        prompt: str | None = None,
        response: str | None = None,
        system: str | None = None,
        tools: str | None = None,
        chat_template: str | None = None,
        train_on: TrainOn = "all",
        truncation: Side = "left",
        overlong: Overlong = "drop",
        packing: bool = False,
        max_length: int = 1024,
        **table: Any,
    ) -> None:
        super().__init__(backbone, max_length=max_length, **table)
        given = {"train_on": train_on, "truncation": truncation, "overlong": overlong}
        for name, value in given.items():
            if value not in CHOICES[name]:
                raise unknown(name, value, CHOICES[name])
        if messages is not None and prompt is not None:
            raise ValueError(
                f"messages={messages!r} and prompt={prompt!r} exclude each other: a row is a list "
                "of messages, or a prompt and a response"
            )
        if (prompt is None) != (response is None):
            one, other = ("response", "prompt") if prompt is None else ("prompt", "response")
            raise ValueError(f"{one}= needs {other}=, the name of the other column")
        self.messages = "messages" if messages is None and prompt is None else messages
        self.prompt, self.response = prompt, response
        self.system, self.tools = system, tools
        self.chat_template = chat_template
        self.train_on, self.truncation, self.overlong = train_on, truncation, overlong
        self.packing = packing
        self._ready: dict[str, Dataset] = {}

    def columns(self, split: str) -> Mapping[str, Column]:
        """The columns of a conversation; a row to predict needs no answer."""
        columns = {}
        if self.messages:
            columns["messages"] = Column(self.messages, Messages(answered=split != "predict"))
        if self.prompt:
            columns["prompt"] = Column(self.prompt, Messages(role="user"))
        if self.response and split != "predict":
            columns["response"] = Column(self.response, Messages(answered=True, role="assistant"))
        if self.system:
            columns["system"] = Column(self.system, Text(may_be_empty=True))
        if self.tools:
            columns["tools"] = Column(self.tools, Tools())
        return columns

    @cached_property
    def chat(self) -> ChatTokens:
        """Renders conversations to tokens.

        Raises:
            ValueError: there is no chat template.
        """
        template = find_template(self.tokenizer, self.chat_template, backbone=self.backbone)
        return ChatTokens(self.tokenizer, template)

    @cached_property
    def _rows(self) -> ChatRows:
        return ChatRows(self.chat, self.max_length, self.train_on, self.truncation, self.overlong)

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens, and ``labels`` with -100 on the tokens that are not trained.

        A row that is left out has no tokens, and ``left_out`` says why.
        """
        found: list[tuple[Example, str]] = []
        for messages, tools in conversations(rows):
            try:
                if split == "predict":
                    examples = [Example(self._rows.prompt(messages, tools))]
                else:
                    examples = self._rows.examples(messages, tools)
            except ValueError as error:
                raise ValueError(
                    f"{split}: the conversation that starts {about(messages)}: {error}"
                ) from error
            found += [(example, about(messages)) for example in examples]
        kept = [[] if example.left_out else example.tokens.ids for example, _ in found]
        columns = {"input_ids": kept, "attention_mask": [[1] * len(ids) for ids in kept]}
        if split == "predict":
            return columns
        labels = [[] if example.left_out else example.tokens.labels for example, _ in found]
        return {
            **columns,
            "labels": labels,
            LEFT_OUT: [example.left_out for example, _ in found],
            ABOUT: [start if example.left_out else "" for example, start in found],
        }

    def tokens(self, split: str) -> Dataset:
        """The examples of ``split``; in training they are packed if ``packing`` is set.

        Raises:
            ValueError: all rows are left out.
        """
        if split not in self._ready:
            examples = super().tokens(split)
            if LEFT_OUT in examples.column_names:
                examples = self._without_left_out(examples, split)
            if self.packing and split == "train":
                examples = pack(examples, self.max_length)
            self._ready[split] = examples
        return self._ready[split]

    def _without_left_out(self, examples: Dataset, split: str) -> Dataset:
        reasons = np.asarray(examples[LEFT_OUT][:])
        out = np.flatnonzero(reasons != "")
        kept = examples.remove_columns([LEFT_OUT, ABOUT])
        if not len(out):
            return kept
        message = left_out_message(
            reasons[out].tolist(), examples.select(out)[ABOUT][:], self.max_length
        )
        if len(out) == len(reasons):
            raise ValueError(f"{split}: no conversation can be trained: {message}")
        rank_zero_warn(
            f"{split}: {len(out)} of {len(reasons)} conversations are left out: {message}"
        )
        return kept.select(np.flatnonzero(reasons == ""))

    def collate(self) -> Collate:
        """Pads the columns of a batch; packed rows get no ``attention_mask``."""
        length = self.max_length if self.pad == "max_length" else None
        packed = CollatePacked(self.tokenizer, length=length)
        return CollateChat(self.tokenizer, self.fixed_lengths(), packed)

    def fixed_lengths(self) -> dict[str, int]:
        """With a fixed length, that of the labels too."""
        lengths = super().fixed_lengths()
        return {**lengths, "labels": self.max_length} if lengths else {}

    def setup(self, stage: str) -> None:
        """Read and prepare the splits of ``stage``, and check that generation will stop."""
        super().setup(stage)
        self._check_stop()

    def _check_stop(self) -> None:
        """Warn if generation would go on after the token that ends a turn."""
        end = self.chat.end_of_turn
        task = getattr(self.trainer and self.trainer.lightning_module, "task", None)
        if end is None or end in stop_tokens(self.backbone, self.tokenizer):
            return
        token = self.tokenizer.convert_ids_to_tokens(end)
        if token not in getattr(task, "stop", ()):
            rank_zero_warn(
                f"the chat template ends a turn with {token!r}, at which {self.backbone!r} does "
                f"not stop: set stop=[{token!r}] of CausalLM "
                f"(model.task.init_args.stop), or the eos_token_id of its generation configuration"
            )

    @cached_property
    def _vocabulary(self) -> Any:
        """What determines tokens: here also the template and the special tokens in it."""
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()}
        return super()._vocabulary, self.chat.template, special


class CollateChat(Collate):
    """Pads examples, and packed rows, which have positions."""

    def __init__(self, tokenizer: Any, lengths: Mapping[str, int], packed: CollatePacked) -> None:
        super().__init__(tokenizer, lengths)
        self.packed = packed

    def __call__(
        self, rows: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        names = rows if isinstance(rows, Mapping) else rows[0]
        return self.packed(rows) if POSITIONS in names else super().__call__(rows)
