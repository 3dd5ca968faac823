"""Conversations: their forms, the trained tokens, and what happens to those that are too long."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from chat import END, SPECIAL, llama, saved, says, tokenizer
from datasets import Dataset

from lightning_pelt.data import ChatText
from lightning_pelt.data._chat_templates import NAMED
from lightning_pelt.tasks import CausalLM

HI = [says("user", "Hi"), says("assistant", "Paris is.")]
TWO = [*HI, says("user", "And then?"), says("assistant", "Rome.")]
# Without marks; Mistral ends turns with the end of text, and another one leaves out thoughts.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{% if loop.index0 % 2 %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TOOLS = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or () %}"
    "{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
words = tokenizer()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer without a chat template and without a padding token."""
    folder = tmp_path_factory.mktemp("base")
    words.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def chats(base: str, tmp_path: Path) -> Any:
    """Makes a data module of rows; all splits have them."""

    def make(*rows: Any, template: str | None = "chatml", **options: Any) -> ChatText:
        path = saved(tmp_path / "rows.jsonl", rows)
        places = {"train": path, "dev": path, "test": path}
        return ChatText(base, **{**places, "chat_template": template, **options})

    return make


def trained(data: ChatText, split: str = "train") -> list[str]:
    """The trained tokens of each example."""
    rows = data.examples(split)["labels"][:]
    return [words.decode([i for i in row if i != -100]) for row in rows]


def texts(data: ChatText, split: str = "train") -> list[str]:
    return [words.decode(row) for row in data.examples(split)["input_ids"][:]]


# Forms of a conversation.

OPENAI = [says("system", "Be kind."), *HI]
SHAREGPT = [
    {"from": "system", "value": "Be kind."},
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Paris is."},
]


@pytest.mark.parametrize(
    "messages",
    [
        OPENAI,
        SHAREGPT,
        json.dumps(OPENAI),
        {"role": ["system", "user", "assistant"], "content": ["Be kind.", "Hi", "Paris is."]},
        [OPENAI[0], says("user", [{"type": "text", "text": "Hi"}]), {**OPENAI[2], "name": None}],
        [*OPENAI[:2], {**OPENAI[2], "tool_calls": []}],
    ],
    ids=["openai", "sharegpt", "json", "columns", "parts", "no calls"],
)
def test_every_form_of_messages_is_one_conversation(chats: Any, messages: Any) -> None:
    data = chats({"messages": messages})
    assert texts(data) == [
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nParis is.<|im_end|>\n"
    ]
    assert trained(data) == ["Paris is.<|im_end|>"]


@pytest.mark.parametrize("turns", [False, True])
def test_a_prompt_and_a_response_are_a_conversation(chats: Any, turns: bool) -> None:
    row: dict[str, Any] = {"q": "Hi", "a": "Paris is.", "s": "Be kind."}
    if turns:
        row = {"q": [*HI, says("user", "Hi")], "a": [says("assistant", "Paris is.")], "s": ""}
    data = chats(row, prompt="q", response="a", system="s")
    before = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nParis is.<|im_end|>\n"
    head = before if turns else "<|im_start|>system\nBe kind.<|im_end|>\n"
    assert texts(data) == [head + before]
    assert trained(data) == ["Paris is.<|im_end|>"]  # answers in a prompt are not trained


def test_an_answer_may_be_a_number_and_not_empty(chats: Any) -> None:
    columns = {"prompt": "q", "response": "a"}
    assert trained(chats({"q": "2 + 2", "a": 4}, **columns)) == ["4<|im_end|>"]
    with pytest.raises(ValueError, match="row 1, column 'a': the text is empty"):
        chats({"q": "2 + 2", "a": ""}, **columns).rows("train")


def test_rows_of_a_saved_data_set_have_no_keys_of_other_rows(base: str, tmp_path: Path) -> None:
    call = {"function": {"name": "weather", "arguments": '{"city": "Rome"}'}, "type": "function"}
    rows = [
        [says("user", "Hi"), {"role": "assistant", "content": None, "tool_calls": [call]}],
        [says("user", "Hi"), says("assistant", "Rome.")],
    ]
    Dataset.from_dict({"messages": rows}).save_to_disk(tmp_path / "saved")
    data = ChatText(base, train=str(tmp_path / "saved"), dev_share=0, chat_template=TOOLS)
    assert trained(data) == ["weather(Rome)<|im_end|>\n", "Rome.<|im_end|>\n"]


