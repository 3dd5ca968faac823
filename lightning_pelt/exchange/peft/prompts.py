"""Prompts in front of the encoder of an encoder-decoder, where PEFT computes the same.

PEFT prepends a prompt to the embeddings that a model gets as ``inputs_embeds``. On T5, mT5, UMT5,
BART and mBART that is what happens here. Pegasus and Marian scale embeddings inside the encoder,
but not those that they get; and in encoders without a decoder, PEFT leaves the prompt in the
outputs, where poolers and heads see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.attach.attachment import Attachment
from lightning_pelt.exchange.peft.gates import factor
from lightning_pelt.exchange.peft.saved_modules import SEQ_2_SEQ, task_of
from lightning_pelt.exchange.peft.tensors import PROMPT, Contents
from lightning_pelt.exchange.peft.weights import Weights
from lightning_pelt.methods.base import Method
from lightning_pelt.methods.prompt import Prompt

WORDS = 4  # in the trial of the encoder
WAY_OUT = (
    "distil_lora trains a LoRA on what this model computes, and save_peft writes that; "
    "save_adapters writes this plan as it is"
)


def write_prompt(attachment: Attachment) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields and the tensor of the prompt of a plan.

    Raises:
        ValueError: there are several prompts, the gate is closed, or PEFT would compute something
            else with the prompt.
    """
    prompts: list[Any] = [each for each in attachment.all_submodules if hasattr(each, "P")]
    if len(prompts) != 1:
        raise ValueError(f"the plan has {len(prompts)} prompts, and PEFT's format holds one")
    (prompt,), model = prompts, attachment.model
    if reason := differs(model, prompt.site.path):
        raise ValueError(f"Prompt cannot be written in PEFT's format: {reason}. {WAY_OUT}")
    scale = factor(prompt.gate, 1.0)
    if not scale:
        raise ValueError("the gate of the prompt is closed, so there is no prompt to write")
    length, width = prompt.P.shape
    stack = next(s for s in attachment.anatomy.stacks if s.path == prompt.site.path)
    fields = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": length,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_attention_heads": getattr(model.config, "num_attention_heads", None),
        "num_layers": len(stack.blocks),
        "prompt_tuning_init": "RANDOM",
    }
    return fields, {PROMPT: prompt.P.detach() * scale}


def prompt_weights(
    config: Mapping[str, Any], contents: Contents, attached_to: tuple[Any, Anatomy]
) -> dict[Site, Weights]:
    """The prompt of a file, at the input of the encoder.

    Raises:
        ValueError: PEFT computes something else with it, or its shape differs from the model's.
    """
    model, anatomy = attached_to
    if contents.prompt is None:
        raise ValueError(f"it lacks {PROMPT}")
    length = config.get("num_virtual_tokens")
    if config.get("num_transformer_submodules") != 1:
        raise ValueError(
            f"num_transformer_submodules is {config.get('num_transformer_submodules')}, so PEFT "
            "puts a prompt in front of the decoder too, and Prompt here works on encoders. Train "
            "one with num_transformer_submodules=1"
        )
    (site,) = Prompt(length=len(contents.prompt)).where(anatomy)
    if reason := differs(model, site.path):
        raise ValueError(f"its prompt would compute something else here: {reason}. Use PEFT")
    if tuple(contents.prompt.shape) != (length, site.d_in):
        raise ValueError(
            f"size mismatch: {PROMPT} is {tuple(contents.prompt.shape)} there, and "
            f"{(length, site.d_in)} is expected here"
        )
    return {site: Weights(length, (contents.prompt,))}


def make_prompt(settings: Any, roles: Any, name: str) -> Method:
    """The prompt of a given length."""
    return Prompt(length=settings, name=name)


def differs(model: PreTrainedModel, path: str) -> str | None:
    """Why PEFT computes something else with a prompt; None if it computes the same.

    Args:
        model: with or without a prompt.
        path: of the encoder.
    """
    if not model.config.is_encoder_decoder:
        return (
            "PEFT leaves the prompt in the outputs of an encoder, where poolers and heads see it, "
            "and here it is taken off"
        )
    if task_of(model) != SEQ_2_SEQ:
        return f"PEFT passes no prompt to a {type(model).__name__}"
    if not _embeds_alike(model.get_submodule(path)):
        return (
            f"{model.config.model_type} scales embeddings inside its encoder, but not the "
            "inputs_embeds in which PEFT passes the prompt"
        )
    return None


@torch.no_grad()
def _embeds_alike(encoder: Any) -> bool:
    """Whether an encoder computes the same on words and on their embeddings."""
    words = torch.arange(3, 3 + WORDS, device=encoder.device)[None]
    before = encoder.training
    encoder.eval()
    try:
        by_words = encoder(input_ids=words).last_hidden_state
        embeds = encoder.get_input_embeddings()(words)
        by_embeds = encoder(inputs_embeds=embeds).last_hidden_state
    finally:
        encoder.train(before)
    return torch.allclose(by_words, by_embeds, rtol=1e-4, atol=1e-5)
