"""Adapters as files: safetensors beside a readable configuration; and merging into the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightning_pelt.attach import Attachment, attach, find_attachment, find_model
from lightning_pelt.files import write_aside
from lightning_pelt.methods.lora import LoRA, LoRAUp
from lightning_pelt.plan import from_config

TENSORS = "adapters.safetensors"
CONFIG = "adapter_config.json"
FORMAT = "1"


def save_adapters(model: nn.Module, folder: str | Path, *, fold: bool = False) -> Path:
    """Write submodules, gates and head of an attached model into ``folder``.

    ``adapters.safetensors`` holds the tensors and, in its header, the configuration;
    ``adapter_config.json`` is that configuration for people. Each file is written aside and
    renamed, so a failure leaves what was there.

    Args:
        model: an attached model, or a module that holds one.
        folder: is created where it does not exist.
        fold: write what the prefix MLP gives rather than the MLP, which only training needs.

    Raises:
        ValueError: nothing is attached.
        OSError: the disk is full or cannot be written.
    """
    attachment = _attached(model)
    tensors = _folded(attachment) if fold else _owned(attachment)
    plan = attachment.plan.folded() if fold else attachment.plan
    config = {"format": FORMAT, "plan": plan.to_config(), "backbone": _describe(attachment)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    header = {"lightning_pelt": json.dumps(config)}
    write_aside(folder / TENSORS, lambda path: save_file(tensors, path, metadata=header))
    text = json.dumps(config, indent=2, ensure_ascii=False)
    write_aside(folder / CONFIG, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    return folder


def load_adapters(model: nn.Module, folder: str | Path) -> Attachment:
    """Attach what :func:`save_adapters` wrote and load its weights.

    Args:
        model: the backbone that the adapters were trained on, with a head of the same shape; or a
            module that holds it. It may carry an equal plan already.
        folder: of the two files.

    Raises:
        FileNotFoundError: there is no ``adapters.safetensors``.
        ValueError: the file is truncated or foreign, the backbone is another one (what differs is
            said), or the model carries another plan.
    """
    path = Path(folder) / TENSORS
    if not path.is_file():
        raise FileNotFoundError(f"there is no {TENSORS} in {folder}: save_adapters writes it")
    config, tensors = _read(path)
    root = find_model(model)
    before = root.__dict__.get("pelt_attachment")
    attachment = attach(root, from_config(config["plan"]))
    try:
        _refuse_other_backbone(config["backbone"], _describe(attachment), path)
        _refuse_other_shapes(root, tensors, path)
        _load(root, tensors, path)
    except ValueError:
        if before is None:
            attachment.detach()
        raise
    return attachment


def merge(model: nn.Module) -> PreTrainedModel:
    """Add the ungated LoRA updates of ``model`` to its weights and take the submodules off.

    Raises:
        ValueError: a gate depends on the input, so no one weight can stand for it; another method
            than LoRA is attached; or a weight is quantised.
    """
    attachment = _attached(model)
    for method in attachment.plan.methods:
        if not isinstance(method, LoRA):
            raise ValueError(
                f"{type(method).__name__} cannot be merged into the weights, only ungated LoRA "
                "can: serve the model with its adapters, or train a plan of LoRA alone"
            )
        if method.gate is not None:
            raise ValueError(
                f"{method.name!r} is gated: its contribution differs from input to input, so no "
                "weight can stand for it. Serve it unmerged, or train LoRA(gate=None)"
            )
    root = attachment.model
    updates = [
        m for group in attachment.submodules.values() for m in group if isinstance(m, LoRAUp)
    ]
    hosts = [(root.get_submodule(update.path), update) for update in updates]
    for host, update in hosts:
        weight: Any = host.weight
        if not weight.is_floating_point():
            raise ValueError(
                f"{update.path} is quantised ({weight.dtype}): LoRA cannot be merged into it"
            )
    with torch.no_grad():
        for host, update in hosts:
            weight = host.weight
            transposed = isinstance(host, Conv1D)
            delta = update.delta(weight.shape[1] if transposed else weight.shape[0])
            weight.add_((delta.T if transposed else delta).to(weight.dtype))
    attachment._norms_before.clear()  # what norms have learnt is merged as well
    attachment.detach()
    return root


def _attached(model: nn.Module) -> Attachment:
    attachment = find_attachment(model)
    if attachment is None:
        raise ValueError(
            f"nothing is attached to {type(model).__name__}: call attach(model, plan) first"
        )
    return attachment


def _owned(attachment: Attachment) -> dict[str, Tensor]:
    state = attachment.model.state_dict()
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _folded(attachment: Attachment) -> dict[str, Tensor]:
    """The state of the folded plan: submodules give what they are once training is over."""
    tensors = _owned(attachment)
    names = {module: name for name, module in attachment.model.named_modules()}
    for group in attachment.submodules.values():
        for module in group:
            folded = module.folded_state()
            if folded is None:
                continue
            prefix = f"{names[module]}."
            tensors = {n: t for n, t in tensors.items() if not n.startswith(prefix)}
            tensors |= {
                prefix + n: t.detach().cpu().contiguous().clone() for n, t in folded.items()
            }
    return tensors


def _describe(attachment: Attachment) -> dict[str, Any]:
    """What has to agree between the backbone that was trained and the one that is loaded onto."""
    anatomy, config = attachment.anatomy, attachment.model.config
    labels = getattr(config, "id2label", None) if attachment.head else None
    return {
        "model_type": anatomy.model_type,
        "width": anatomy.width,
        "blocks": {stack.name: len(stack.blocks) for stack in anatomy.stacks},
        "parameters": attachment.backbone_size,
        "labels": None if labels is None else [labels[i] for i in sorted(labels)],
    }


def _refuse_other_backbone(saved: dict[str, Any], here: dict[str, Any], path: Path) -> None:
    parts = [k for k in here if saved.get(k) != here[k] and (k != "labels" or saved.get(k))]
    differing = [f"{part} {saved.get(part)!r} there, {here[part]!r} here" for part in parts]
    if differing:
        raise ValueError(
            f"{path} was trained on another backbone or head: {'; '.join(differing)}. Load the "
            "model it was trained on, with the same labels."
        )


def _refuse_other_shapes(root: PreTrainedModel, tensors: dict[str, Tensor], path: Path) -> None:
    here = root.state_dict()
    for name, tensor in tensors.items():
        if name in here and here[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {name} is {tuple(tensor.shape)} there and {tuple(here[name].shape)} "
                "here; the backbone or the number of labels differs"
            )


def _load(root: PreTrainedModel, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        root.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # our load hook: tensors are missing, or too many
        raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("lightning_pelt")
            if header is None:
                raise ValueError(
                    f"{path} is a safetensors file, but not one of save_adapters: its header has "
                    "no lightning_pelt entry"
                )
            return json.loads(header), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
