"""What a module trains beside its Hugging Face model, such as a classifier of its own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.attach.attachment import Attachment, find_attachments, models_in
from lightning_pelt.attach.freezing import inside
from lightning_pelt.attach.names import plain, tensor_names
from lightning_pelt.attach.tensor_checks import refuse_unfit

BESIDE = "beside."  # begins the name of such a tensor in a file


def one_attachment(module: nn.Module) -> Attachment:
    """The attachment of the one attached model inside ``module``.

    Raises:
        ValueError: nothing is attached, or there are several attached models.
    """
    found = find_attachments(module)
    name = type(module).__name__
    if not found:
        raise ValueError(f"nothing is attached to {name}: call attach(model, plan) first")
    if len(found) > 1:
        first = next(iter(found))
        raise ValueError(
            f"{name} holds {len(found)} attached models ({', '.join(found)}), and a folder "
            f"holds the adapters of one: save each into its own, save_adapters(module.{first}, ...)"
        )
    return next(iter(found.values()))


def trained_beside(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and persistent buffers of ``module`` outside its models, for a file.

    Raises:
        ValueError: there are some, and several models, so that the file could not be loaded.
    """
    models = _models(module)
    own = {n: t for n, t in _outside(module, models).items() if _moves(t)}
    for path, model in models.items():
        attached = bool(find_attachments(model))
        if not attached and any(p.requires_grad for p in model.parameters()):
            warnings.warn(
                f"{path} ({type(model).__name__}) is trainable and has no plan: its weights are "
                "not in the folder",
                stacklevel=3,
            )
    if own and len(models) > 1:
        raise ValueError(
            f"{type(module).__name__} trains {_few(own)} beside {len(models)} models "
            f"({', '.join(models)}): save the adapters of one model, save_adapters(module.<path>, "
            "...), and the rest in a checkpoint of the trainer"
        )
    return {BESIDE + name: tensor for name, tensor in own.items()}


def split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a file in the model, and those beside it by their names in the module."""
    beside = {n.removeprefix(BESIDE): t for n, t in tensors.items() if n.startswith(BESIDE)}
    return {n: t for n, t in tensors.items() if not n.startswith(BESIDE)}, beside


def check_beside(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Compare the tensors of a file with what ``module`` has beside its model.

    A file that was saved from the model alone, or that is loaded into it, gives a warning.

    Raises:
        ValueError: names differ.
        RuntimeError: a tensor has another shape or dtype, or contains NaN.
    """
    here = _outside(module, _models(module))
    own = {name for name, tensor in here.items() if _moves(tensor)}
    if tensors and not here:
        warnings.warn(
            f"the file also holds {_few(tensors)} of the module around the model, which "
            f"{type(module).__name__} does not have. To load them, give load_adapters that module",
            stacklevel=4,
        )
        return
    if own and not tensors:
        warnings.warn(
            f"the file was saved from the model alone: {_few(own)} of {type(module).__name__} "
            "stay as they are",
            stacklevel=4,
        )
        return
    lacking, unknown = own - tensors.keys(), tensors.keys() - here.keys()
    if lacking or unknown:
        raise ValueError(
            f"{type(module).__name__} differs from the module that was saved"
            + (f"; the file lacks {_few(lacking)}" if lacking else "")
            + (f"; the module lacks {_few(unknown)}" if unknown else "")
        )
    refuse_unfit(tensors, here)


@torch.no_grad()
def load_beside(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a file into ``module``, after :func:`check_beside`."""
    here = _outside(module, _models(module))
    for name, tensor in tensors.items():
        if name in here:
            here[name].copy_(tensor)


def _models(module: nn.Module) -> dict[str, PreTrainedModel]:
    """The Hugging Face models by their paths, without the parts of wrappers."""
    return {plain(f"{path}.").rstrip("."): model for path, model in models_in(module).items()}


def _outside(module: nn.Module, models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    saved = {plain(name) for name in tensor_names(module)}
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {
        plain(name): tensor
        for name, tensor in tensors
        if plain(name) in saved and not any(inside(plain(name), path) for path in models)
    }


def _moves(tensor: Tensor) -> bool:
    return tensor.requires_grad or not isinstance(tensor, nn.Parameter)


def _few(names: Mapping[str, Tensor] | set[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return f"{', '.join(listed[:3])}{more}"
