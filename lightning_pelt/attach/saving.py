"""Adapters as files: ``save_adapters``, and ``save_pretrained`` of an attached model."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from lightning_pelt.attach.attachment import Attachment, attachment_of
from lightning_pelt.attach.beside import one_attachment, trained_beside
from lightning_pelt.attach.names import TRAINED, plain
from lightning_pelt.attach.uploads import upload
from lightning_pelt.plans.plan import Plan
from lightning_pelt.utils.adapter_format import TENSORS, write_adapters
from lightning_pelt.utils.files import write_aside
from lightning_pelt.utils.model_class import class_name
from lightning_pelt.utils.shards import is_shard
from lightning_pelt.utils.text_config import text_config


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
        ValueError: nothing is attached, or the model is sharded over several processes.
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
        **options: Any,
    ) -> None:
        """Write the adapters.

        Of the other options of ``save_pretrained``, ``push_to_hub`` uploads them with a model
        card, to ``repo_id`` or to a repository with the name of the folder; ``token``,
        ``private``, ``revision``, ``commit_message`` and ``create_pr`` go with it.

        Raises:
            OSError: the disk is full or not writable, or see ``lightning_pelt.push_to_hub``.
        """
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
        if push_to_hub:
            upload(self.model, folder, {"repo_id": folder.resolve().name, **options})


class PushToHub:
    """Replaces ``push_to_hub`` of an attached model: it uploads the adapters with a model card.

    Without it, transformers would upload the adapters under the name of a whole model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, repo_id: str, **options: Any) -> str:
        """Upload the adapters to ``repo_id``, as ``lightning_pelt.push_to_hub`` does.

        Of the options of transformers' ``push_to_hub``, ``token``, ``private``, ``revision``,
        ``commit_message`` and ``create_pr`` have an effect.

        Returns:
            The URL of the repository, of the branch, or of the pull request.
        """
        with TemporaryDirectory() as folder:
            save_adapters(self.model, folder)
            return upload(self.model, Path(folder), {**options, "repo_id": repo_id})


def _write(folder: Path, model: nn.Module, tensors: dict[str, Tensor], plan: Plan) -> None:
    backbone = describe(one_attachment(model))
    tokenizer = getattr(model.__dict__.get("tokenizer"), "name_or_path", None)
    backbone["tokenizer"] = tokenizer or backbone["name"]
    write_adapters(folder, tensors, plan=plan.to_config(), backbone=backbone)


def _owned(attachment: Attachment, given: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What a file holds of a model, from its state dict, or from that of one that is sharded.

    A mark lets tensors that are head here replace those of a base that has them elsewhere.
    """
    if given is None:
        _refuse_shards(attachment)
    marked = attachment.frozen.particular
    state = attachment.model.state_dict() if given is None else given
    state = {plain(name): _copy(tensor) for name, tensor in state.items()}
    return {name + TRAINED if name in marked else name: t for name, t in state.items()}


def _refuse_shards(attachment: Attachment) -> None:
    sharded = [name for name, p in attachment.model.named_parameters() if is_shard(p)]
    if sharded:
        raise ValueError(
            f"the model is sharded, and this process holds only a part of {plain(sharded[0])} and "
            f"of {len(sharded) - 1} other tensors: save a checkpoint, load it in one process, such "
            "as with PELTModule.load_from_checkpoint, and write the adapters there"
        )


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
        **_of_the_model(attachment),
        **(base := attachment.fingerprint),
        "digest": _digest(base),
    }


def _digest(base: Mapping[str, Any]) -> str:
    """SHA-256 of the sampled weights of a base: equal for two files that were trained on one."""
    samples = [base["weights"], base["vocabulary"]]
    return hashlib.sha256(json.dumps(samples, sort_keys=True).encode()).hexdigest()


def _of_the_model(attachment: Attachment) -> dict[str, Any]:
    """What ``load_pelt`` needs, beside the base, to build the model again.

    A model inside another one was not trained alone, so no class is named.
    """
    model = attachment.model
    settings = {
        "problem_type": getattr(model.config, "problem_type", None),
        "pad_token_id": getattr(text_config(model.config), "pad_token_id", None),
    }
    return {
        "class": None if attachment.surroundings else class_name(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "settings": {name: value for name, value in settings.items() if value is not None},
    }
