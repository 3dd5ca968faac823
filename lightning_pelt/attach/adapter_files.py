"""Adapters as files: ``save_adapters`` and ``load_adapters``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.attach.attach import attach, find_model
from lightning_pelt.attach.attachment import ATTACHMENT, Attachment, attachment_of
from lightning_pelt.plans.plan import from_config
from lightning_pelt.utils.adapter_format import TENSORS, read_adapters, write_adapters


def save_adapters(model: nn.Module, folder: str | Path, *, fold: bool = False) -> Path:
    """Write submodules, gates and head of an attached model into ``folder``.

    ``adapters.safetensors`` holds the tensors and, in its header, the configuration;
    ``adapter_config.json`` is that configuration for people. Each file is written aside and
    renamed, so a failure leaves what was there.

    Args:
        model: an attached model, or a module that holds one.
        folder: created if it does not exist.
        fold: write the prefixes instead of the prefix MLP, which only training needs.

    Raises:
        ValueError: nothing is attached.
        OSError: the disk is full or not writable.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_pelt import UniPELT, attach, load_adapters, save_adapters
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> attachment = attach(model, UniPELT())
        >>> with TemporaryDirectory() as folder:
        ...     again = load_adapters(tiny_bert(), save_adapters(model, folder))
        >>> again.plan == attachment.plan
        True
    """
    attachment = attachment_of(model)
    tensors = _folded(attachment) if fold else _owned(attachment)
    plan = attachment.plan.folded() if fold else attachment.plan
    write_adapters(Path(folder), tensors, plan=plan.to_config(), backbone=_describe(attachment))
    return Path(folder)


def load_adapters(model: nn.Module, folder: str | Path) -> Attachment:
    """Attach what :func:`save_adapters` wrote and load its weights.

    Args:
        model: the backbone that the adapters were trained on, with a head of the same shape; or a
            module that holds it. It may carry an equal plan already.
        folder: of the two files.

    Raises:
        FileNotFoundError: there is no ``adapters.safetensors``.
        ValueError: the file is truncated or has another format, the backbone differs (the message
            names the differences), or another plan is attached to the model.
    """
    path = Path(folder) / TENSORS
    if not path.is_file():
        raise FileNotFoundError(f"there is no {TENSORS} in {folder}: save_adapters writes it")
    config, tensors = read_adapters(path)
    root = find_model(model)
    before = root.__dict__.get(ATTACHMENT)
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


def _owned(attachment: Attachment) -> dict[str, Tensor]:
    state = attachment.model.state_dict()
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _folded(attachment: Attachment) -> dict[str, Tensor]:
    """The state of the folded plan: every submodule in its form after training."""
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
    """The properties that a backbone must share with the one that was trained."""
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
            "model that it was trained on, with the same labels."
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
