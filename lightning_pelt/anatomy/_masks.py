"""Masks: from which argument of a block's attention its gates learn what is padding."""

from __future__ import annotations

import inspect

from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy.sites import MaskArgument, Site, Stack


def find_masks(
    recorded: RecordedModel, stacks: list[Stack], sites: list[Site]
) -> tuple[dict[tuple[str, int, str], MaskArgument], frozenset[str]]:
    """The mask argument of every attention that has one, and the stacks whose padding is not known.

    Where an attention sees windows as rows (Swin), the mask is of windows, and nothing is padded.
    """
    masks, unread = {}, set()
    blocks = {(s.name, number): path for s in stacks for number, path in enumerate(s.blocks)}
    for site in sites:
        if site.kind not in ("attention", "cross_attention") or site.block is None:
            continue
        read = recorded.tensor(site.source)
        if read.dim() == 3 and len(read) != recorded.batch:
            continue
        mask = _mask_argument(recorded, site.path)
        within = [s for s in sites if _has_mask_of(s, site)] if mask else [site]
        block = blocks[site.stack, site.block]
        if mask is not None and _is_known_in_time(recorded, mask, block, within):
            masks[site.stack, site.block, site.role] = mask
        elif any(_reads_words(recorded, each) for each in within):
            unread.add(site.stack)
    return masks, frozenset(unread)


def _has_mask_of(site: Site, attention: Site) -> bool:
    """Whether the padding of what ``site`` reads is in the mask of ``attention``.

    Keys and values of cross-attention read tokens of the encoder, all others of the block.
    """
    over_encoder = site.role in ("cross_attention.key", "cross_attention.value")
    same = (site.stack, site.block) == (attention.stack, attention.block)
    return same and over_encoder == (attention.kind == "cross_attention")


def _reads_words(recorded: RecordedModel, site: Site) -> bool:
    read = recorded.tensor(site.source)
    return read.dim() == 3 and read.shape[1] in recorded.words


def _is_known_in_time(
    recorded: RecordedModel, mask: MaskArgument, block: str, sites: list[Site]
) -> bool:
    """Whether what the gates at ``sites`` may read runs once, and not before the mask is known.

    LXMERT's words and regions attend to each other first, PEGASUS-X runs a feed-forward on global
    tokens too, and CANINE an attention on every part of a text.
    """
    known = recorded.order[recorded.at(mask.path)]
    for site in sites:
        module = recorded.at(site.source.path)
        if recorded.order[module] < known or recorded.repeats(module, block):
            return False
    return True


def _mask_argument(recorded: RecordedModel, path: str) -> MaskArgument | None:
    """Which argument of the attention module at ``path`` is its mask."""
    module = recorded.at(path)
    names = list(inspect.signature(module.forward).parameters)
    for name in ("attention_mask", "mask", "attn_mask"):
        if name in names:
            return MaskArgument(path, name, names.index(name))
        if name in recorded.first[module].keywords:  # one of **kwargs
            return MaskArgument(path, name, len(names))
    return None
