"""Embeddings: the modules that read the table of the words, and those that project onto it."""

from __future__ import annotations

from collections.abc import Container

from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy.calls import is_linear, widths
from lightning_pelt.anatomy.sites import EMBEDDINGS, OUTPUT, Site, Source

EMBEDDING, UNTIED, TIED = EMBEDDINGS


def embedding_sites(model: PreTrainedModel, called: Container[nn.Module]) -> tuple[Site, ...]:
    """The sites of the word embeddings and of the vocabulary projection.

    Args:
        model: the model.
        called: the modules that ran in a forward of the base. T5's ``shared`` does not.

    Returns:
        ``embedding`` for each module that looks words up in the table of the input embeddings;
        ``vocabulary`` for the output projection, or ``vocabulary.tied`` if it has that table too.
    """
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # CLIP has several, models of images none
        return ()
    if not isinstance(table, nn.Embedding):
        return ()
    rows, width = table.weight.shape
    sites = [
        Site(EMBEDDING, "", None, path, rows, width, Source(path, OUTPUT, width))
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.weight is table.weight and module in called
    ]
    head = model.get_output_embeddings()
    path = next((name for name, module in model.named_modules() if module is head), None)
    if head is not None and path and is_linear(head) and widths(head)[1] == rows:
        role = TIED if head.weight is table.weight else UNTIED
        d_in = widths(head)[0]
        sites.append(Site(role, "", None, path, d_in, rows, Source(path, 0, d_in)))
    return tuple(sites)


def embedding_scale(embedding: nn.Module) -> float:
    """The factor by which a module multiplies the rows of its table, as Gemma's and BART's do."""
    scale = getattr(embedding, "scalar_embed_scale", getattr(embedding, "embed_scale", 1.0))
    if isinstance(scale, Tensor) and scale.is_meta:
        raise RuntimeError("the scale of the embeddings is a meta tensor")
    return float(scale)
