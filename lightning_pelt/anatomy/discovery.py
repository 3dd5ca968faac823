"""Discovery: from a recorded forward to the anatomy of a model.

Almost everything follows from the flow of data, not from names. :mod:`._projections` finds the
attentions and their linear layers, :mod:`._stacks` the stacks of blocks, :mod:`._sublayer_sites`
and :mod:`._layer_sites` the sites, :mod:`._masks` which of their tokens are padding.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.anatomy._blocks import Blocks, find_blocks, idle_lists
from lightning_pelt.anatomy._feed_forward import width_of
from lightning_pelt.anatomy._layer_sites import block_sites, norm_and_outer_sites
from lightning_pelt.anatomy._masks import find_masks
from lightning_pelt.anatomy._projections import Attention, find_attentions
from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy._residuals import find_residuals
from lightning_pelt.anatomy._rows import without_rows
from lightning_pelt.anatomy._stacks import Position, block_positions, find_stacks
from lightning_pelt.anatomy._sublayer_sites import SublayerSites
from lightning_pelt.anatomy.calls import widths
from lightning_pelt.anatomy.dummy_inputs import base_of, one_thread
from lightning_pelt.anatomy.embeddings import embedding_sites
from lightning_pelt.anatomy.sites import SUBLAYERS, Anatomy, Site, Stack
from lightning_pelt.anatomy.stand_ins import StandIns
from lightning_pelt.anatomy.structure import Remembered
from lightning_pelt.utils.quantised import count

KNOWN: Remembered[Anatomy] = Remembered()


@torch.enable_grad()
def examine(
    model: PreTrainedModel,
    inputs: dict[str, Tensor] | None = None,
    *,
    stand_ins: StandIns | None = None,
) -> Anatomy:
    """Find the stacks, blocks and sites of a Hugging Face model by one forward.

    The anatomies of the last structures are remembered: another model of equal structure does not
    run.

    Args:
        model: is left as it was. It may be on the meta device: what is found is the same.
        inputs: keyword arguments of ``model``; by default the smallest ones of its base: a few
            words, an image, or a short sound.
        stand_ins: of the model, if there are any already.

    Raises:
        ValueError: no block has an attention, or the model does not run on the inputs.

    Example:
        >>> from lightning_pelt.testing import tiny_bert
        >>> anatomy = examine(tiny_bert())
        >>> [site.label for site in anatomy.sites if site.block == 0]  # doctest: +ELLIPSIS
        ['query', 'key', 'value', 'attention', 'output', 'ffn.in', 'ffn.out', 'ffn', ...]
    """
    stand_ins = stand_ins or StandIns(model)
    structure = stand_ins.structure if inputs is None else None
    anatomy = KNOWN.get(structure)
    if anatomy is None:
        with one_thread():
            anatomy, at_once = _examine(model, inputs, stand_ins)
        if at_once:  # else there are warnings of what did not run
            KNOWN.put(structure, anatomy)
    return anatomy


def _examine(
    model: PreTrainedModel, inputs: dict[str, Tensor] | None, stand_ins: StandIns
) -> tuple[Anatomy, bool]:
    """The anatomy, and whether the model has run on the first inputs."""
    with stand_ins:
        recorded = RecordedModel(model, inputs)
    blocks = find_blocks(recorded, find_attentions(recorded))
    if not blocks.lists:
        raise ValueError(f"no attention found in {type(model).__name__}: {_why_none(recorded)}")
    stacks = find_stacks(recorded, blocks)
    positions = block_positions(stacks)
    sublayers = _sublayer_sites(recorded, blocks, stacks)
    sites = [
        *sublayers,
        *norm_and_outer_sites(recorded, blocks, positions),
        *block_sites(recorded, positions),
    ]
    masks, unread = find_masks(recorded, stacks, sublayers)
    with stand_ins:
        rowless = without_rows(recorded, stacks, sublayers, inputs)
    anatomy = Anatomy(
        model_type=model.config.model_type,
        width=next(site.d_out for site in sublayers if site.kind in SUBLAYERS),
        stacks=tuple(stacks),
        sites=tuple(sites),
        masks=masks,
        unread=unread,
        rowless=rowless,
        idle=idle_lists(recorded),
        embeddings=embedding_sites(model, recorded.first),
        parameters=_backbone_size(model),
    )
    return anatomy, recorded.at_once


def _why_none(recorded: RecordedModel) -> str:
    """Why a model has no blocks, and the remedy."""
    keys = [key for call in recorded.attention_calls for _, key in call.operands]
    if keys and not any(key.requires_grad for key in keys):
        return (
            "its attentions run without gradients, so that nothing in them can be trained. Attach "
            "to the transformer inside it, and train that alone"
        )
    return (
        "it neither uses transformers' attention interface nor has a softmax over products of "
        "linear layers. Give a model whose blocks are transformer layers, or attach to the "
        "transformer inside it."
    )


def _sublayer_sites(recorded: RecordedModel, blocks: Blocks, stacks: list[Stack]) -> list[Site]:
    """The sites of all blocks' sublayers, stack by stack."""
    sites: list[Site] = []
    for stack in stacks:
        known = {_width_of_attention(blocks.attentions.get(path, [])) for path in stack.blocks}
        known.discard(None)
        for number, path in enumerate(stack.blocks):
            attentions = blocks.attentions.get(path, [])
            width = _width_of_attention(attentions) or (
                # A block may return several streams side by side (hyper-connections).
                next(iter(known)) if len(known) == 1 else width_of(recorded, path)
            )
            live = recorded.is_live(recorded.at(path))
            if width is None or not live:  # not called, or returns no sequence, or nothing reads it
                continue
            block = SublayerSites(recorded, path, Position(stack.name, number), width)
            for attention in attentions:
                block.add_attention(attention)
            block.add_feed_forward(attentions)
            block.add_experts()
            sites += _with_residuals(recorded, path, block.sites)
    # The first block of a pre-norm stack looks post-norm if its embeddings are normalised.
    pre_norm = {(site.stack, site.role) for site in sites if site.post_norm is None}
    return [replace(s, post_norm=None) if (s.stack, s.role) in pre_norm else s for s in sites]


def _with_residuals(recorded: RecordedModel, path: str, sites: list[Site]) -> list[Site]:
    """The sites of a block, with the residuals of its sublayers."""
    last = [s for s in sites if s.kind == "ffn" or s.kind.endswith("attention.output")]
    outputs = [recorded.first[recorded.at(site.path)] for site in last]
    residuals = dict(zip(last, find_residuals(recorded, path, outputs), strict=True))
    return [replace(site, residual=residuals.get(site)) for site in sites]


def _width_of_attention(attentions: list[Attention]) -> int | None:
    """Width of what the attentions of a block add to the residual stream; None if not known."""
    output = next((a.output for a in attentions if a.output is not None), None)
    return None if output is None else widths(output.module)[1]


def _backbone_size(model: PreTrainedModel) -> int:
    """Number of the backbone's parameters; as in an attachment, a vocabulary projection counts."""
    backbone = base_of(model) if model.get_output_embeddings() is None else model
    return sum(count(parameter) for parameter in backbone.parameters())
