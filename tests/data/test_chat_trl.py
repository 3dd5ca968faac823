"""Tokens and labels of conversations equal those that TRL's SFTTrainer trains on."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from chat import llama, saved, says, tokenizer
from datasets import Dataset
from transformers import AutoModelForCausalLM

from lightning_pelt.data import ChatText
from lightning_pelt.tasks import CausalLM

pytestmark = pytest.mark.slow  # TRL takes seconds to import

GENERATED = "{% generation %}", "{% endgeneration %}"
ANSWER = "{% if m.role == 'assistant' %}START{{ TURN }}STOP{% else %}{{ TURN }}{% endif %}"


def turns(head: str, turn: str, *, before: str = "", after: str = "") -> str:
    """A template without marks: START and STOP stand where the marks of an answer are."""
    return (
        f"{before}{{% for m in messages %}}{{{{ {head.format('m.role')} }}}}"
        f"{ANSWER.replace('TURN', turn)}{after}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {head.format(repr('assistant'))} }}}}{{% endif %}}"
    )


LINE = "{{ '\\n' }}"
BOS = "{{ bos_token }}"
TEMPLATES = {
    "chatml": turns("'<|im_start|>' + {} + '\\n'", "m.content + '<|im_end|>'", after=LINE),
    "llama3": turns(
        "'<|start_header_id|>' + {} + '<|end_header_id|>\\n\\n'",
        "m.content | trim + '<|eot_id|>'",
        before=BOS,
    ),
    "mistral": BOS + "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}START{{ m.content }}{{ eos_token }}STOP{% endif %}{% endfor %}",
    "zephyr": turns("'<|' + {} + '|>\\n'", "m.content + eos_token", after=LINE),
}
OF_TRL = ("gemma", "gemma3", "llama3", "qwen2_5_vl", "qwen3_instruct_2507", "lfm2")
CHATS = [
    [says("user", "What is the capital?"), says("assistant", "Paris is the capital.")],
    [
        says("user", "Hi "),
        says("assistant", "21 degrees\n\nin Lisbon: ü 🙂"),
        says("user", "And then?"),
        says("assistant", "Rome"),
    ],
    [says("user", "x"), says("assistant", "<think>no</think> y")],
]
SYSTEM = [says("system", "You are kind."), *CHATS[1]]


def own(name: str, *, marked: bool) -> str:
    start, stop = GENERATED if marked else ("", "")
    return TEMPLATES[name].replace("START", start).replace("STOP", stop)


def of_trl(name: str) -> str:
    spec = find_spec("trl")
    assert spec and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations))) / "chat_templates"
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return llama(tmp_path_factory.mktemp("llama"), tokenizer())


@pytest.fixture
def trl_batch(base: str, tmp_path: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """The first batch of TRL's trainer."""
    pytest.importorskip("trl")  # needs Python 3.11
    from trl import SFTConfig, SFTTrainer

    def batch(rows: list[dict[str, Any]], template: str, **options: Any) -> dict[str, torch.Tensor]:
        config = SFTConfig(
            str(tmp_path / "trl"),
            per_device_train_batch_size=len(rows),
            max_length=None,
            use_cpu=True,
            bf16=False,
            report_to=[],
            **options,
        )
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(base),
            config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(chat_template=template),
        )
        return dict(trainer.data_collator(list(trainer.train_dataset)))

    return batch


def our_batch(base: str, file: Path, rows: list[Any], **options: Any) -> dict[str, torch.Tensor]:
    data = ChatText(base, test=saved(file, rows), batch_size=9, bucketed=False, **options)
    (batch,) = data.test_dataloader()
    return batch


def check_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name in ("input_ids", "labels", "attention_mask"):
        assert ours[name].tolist() == theirs[name].tolist(), name


@pytest.mark.parametrize("name", TEMPLATES)
def test_marks_and_comparison_train_what_trl_trains(
    base: str, trl_batch: Any, tmp_path: Path, name: str
) -> None:
    chats = [*CHATS, SYSTEM]
    rows = [{"messages": chat} for chat in chats]
    marked = own(name, marked=True)
    theirs = trl_batch(rows, marked, assistant_only_loss=True)
    check_equal(our_batch(base, tmp_path / "a.jsonl", chats, chat_template=marked), theirs)
    compared = own(name, marked=False)
    ours = our_batch(base, tmp_path / "a.jsonl", chats, chat_template=compared)
    if name in ("chatml", "zephyr"):  # by comparison, the line break behind the end is trained
        after = ours["labels"] != theirs["labels"]
        texts = {tokenizer().decode([i]) for i in ours["labels"][after].tolist()}
        assert texts == {"\n"}
        ours = {**ours, "labels": torch.where(after, theirs["labels"], ours["labels"])}
    check_equal(ours, theirs)


@pytest.mark.parametrize("name", OF_TRL)
def test_comparison_finds_what_trl_marks_in_the_templates_of_models(
    base: str, trl_batch: Any, tmp_path: Path, name: str
) -> None:
    rows = [{"messages": chat} for chat in CHATS]
    theirs = trl_batch(rows, of_trl(f"{name}_training"), assistant_only_loss=True)
    check_equal(our_batch(base, tmp_path / "a.jsonl", CHATS, chat_template=of_trl(name)), theirs)


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_with_responses_train_what_trl_trains(
    base: str, trl_batch: Any, tmp_path: Path, name: str
) -> None:
    template = own(name, marked=False)
    pairs = [(chat[:-1], chat[-1:]) for chat in [*CHATS, SYSTEM]]
    theirs = trl_batch([{"prompt": p, "completion": c} for p, c in pairs], template)
    rows = [{"q": p, "a": c} for p, c in pairs]
    options = {"prompt": "q", "response": "a", "chat_template": template}
    check_equal(our_batch(base, tmp_path / "a.jsonl", rows, **options), theirs)


def test_tools_and_calls_train_what_trl_trains(base: str, trl_batch: Any, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    chat = [
        says("user", "Hi"),
        says("assistant", "", tool_calls=[call]),
        says("tool", "21 degrees", name="weather"),
        says("assistant", "It is 21."),
    ]
    theirs = trl_batch(
        [{"messages": chat, "tools": json.dumps([tool])}],
        of_trl("qwen3_instruct_2507_training"),
        assistant_only_loss=True,
    )
    row = {"messages": chat, "tools": [tool]}
    template = of_trl("qwen3_instruct_2507")
    ours = our_batch(base, tmp_path / "a.jsonl", [row], tools="tools", chat_template=template)
    check_equal(ours, theirs)


def test_the_loss_is_that_of_the_model_in_trl(base: str, trl_batch: Any, tmp_path: Path) -> None:
    template = own("llama3", marked=True)
    theirs = trl_batch([{"messages": chat} for chat in CHATS], template, assistant_only_loss=True)
    ours = our_batch(base, tmp_path / "a.jsonl", CHATS, chat_template=template)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        loss, _ = CausalLM().step(model, ours)
        expected = model(**theirs).loss
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
