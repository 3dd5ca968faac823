"""Adapters as files: ``save_adapters``, and ``save_pretrained`` of an attached model."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from lightning_pelt.attach.attachment import Attachment, attachment_of
from lightning_pelt.attach.beside import one_attachment, trained_beside
from lightning_pelt.attach.names import TRAINED, plain
from lightning_pelt.plans.plan import Plan
from lightning_pelt.utils.adapter_format import TENSORS, write_adapters
from lightning_pelt.utils.files import write_aside


def save_adapters(model: nn.Module, folder: str | Path, *, fold: bool = False) -> Path:
    """Write submodules, gates and head of an attached model into ``folder``.

    What a module trains beside its model, such as a classifier of its own, is written as well.

    ``adapters.safetensors`` holds the tensors and, in its header, the configuration and digests of
    both; ``adapter_config.json`` is that configuration for people. It names the backbone and its
    tokenizer, if they were loaded by name. Both files are written aside and renamed together, so a
    failure leaves what was there, and several processes may save into one folder.

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
    attachment = one_attachment(model)
    tensors = _folded(attachment) if fold else _owned(attachment)
    tensors |= {name: _copy(tensor) for name, tensor in trained_beside(model).items()}
    plan = attachment.plan.folded() if fold else attachment.plan
    _write(Path(folder), model, tensors, plan)
    return Path(folder)


class SavePretrained:
    """Replaces ``save_pretrained`` of an attached model: it writes the adapters.

    The folder is one of :func:`save_adapters`. It also holds the tensors under the name at which
    transformers' ``Trainer`` looks when it resumes, or loads the best checkpoint. There is no
    ``config.json``, so ``from_pretrained`` does not take the folder for a whole model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **_options: Any,
    ) -> None:
        """Write the adapters; the other options of ``save_pretrained`` have no effect.

        Raises:
            ValueError: ``push_to_hub`` is set.
            OSError: the disk is full or not writable.
        """
        if push_to_hub:
            raise ValueError(
                "save_pretrained of an attached model writes adapters, and pushes none to the hub: "
                "upload the folder that save_adapters(model, folder) writes"
            )
        if not is_main_process:
            return
        warnings.warn(
            "save_pretrained of an attached model writes the adapters without the base, as "
            "save_adapters does: load them with load_adapters(model, folder). To write the whole "
            "model, call merge(model) first",
            stacklevel=2,
        )
        folder, attachment = Path(save_directory), attachment_of(self.model)
        _write(folder, self.model, _owned(attachment, state_dict), attachment.plan)
        file = folder / TENSORS
        write_aside(folder / SAFE_WEIGHTS_NAME, lambda aside: shutil.copyfile(file, aside))


def _write(folder: Path, model: nn.Module, tensors: dict[str, Tensor], plan: Plan) -> None:
    backbone = describe(one_attachment(model))
    tokenizer = getattr(model.__dict__.get("tokenizer"), "name_or_path", None)
    backbone["tokenizer"] = tokenizer or backbone["name"]
    write_adapters(folder, tensors, plan=plan.to_config(), backbone=backbone)


def _owned(attachment: Attachment, given: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What a file holds of a model, from its state dict, or from that of one that is sharded.

    A mark lets tensors that are head here replace those of a base that has them elsewhere.
    """
    marked = attachment.frozen.particular
    state = attachment.model.state_dict() if given is None else given
    state = {plain(name): _copy(tensor) for name, tensor in state.items()}
    return {name + TRAINED if name in marked else name: t for name, t in state.items()}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _folded(attachment: Attachment) -> dict[str, Tensor]:
    """The state of the folded plan: every submodule in its form after training."""
    tensors = _owned(attachment)
    names = {module: plain(name) for name, module in attachment.model.named_modules()}
    for group in attachment.submodules.values():
        for module in group:
            folded = module.folded_state()
            if folded is None:
                continue
            prefix = f"{names[module]}."
            tensors = {n: t for n, t in tensors.items() if not n.startswith(prefix)}
            tensors |= {prefix + name: _copy(tensor) for name, tensor in folded.items()}
    return tensors


def describe(attachment: Attachment) -> dict[str, Any]:
    """The backbone: the properties that it must share with the trained one, and its fingerprint."""
    anatomy, config = attachment.anatomy, attachment.model.config
    labels = getattr(config, "id2label", None) if attachment.head else None
    return {
        "model_type": anatomy.model_type,
        "width": anatomy.width,
        "blocks": {stack.name: len(stack.blocks) for stack in anatomy.stacks},
        "parameters": anatomy.parameters,  # those that are head here included
        "labels": None if labels is None else [labels[i] for i in sorted(labels)],
        **attachment.fingerprint,
    }
