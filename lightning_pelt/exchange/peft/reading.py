"""Adapters of PEFT: ``load_peft``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import Site, examine
from lightning_pelt.attach.attach import attach, find_model
from lightning_pelt.attach.attachment import ATTACHMENT, Attachment, find_attachment
from lightning_pelt.attach.freezing import named_tensors
from lightning_pelt.exchange.peft.config import read_config
from lightning_pelt.exchange.peft.decoding import (
    fill,
    ia3_weights,
    lora_weights,
    make_ia3,
    make_lora,
)
from lightning_pelt.exchange.peft.miss import make_miss, miss_weights
from lightning_pelt.exchange.peft.names import modules_of_base
from lightning_pelt.exchange.peft.own_plan import File, attach_own, own_plan
from lightning_pelt.exchange.peft.placing import plan_for
from lightning_pelt.exchange.peft.prompts import make_prompt, prompt_weights
from lightning_pelt.exchange.peft.targets import check_targets
from lightning_pelt.exchange.peft.tensors import read_tensors
from lightning_pelt.exchange.peft.weights import Weights
from lightning_pelt.exchange.peft.whole_modules import Whole, check_whole
from lightning_pelt.plans.plan import Plan
from lightning_pelt.utils.backbone import public_name
from lightning_pelt.utils.files import naming_file
from lightning_pelt.utils.formats import PEFT, expect_format
from lightning_pelt.utils.hub_commit import commit_of

READERS = {
    "LORA": ("lora", lora_weights, make_lora),
    "IA3": ("ia3", ia3_weights, make_ia3),
    "MISS": ("miss", miss_weights, make_miss),
    "PROMPT_TUNING": ("prompt", prompt_weights, make_prompt),
}


def load_peft(
    model: nn.Module,
    folder: str | Path,
    *,
    strict: bool = False,
    example_inputs: dict[str, Tensor] | None = None,
) -> Attachment:
    """Attach an adapter that PEFT or ``save_peft`` wrote, and load its weights.

    LoRA, (IA)3, MiSS and the prompts of some encoder-decoders can be loaded, with rsLoRA,
    ``rank_pattern``, ``alpha_pattern``, any form of ``target_modules``, ``layers_to_transform``,
    and ``modules_to_save`` (a head, norms). The plan has groups where ranks or targets differ from
    block to block. In a fused projection, such as GPT-2's, the queries, keys and values get a LoRA
    each that starts with PEFT's common A.

    Args:
        model: the base that the adapter was trained on; or a module that holds it.
        folder: of ``adapter_config.json`` and ``adapter_model.safetensors`` or ``.bin``.
        strict: raise where a base with another name, or a head that the file lacks, gives a
            warning.
        example_inputs: as in :func:`lightning_pelt.attach`.

    Raises:
        FileNotFoundError: a file is missing, or the folder has none of the known formats.
        ValueError: the folder has another format, which the message names; the adapter is of
            another method or a variant of LoRA; a tensor is missing, unknown, damaged or has
            another shape than here; a target is no site; or another plan is attached. The model is
            then as it was.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_pelt import LoRA, Plan, attach
        >>> from lightning_pelt.exchange.peft import load_peft, save_peft
        >>> from lightning_pelt.testing import tiny_gpt2
        >>> model = tiny_gpt2()
        >>> attachment = attach(model, Plan.uniform(LoRA(r=2)))
        >>> with TemporaryDirectory() as folder:
        ...     again = load_peft(tiny_gpt2(), save_peft(model, folder))
        >>> again.plan == attachment.plan
        True
    """
    path = expect_format(folder, PEFT)
    config = read_config(path)
    file, contents = read_tensors(path)
    root = find_model(model)
    before: Attachment | None = root.__dict__.get(ATTACHMENT)
    name, weights_of, make = READERS[config["peft_type"].upper()]
    with naming_file(file):
        modules = modules_of_base(root)
        check_targets(config, modules, [*contents.lora, *contents.ia3, *contents.miss])
        anatomy = examine(root, example_inputs) if before is None else before.anatomy
        weights = weights_of(config, contents, (root, anatomy))
        if not weights:
            raise ValueError("it holds no tensors of an adapter")
        whole = check_whole(root, anatomy, config, contents.rest)
        _compare_names(root, config, strict=strict)
        _compare_heads(whole, strict=strict)
        plan, attachment = own_plan(contents), None
        if plan is not None:
            attachment = attach_own(model, plan, File(config, contents, whole), example_inputs)
        if attachment is None:
            settings = {site: each.settings for site, each in weights.items()}
            plan = plan_for(anatomy, settings, make, name=name, norms=whole.norms)
            attachment = _attach(model, plan, weights, head=whole.head, inputs=example_inputs)
        _load(attachment.model, whole.tensors)
    return attachment


def _attach(
    model: nn.Module,
    plan: Plan,
    weights: Mapping[Site, Weights],
    *,
    head: list[str] | None,
    inputs: dict[str, Tensor] | None,
) -> Attachment:
    """Attach a plan and fill it; after an error the model is as it was."""
    before = find_attachment(model)
    attachment = attach(model, plan, head=head, example_inputs=inputs)
    try:
        fill(attachment, weights)
    except BaseException:
        if before is None:
            attachment.detach()
        raise
    return attachment


@torch.no_grad()
def _load(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    here = named_tensors(model)
    for name, tensor in tensors.items():
        here[name].copy_(tensor)


def _compare_names(model: PreTrainedModel, config: Mapping[str, Any], *, strict: bool) -> None:
    """Compare the name of the base with that of the model, where both have one."""
    saved, here = config.get("base_model_name_or_path"), model.name_or_path
    revision = commit_of(model.config)
    differing = []
    if saved and here and public_name(saved) != public_name(here):
        differing.append(f"{saved!r} there, {here!r} here")
    asked = config.get("revision")
    if asked and revision and len(asked) == len(revision) and asked != revision:
        differing.append(f"revision {asked!r} there, {revision!r} here")
    if differing:
        _warn(
            f"it was trained on a base of another name: {'; '.join(differing)}. If it is another "
            "model, the adapter computes something else here",
            strict=strict,
        )


def _compare_heads(whole: Whole, *, strict: bool) -> None:
    if whole.lacking:
        _warn(
            f"it holds no tensors of the head ({', '.join(sorted(whole.lacking)[:3])}): the head "
            "stays as the model has it",
            strict=strict,
        )


def _warn(message: str, *, strict: bool) -> None:
    if strict:
        raise ValueError(message)
    warnings.warn(message, stacklevel=4)
