"""Names that PEFT changes when it loads a LoRA, as transformers 5 changes those of checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming, rename_source_key

EXPERT = re.compile(r"\.experts\.\*\.(\w+)\.weight$")


def refuse_names_of_experts(model_type: str, paths: Iterable[str]) -> None:
    """Raise if PEFT would put the LoRA of a dense layer on the experts of other layers.

    In the families whose experts transformers 5 fuses, such as DeepSeek-V3, PEFT 0.21.2 replaces
    the targets ``gate_proj``, ``up_proj`` and ``down_proj`` by parameters of all experts, even
    where the target is the path of a dense layer.

    Args:
        model_type: of the model's configuration.
        paths: of the layers that have a LoRA.

    Raises:
        ValueError: the message names the layer.

    Example:
        >>> refuse_names_of_experts("llama", ["model.layers.0.mlp.up_proj"])
    """
    names = {
        found[1]
        for change in get_checkpoint_conversion_mapping(model_type) or ()
        for pattern in change.source_patterns
        if (found := EXPERT.search(pattern))
    }
    wrong = next((path for path in paths if path.rpartition(".")[2] in names), None)
    if wrong is not None:
        raise ValueError(
            f"PEFT would take {wrong} for an expert: with transformers 5, it replaces every target "
            f"of {model_type} named {', '.join(sorted(names))} by the parameters of all experts. "
            "Leave the feed-forward out of LoRA(sites=...), or serve the model with save_adapters"
        )


def refuse_renamed(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Raise if PEFT would rename a tensor that has the name of its layer already.

    PEFT 0.21.2 applies the renamings of transformers to every LoRA of a family that has some, and
    a few of these also match the names that they result in.

    Args:
        model: the base.
        tensors: by their names in a file.

    Raises:
        ValueError: the message names the tensor.
    """
    if get_checkpoint_conversion_mapping(model.config.model_type) is None:
        return
    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    for name in tensors:
        renamed = rename_source_key(name, renamings, [])[0]
        if renamed != name and not name.endswith(renamed):  # which PEFT takes back
            raise ValueError(
                f"PEFT would load {name} as {renamed}, which {model.config.model_type} does not "
                "have, since it takes the name for one of an older version of transformers. Serve "
                "the model with save_adapters"
            )
