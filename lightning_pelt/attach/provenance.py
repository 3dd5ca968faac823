"""Which parameters of a model came from no pretrained file."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.attach.names import plain
from lightning_pelt.utils.text_config import text_config

# from_pretrained marks the parameters that it has loaded, and then the modules of the model.
LOADED = "_is_hf_initialized"
# Roles that are not in a block, or that a module inside the base may take.
OUTSIDE = ("norm", "linear", "block")


def new_parameters(model: PreTrainedModel, anatomy: Anatomy) -> frozenset[str]:
    """Names of the parameters that ``from_pretrained`` did not find, or that were added later.

    Empty for a model that was built from a configuration, and for a deep copy: these carry no
    marks, so nothing is known. A projection of a block without a mark was converted after loading,
    for example to a quantised layer, and does not count as new.
    """
    if not any(_loaded(parameter) for parameter in model.parameters()):
        return frozenset()
    converted = {plain(site.path) for site in anatomy.sites if site.role not in OUTSIDE}
    resized = set(resized_embeddings(model))
    return frozenset(
        name
        for name, module, parameter in _parameters(model)
        if not _loaded(parameter)
        and _is_plain(parameter)
        and (hasattr(module, LOADED) or name.rpartition(".")[0] not in converted)
        and name not in resized
    )


def resized_embeddings(model: PreTrainedModel) -> dict[str, int]:
    """Names of token embeddings and vocabulary projections with new rows, and how many are new.

    ``resize_token_embeddings`` leaves no mark. The number of rows is compared with the
    configuration in the folder that the model was loaded from, if it can still be read.
    """
    source = model.name_or_path
    if not source or not any(_loaded(parameter) for parameter in model.parameters()):
        return {}
    now = text_config(model.config)
    rows = getattr(now, "vocab_size", None)
    try:
        saved = type(model.config).from_pretrained(source, local_files_only=True)
    except (OSError, ValueError):
        return {}
    before = getattr(text_config(saved), "vocab_size", None)
    if rows is None or before is None or rows <= before:
        return {}
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    tensors = {id(p) for layer in layers if layer is not None for p in layer.parameters()}
    return {
        name: rows - before
        for name, _, parameter in _parameters(model)
        if id(parameter) in tensors and parameter.shape[0] == rows
    }


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Every name of every parameter, and the module that holds it under this name."""
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield plain(f"{path}.{name}" if path else name), module, parameter


def _loaded(parameter: Tensor) -> bool:
    return bool(getattr(parameter, LOADED, False))


def _is_plain(parameter: nn.Parameter) -> bool:
    """Whether it is neither quantised nor a tensor of another library."""
    return parameter.is_floating_point() and type(parameter.data) is torch.Tensor