def test_tools_are_rendered_and_their_results_are_not_trained(chats: Any) -> None:
    call = {"name": "weather", "arguments": '{"city": "Rome"}'}
    messages = [
        {"from": "human", "value": "Hi"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "21"},
        {"from": "gpt", "value": "It is 21."},
    ]
    data = chats({"messages": messages, "t": json.dumps([TOOL])}, tools="t", template=TOOLS)
    (text,) = texts(data)
    assert text.startswith('tools: [{"type": "function", "function": {"name": "weather"')
    assert trained(data) == ["weather(Rome)<|im_end|>\nIt is 21.<|im_end|>\n"]


@pytest.mark.parametrize(
    ("messages", "says_so"),
    [
        ("[{'role': 'user'}]", r"is not JSON .* json\.dumps"),
        ([], "the conversation is empty"),
        ([says("user", "Hi")], "no message is from the assistant, only from user"),
        ([says("usr", "Hi")], "message 1: unknown role 'usr': did you mean 'user'"),
        ([{"from": "humn", "value": "Hi"}], "message 1: unknown role 'humn'.*'human'"),
        ([says("user", "Hi"), says("assistant", " ")], "message 2: the answer .* is empty"),
        ([{"content": "Hi"}], "message 1: it has no role, only content"),
        ([says("user", [{"type": "image_url"}])], "is 'image_url', and only text can be read"),
        ([says("user", "Hi", tool_calls=[{"name": "f"}])], "only the assistant calls tools"),
        ([*HI[:1], says("assistant", "a", weight=2)], "its weight is 2, expected 0"),
        ("Hi", "is not JSON"),
        (None, "None is no list of messages"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(chats: Any, messages: Any, says_so: str) -> None:
    with pytest.raises(ValueError, match=rf"rows\.jsonl, row 2, column 'messages': .*{says_so}"):
        chats(HI, {"messages": messages}).rows("train")


def test_options_that_exclude_each_other_are_refused(base: str) -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=match):
            ChatText(base, train="rows.jsonl", **options)

    refused("exclude each other", messages="m", prompt="p", response="r")
    refused("prompt= needs response=", prompt="p")
    refused("response= needs prompt=", response="r")
    refused("unknown train_on 'first'", train_on="first")
    refused("unknown truncation 'both'", truncation="both")
    refused("unknown overlong 'cutt': did you mean 'cut'", overlong="cutt")


def test_two_system_messages_are_refused(chats: Any) -> None:
    with pytest.raises(ValueError, match="starts 'Hi' has a system message"):
        chats({"messages": OPENAI, "s": "Be brief."}, system="s").tokens("train")


# Templates.


def test_without_a_chat_template_the_error_has_the_remedy(chats: Any) -> None:
    with pytest.raises(ValueError, match=r"has no chat template.*chat_template: a file.*zephyr"):
        chats(HI, template=None).tokens("train")


def test_a_template_is_the_tokenizers_a_file_a_text_or_a_name(
    chats: Any, tmp_path: Path, base: str
) -> None:
    (tmp_path / "own.jinja").write_text(LLAMA3)
    llama3 = "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    for template in (str(tmp_path / "own.jinja"), LLAMA3):
        assert texts(chats(HI, template=template))[0].startswith(llama3)
    zephyr = f"<|user|>\nHi{END}\n<|assistant|>\nParis is.{END}\n"
    assert texts(chats(HI, template="zephyr")) == [zephyr]
    folder = tmp_path / "own"
    tokenizer(chat_template=LLAMA3).save_pretrained(folder)
    data = ChatText(str(folder), train=saved(tmp_path / "r.jsonl", [HI]), dev_share=0)
    assert texts(data)[0].startswith(llama3)


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("chatlm", "unknown chat template 'chatlm': did you mean 'chatml'"),
        ("missing.jinja", "there is no file 'missing.jinja'"),
        ("{% for m in messages %}", "starts 'Hi': the chat template refuses it: .*end"),
        ("{{ raise_exception('no thanks') }}", "the chat template refuses it: no thanks"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out the words of message 1"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(chats: Any, template: str, error: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        chats(HI, template=template).tokens("train")


def test_a_tokenizer_without_the_tokens_of_chatml_is_refused(tmp_path: Path, words: str) -> None:
    data = ChatText(words, train=saved(tmp_path / "r.jsonl", [HI]), dev_share=0, max_length=64)
    data.chat_template = "chatml"
    with pytest.raises(ValueError, match=r"no token '<\|im_start\|>'.*chat_template: zephyr"):
        data.tokens("train")


def test_a_template_without_tools_or_without_a_system_message_is_refused(chats: Any) -> None:
    row = {"messages": HI, "t": [TOOL]}
    with pytest.raises(ValueError, match="leaves out the tools"):
        chats(row, tools="t", template=LLAMA3).tokens("train")
    with pytest.raises(ValueError, match="this chat template has no tools"):
        chats(row, tools="t", template="zephyr").tokens("train")
    without = LLAMA3.replace("in messages %}", "in messages if m.role != 'system' %}", 1)
    with pytest.raises(ValueError, match="leaves out the words of message 1, from system"):
        chats(OPENAI, template=without).tokens("train")


def test_thoughts_that_the_template_leaves_out_are_refused(chats: Any) -> None:
    messages = [HI[0], {**HI[1], "reasoning_content": "hm"}]
    with pytest.raises(ValueError, match="leaves out the reasoning_content of the last answer"):
        chats(messages).tokens("train")
    shown = PLAIN.replace("{{ m.content }}", "{{ m.reasoning_content }}{{ m.content }}")
    assert "hmParis is." in trained(chats(messages, template=shown))[0]
    assert "hm" not in texts(chats([*messages, *TWO[2:]]))[0]  # of an earlier answer


def test_rows_are_rendered_again_with_another_template(chats: Any, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    found = []
    for template in (LLAMA3, MISTRAL):
        file.write_text(template)
        found.append(texts(chats(HI, template=str(file)))[0][:8])
    assert found == ["<s><|sta", "<s>[INST"]


# Trained tokens.


@pytest.mark.parametrize(
    ("template", "all_turns"),
    [
        ("chatml", "Paris is.<|im_end|>Rome.<|im_end|>"),
        (LLAMA3, "Paris is.<|eot_id|>Rome.<|eot_id|>"),
        (MISTRAL, f" Paris is.{END} Rome.{END}"),
        (PLAIN, f"assistant: Paris is.\nassistant: Rome.\n{END}"),  # only the last has an end
    ],
    ids=["marks", "llama3", "mistral", "plain"],
)
def test_the_answers_are_trained_with_their_ends(chats: Any, template: str, all_turns: str) -> None:
    assert trained(chats(TWO, template=template)) == [all_turns]
    last = re.split(r"(?<=\|>)(?=Rome)|(?=assistant: Rome)|(?<=\|>)(?= Rome)", all_turns)[-1]
    assert trained(chats(TWO, template=template, train_on="last")) == [last]


def test_marks_without_the_end_of_a_turn_train_it_too(chats: Any) -> None:
    marked = LLAMA3.replace(
        "{{ m.content | trim }}",
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}",
    )
    expected = ["Paris is.<|eot_id|>Rome.<|eot_id|>"]
    assert trained(chats(TWO, template=marked)) == expected


def test_an_end_of_the_whole_text_is_not_added_twice(chats: Any) -> None:
    marked = NAMED["chatml"] + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    data = chats(TWO, template=marked)
    assert texts(data)[0].count(END) == 1 and texts(data)[0].endswith(END)
    assert trained(data) == ["Paris is.<|im_end|>Rome.<|im_end|>"]


def test_a_turn_of_weight_0_is_not_trained(chats: Any) -> None:
    messages = [HI[0], {**HI[1], "weight": 0}, *TWO[2:]]
    for template, end in (("chatml", "<|im_end|>"), (LLAMA3, "<|eot_id|>")):
        data = chats(messages, template=template)
        assert trained(data) == [f"Rome.{end}"]
        assert "weight" not in texts(data)[0]


def test_what_follows_the_last_answer_is_left_out(chats: Any) -> None:
    assert texts(chats([*HI, says("user", "Thanks")])) == texts(chats(HI))


def test_a_greeting_is_trained(chats: Any) -> None:
    assert trained(chats([says("assistant", "Hello."), *HI], template=LLAMA3)) == [
        "Hello.<|eot_id|>Paris is.<|eot_id|>"
    ]


def test_a_template_that_rewrites_turns_makes_an_example_of_each_answer(chats: Any) -> None:
    messages = [HI[0], says("assistant", "<think>hm</think>Paris."), *TWO[2:]]
    data = chats(messages, template=THOUGHTS)
    first = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert texts(data) == [
        f"{first}<think>hm</think>Paris.<|im_end|>\n",
        f"{first}Paris.<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n"
        "<|im_start|>assistant\nRome.<|im_end|>\n",
    ]
    assert trained(data) == ["<think>hm</think>Paris.<|im_end|>\n", "Rome.<|im_end|>\n"]


def test_an_answer_whose_start_is_unknown_is_refused(chats: Any) -> None:
    counted = LLAMA3.replace("{{ bos_token }}", "{{ messages | length }} messages: ")
    with pytest.raises(ValueError, match=r"'Hi'.*before message 2 in another way.*generation %"):
        chats(TWO, template=counted).tokens("train")


def test_the_end_is_trained_and_padding_is_not_if_both_are_one_token(chats: Any) -> None:
    data = chats(HI, TWO, template="zephyr", batch_size=2)
    assert data.tokenizer.pad_token == END
    (batch,) = data.train_dataloader()
    end = data.tokenizer.eos_token_id
    kept = batch["labels"] == end
    assert kept.sum(1).tolist() == [2, 1] or kept.sum(1).tolist() == [1, 2]
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert not (batch["labels"] == end)[batch["attention_mask"] == 0].any()


# Length.

LONG = [
    says("system", "Be kind."),
    *(says(role, f"{role} {n}") for n in range(4) for role in ("user", "assistant")),
]


def numbers(data: ChatText, split: str = "train") -> list[list[str]]:
    """The roles and numbers of the turns of each example."""
    return [re.findall(r"(?:user|assistant) \d", text) for text in texts(data, split)]


def test_whole_turns_are_left_out_from_one_side(chats: Any) -> None:
    every = [f"{role} {n}" for n in range(4) for role in ("user", "assistant")]
    length = len(chats(LONG).examples("train")["input_ids"][0])
    assert numbers(chats(LONG, max_length=length)) == [every]
    for shorter in range(1, 4):  # one token less than the rest needs
        left = chats(LONG, max_length=length - 1, truncation="left")
        right = chats(LONG, max_length=length - 1, truncation="right")
        assert numbers(left) == [every[2 * shorter :]]
        assert numbers(right) == [every[: -2 * shorter]]
        assert texts(left)[0].startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user")
        assert trained(right)[0].endswith(f"assistant {3 - shorter}<|im_end|>")
        length = len(left.examples("train")["input_ids"][0])
        assert length == len(right.examples("train")["input_ids"][0])


WORDY = [says("user", "What is the capital? " * 20), says("assistant", "Paris.")]
CHATTY = [says("user", "Hi"), says("assistant", "What is the capital? " * 20)]


def test_a_turn_that_is_too_long_is_left_out_with_a_warning(chats: Any) -> None:
    data = chats(HI, WORDY, CHATTY, max_length=40)
    message = r"train: 2 of 3 .*: 2 whose last turns .* max_length=40 \(first: 'What is the"
    with pytest.warns(UserWarning, match=message):
        assert trained(data) == ["Paris is.<|im_end|>"]
    with pytest.warns(UserWarning, match="2 of 3"):  # also when the tokens come from the cache
        chats(HI, WORDY, CHATTY, max_length=40).tokens("train")
    with pytest.raises(ValueError, match="no conversation can be trained: 1 whose last"):
        chats(WORDY, max_length=40).tokens("train")
    with pytest.raises(ValueError, match=r"starts 'What.*, and max_length is 40.*overlong"):
        chats(HI, WORDY, max_length=40, overlong="error").tokens("train")


def test_a_turn_that_is_too_long_is_cut(chats: Any) -> None:
    data = chats(WORDY, CHATTY, max_length=40, overlong="cut")
    question, answer = texts(data)
    assert {len(ids) for ids in data.examples("train")["input_ids"][:]} == {40}
    assert question.startswith("<|im_start|>user\n") and question.endswith("Paris.<|im_end|>\n")
    assert answer.startswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nWhat is")
    assert trained(data)[0] == "Paris.<|im_end|>"
    assert "<|im_end|>" not in trained(data)[1]  # a cut answer has not ended
    with pytest.warns(UserWarning, match="1 of 2.*: 1 without a trained token .first: 'What"):
        chats(HI, WORDY, max_length=40, overlong="cut", truncation="right").tokens("train")


def test_a_question_that_the_answer_repeats_is_cut_in_the_question(chats: Any) -> None:
    messages = [WORDY[0], says("assistant", WORDY[0]["content"].strip() + " Yes.")]
    length = len(chats(messages).examples("train")["input_ids"][0]) - 9
    data = chats(messages, max_length=length, overlong="cut")
    assert trained(data) == [WORDY[0]["content"].strip() + " Yes.<|im_end|>"]


def test_a_prediction_starts_after_the_last_question(chats: Any, tmp_path: Path) -> None:
    rows = saved(tmp_path / "new.jsonl", [TWO, TWO[:3], [*OPENAI[:1], *WORDY[:1]]])
    data = chats(HI, predict=rows, max_length=60, batch_size=3)
    (batch,) = data.predict_dataloader()
    assert set(batch) == {"input_ids", "attention_mask"}
    asked = texts(data, "predict")
    assert asked[0] == asked[1] == texts(chats(TWO))[0].removesuffix("Rome.<|im_end|>\n")
    assert asked[2].startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")
    assert asked[2].endswith("capital? <|im_end|>\n<|im_start|>assistant\n")
    assert len(data.examples("predict")["input_ids"][2]) == 60
    with pytest.raises(ValueError, match="system message and its last turn have"):
        chats(HI, predict=rows, max_length=10).tokens("predict")


def test_rows_of_prompts_are_predicted_without_their_responses(chats: Any, tmp_path: Path) -> None:
    asked = saved(tmp_path / "new.jsonl", [{"q": "Hi"}])
    data = chats({"q": "Hi", "a": "b"}, prompt="q", response="a", predict=asked)
    assert texts(data, "predict") == ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]


# Batches.


def test_packed_rows_hold_the_examples_with_their_own_positions(chats: Any) -> None:
    data = chats(HI, TWO, HI, packing=True, max_length=80, batch_size=8)
    alone = chats(HI, TWO, HI)
    (batch,) = data.train_dataloader()
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert sorted("".join(texts(data))) == sorted("".join(texts(alone)))
    assert sorted("".join(trained(data))) == sorted("".join(trained(alone)))
    assert (data.lengths("train") <= 80).all() and len(data.lengths("train")) < 3
    (batch,) = data.val_dataloader()
    assert set(batch) == {"input_ids", "attention_mask", "labels"}  # not packed
    fixed = chats(HI, TWO, HI, packing=True, max_length=80, pad="max_length")
    (batch,) = fixed.train_dataloader()
    assert {value.shape[1] for value in batch.values()} == {80}


def test_the_loss_of_packed_rows_is_that_of_the_examples_alone(tmp_path: Path) -> None:
    folder = llama(tmp_path / "llama", words)
    rows = saved(tmp_path / "rows.jsonl", [HI, TWO, LONG, HI])
    totals = []
    for packing in (False, True):
        data = ChatText(
            folder, train=rows, dev_share=0, chat_template="zephyr", packing=packing, batch_size=4
        )
        (batch,) = data.train_dataloader()
        task = CausalLM()
        model = task.load(folder)
        with torch.no_grad():
            loss, _ = task.step(model, batch)
        assert len(batch["input_ids"]) == (1 if packing else 4)
        totals.append((float(loss), int((batch["labels"][:, 1:] != -100).sum())))
    assert totals[0][1] == totals[1][1]
    assert totals[0][0] == pytest.approx(totals[1][0], rel=1e-5)


def test_a_turn_that_generation_would_not_stop_at_is_warned_of(
    chats: Any, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.warns(UserWarning, match=r"ends a turn with '<\|im_end\|>'.*set stop="):
        chats(HI).setup("fit")
    recwarn.clear()
    chats(HI, template="zephyr").setup("fit")
    assert not [w for w in recwarn if "ends a turn" in str(w.message)]


def test_the_generation_configuration_of_the_backbone_may_stop(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    end = words.convert_tokens_to_ids("<|im_end|>")
    folder = llama(tmp_path / "chat", words, eos_token_id=[0, end])
    path = saved(tmp_path / "r.jsonl", [HI])
    ChatText(folder, train=path, dev_share=0, chat_template="chatml", max_length=64).setup("fit")
    assert not [w for w in recwarn if "ends a turn" in str(w.message)]


def test_special_tokens_are_one_token_each() -> None:
    ids: Sequence[int] = words("".join(SPECIAL))["input_ids"]
    assert len(ids) == len(SPECIAL)
