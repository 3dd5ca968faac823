"""What ``--print_data`` prints: texts, and which of their tokens are trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from chat import saved, says, tokenizer
from small import Sentences, t5

from lightning_pelt.data import CausalText, ChatText, TextToText
from lightning_pelt.data.preview import GREEN, PLAIN, preview

CHATS = [
    [says("user", "Hi"), says("assistant", "Paris is.")],
    [
        *(says("user", "Hi"), says("assistant", "21 degrees: ü 🙂")),
        *(says("user", "And?"), says("assistant", "Rome.")),
    ],
]


@pytest.fixture
def chats(tmp_path: Path) -> Any:
    tokenizer().save_pretrained(tmp_path / "base")

    def make(**options: Any) -> ChatText:
        rows = saved(tmp_path / "rows.jsonl", CHATS)
        options = {"train": rows, "test": rows, "dev_share": 0, "chat_template": "chatml"} | options
        return ChatText(str(tmp_path / "base"), **options)

    return make


def cells(table: str) -> list[list[str]]:
    """The cells of a grid, with the lines of each."""
    rows = re.split(r"\n\+[-=+]+\+(?:\n|$)", table)[1:]
    lines = [[line.strip("|").split("|", 3) for line in row.split("\n")] for row in rows if row]
    return [
        ["\n".join(cell.rstrip() for cell in c) for c in zip(*row, strict=True)] for row in lines
    ]


def test_trained_tokens_are_marked_in_a_table(chats: Any) -> None:
    data = chats()
    first, second = cells(preview(data, 5))
    assert [int(x.split()[0]) for x in first[:3]] == [0, *sizes(data, 0)]
    assert [int(x.split()[0]) for x in second[:3]] == [1, *sizes(data, 1)]
    lines = [line.strip() for line in first[3].split("\n")]
    assert lines[0] == "<|im_start|>user"
    assert "{+Paris is.<|im_end|>+}" in lines
    assert "{+21 degrees: ü 🙂<|im_end|>+}" in second[3]
    assert "{+Rome.<|im_end|>+}" in second[3]
    assert second[3].count("{+") == 2


def sizes(data: ChatText, row: int) -> list[int]:
    labels = data.examples("train")["labels"][row]
    return [len(labels), sum(label != -100 for label in labels)]


def test_trained_tokens_are_green_on_a_terminal(chats: Any) -> None:
    table = preview(chats(), 1, colour=True)
    assert f"{GREEN}Paris is.<|im_end|>{PLAIN}" in table
    assert "{+" not in table
    plain = re.sub(r"\033\[[0-9;]*m", "", table).split("\n")
    assert len({len(line) for line in plain}) == 1  # codes take no room


def test_only_the_rows_asked_for_are_shown(chats: Any) -> None:
    assert len(cells(preview(chats(), 1))) == 1
    assert len(cells(preview(chats(), 1, split="test"))) == 1
    with pytest.raises(ValueError, match="0 rows cannot be shown"):
        preview(chats(), 0)


def test_examples_of_a_packed_row_start_on_lines_of_their_own(chats: Any) -> None:
    (row,) = cells(preview(chats(packing=True, max_length=200), 3))
    assert sum(line.strip().startswith("<|im_start|>user") for line in row[3].split("\n")) == 3
    assert row[3].count("{+") == 3


def test_a_long_text_is_wrapped_and_marked_on_every_line(
    chats: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = saved(tmp_path / "long.jsonl", [[CHATS[0][0], says("assistant", "Paris is. " * 20)]])
    (row,) = cells(preview(chats(train=rows), 1))
    marked = re.findall(r"\{\+(.*?)\+\}", row[3])
    assert len(marked) > 3
    assert "".join(marked) == "Paris is. " * 20 + "<|im_end|>"


def test_prompts_and_targets_of_other_data_are_shown(words: str, tmp_path: Path) -> None:
    file = saved(tmp_path / "rows.jsonl", [{"q": "a b", "text": "c d"}])
    data = CausalText(words, train=file, prompt="q", dev_share=0)
    assert cells(preview(data, 1))[0][3].strip() == "<s> a b{+ c d </s>+}"
    sources = saved(tmp_path / "two.jsonl", [{"source": "one two", "target": "yes"}])
    pairs = TextToText(t5(tmp_path / "t5"), train=sources, dev_share=0, max_length=32)
    (row,) = cells(preview(pairs, 1))
    assert [line.strip() for line in row[3].split("\n")] == ["one two </s>", "{+yes </s>+}"]


def test_labels_that_are_no_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Sentences has no labels of tokens"):
        preview(Sentences(t5(tmp_path / "t5")), 1)


class WordsOfTwoKinds(Sentences):
    """The class of every word is whether it has more than three letters."""

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        tokens = dict(self.tokenizer(rows["text"], return_token_type_ids=False))
        words = [self.tokenizer.convert_ids_to_tokens(ids) for ids in tokens["input_ids"]]
        tags = [[-100 if w == "</s>" else int(len(w) > 3) for w in row] for row in words]
        return {**tokens, "labels": tags}


def test_words_with_classes_are_trained_tokens(tmp_path: Path) -> None:
    data = WordsOfTwoKinds(t5(tmp_path / "t5"))
    (row,) = cells(preview(data, 1))
    text = data.rows("train")["text"][0]
    assert " ".join(row[3].split()) == f"{{+{text}+}} </s>"
