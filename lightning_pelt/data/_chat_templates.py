"""Where a chat template comes from: the tokenizer, a file, a text of Jinja, or a name."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lightning_pelt.utils.errors import unknown

# Marks what is trained, and ends a turn of the assistant with a token.
TURNS = """\
{%- if tools %}
    {{- raise_exception('this chat template has no tools: give that of a model with tools') }}
{%- endif %}
{%- for message in messages %}
    {%- if message.tool_calls or message.role == 'tool' %}
        {{- raise_exception('this chat template has no tools: give that of a model with tools') }}
    {%- endif %}
    {{- HEAD }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content + END }}{%- endgeneration %}
    {%- else %}
        {{- message.content + END }}
    {%- endif %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {%- set message = {'role': 'assistant'} %}
    {{- HEAD }}
{%- endif %}"""


def _turns(head: str, end: str) -> str:
    return TURNS.replace("HEAD", head).replace("END", end)


NAMED = {
    "chatml": _turns("'<|im_start|>' + message.role + '\\n'", "'<|im_end|>'"),
    "zephyr": _turns("'<|' + message.role + '|>\\n'", "eos_token"),
}
# Tokens of a template that the tokenizer must have: in pieces, they would not end generation.
NEEDED = {"chatml": ("<|im_start|>", "<|im_end|>")}
REMEDY = (
    "chat_template: a file of Jinja, a Jinja text, or one of: chatml (the tokenizer needs "
    "<|im_start|> and <|im_end|>), zephyr (any tokenizer with an end-of-text token)"
)


def find_template(
    tokenizer: PreTrainedTokenizerBase, given: str | None, *, backbone: str
) -> str | dict[str, str]:
    """The chat template, or several by name, of which transformers selects one per conversation.

    Args:
        tokenizer: of the backbone.
        given: a file, a Jinja text, a name in ``NAMED`` or of a template of the tokenizer; None
            for the template of the tokenizer.
        backbone: its name, for errors.

    Raises:
        ValueError: there is no template, no such file or name, or the tokenizer lacks a token that
            a named template needs.
    """
    own = getattr(tokenizer, "chat_template", None)
    if given is None:
        if not own:
            raise ValueError(
                f"the tokenizer of {backbone!r} has no chat template. A base model has not learnt "
                f"one, so choose what it learns: {REMEDY}"
            )
        return dict(own) if isinstance(own, dict) else str(own)
    if isinstance(own, dict) and given in own:
        return str(own[given])
    if given in NAMED:
        _check_tokens(tokenizer, given, backbone)
        return NAMED[given]
    if "{" in given:
        return given
    path = Path(given).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if path.suffix or os.sep in given:
        raise FileNotFoundError(f"there is no file {given!r} with a chat template. {REMEDY}")
    names = [*NAMED, *(own if isinstance(own, dict) else ())]
    raise ValueError(f"{unknown('chat template', given, names)}, a file, or a Jinja text")


def _check_tokens(tokenizer: PreTrainedTokenizerBase, name: str, backbone: str) -> None:
    known = tokenizer.get_vocab()
    missing = [token for token in NEEDED.get(name, ()) if token not in known]
    if missing:
        raise ValueError(
            f"the tokenizer of {backbone!r} has no token {missing[0]!r}, which the chat template "
            f"{name!r} needs: use chat_template: zephyr, or add the token and train its embedding"
        )
    if name == "zephyr" and tokenizer.eos_token is None:
        raise ValueError(
            f"the chat template 'zephyr' ends turns with the end-of-text token, and the tokenizer "
            f"of {backbone!r} has none: give a template of your own"
        )
