"""How many tokens a model can take: the length of its table of positions."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.utils.backbone import resolve_backbone

# Names of tables of positions. Tables of other names are of distances (T5), of coordinates
# (LayoutLM) or of entities (LUKE), and most rotary models have none.
TABLES = ("position_embeddings", "position_embedding", "embed_positions", "positions_embed", "wpe")


def position_limit(model: PreTrainedModel) -> int | None:
    """The largest number of tokens for which the model has positions; None without a limit.

    Example:
        >>> from lightning_pelt.testing import tiny_bert, tiny_llama
        >>> position_limit(tiny_bert()), position_limit(tiny_llama())
        (32, None)
    """
    path = _path_of_embeddings(model)
    if path is None:
        return None
    limits = [limit for owner in model.get_submodule(path).modules() for limit in _limits(owner)]
    if not limits and path:  # RoFormer's table is beside its embeddings
        parent = model.get_submodule(path.rpartition(".")[0])
        limits = [limit for child in parent.children() for limit in _limits(child)]
    return min(limits, default=None)


def backbone_position_limit(backbone: str) -> int | None:
    """:func:`position_limit` of a backbone, from its configuration alone.

    None also if there is no configuration, or transformers cannot build its model.
    """
    try:
        config = AutoConfig.from_pretrained(resolve_backbone(backbone))
        with torch.device("meta"):
            return position_limit(AutoModel.from_config(config))
    except (OSError, ValueError, ImportError):
        return None


def _path_of_embeddings(model: PreTrainedModel) -> str | None:
    """The module that owns the token embeddings: pictures and sounds have other ones."""
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    for name, module in model.named_modules():
        if module is embeddings:
            return name.rpartition(".")[0]
    return None


def _limits(owner: nn.Module) -> list[int]:
    """The limits of the tables that a module owns."""
    limits = []
    for name in TABLES:
        table = getattr(owner, name, None)
        if isinstance(table, nn.Embedding):
            limits.append(_limit(table, owner))
        elif isinstance(table, torch.Tensor) and not isinstance(table, nn.Parameter):
            limits.append(len(table))  # GPT-J's sines and cosines
    return limits


def _limit(table: nn.Embedding, owner: nn.Module) -> int:
    """The rows of a table without those before the first position."""
    if table.padding_idx is not None:  # RoBERTa counts from the row after that of the padding
        first = table.padding_idx + 1
    else:
        first = int(getattr(table, "offset", 0))  # BART and OPT
    rows = table.num_embeddings - first
    ids = getattr(owner, "position_ids", None)
    return min(rows, ids.shape[-1]) if isinstance(ids, torch.Tensor) else rows
