"""Words: token ids, and what some families want beside them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.anatomy.dummy_inputs.noise import noise
from lightning_pelt.anatomy.dummy_inputs.part import Part

COUNT = 8  # tokens, of which CANINE leaves two
FIRST = 3  # ids below are padding and the ends of a row in most vocabularies
REGIONS = 3  # of an image, whose features stand beside the words


def words(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """The arguments that hold words, and those that give them a place on a page or a language."""
    part = Part(model)
    row = tokens(part)
    names = [name for name in part.required if name.endswith("input_ids")]
    names = [*dict.fromkeys(["input_ids", *names])]
    inputs = {n: row for n in names if n in part.accepted and not n.startswith("decoder")}
    if "bbox" in part.accepted:
        inputs["bbox"] = torch.zeros(1, COUNT, 4, dtype=torch.long)
    if "lang_ids" in part.accepted:
        inputs["lang_ids"] = torch.zeros(1, dtype=torch.long)
    if "task_inputs" in part.accepted:
        inputs["task_inputs"] = tokens(part, part.entry("task_seq_len", default=COUNT))
    if "visual_feats" in part.accepted:
        inputs["visual_feats"] = noise(1, REGIONS, part.entry("visual_feat_dim"))
        inputs["visual_pos"] = noise(1, REGIONS, part.entry("visual_pos_dim"))
    if "input_ids" in inputs and "decoder_input_ids" not in part.accepted:
        for ids in in_codebooks(part, row):
            yield {**inputs, "input_ids": ids}
    elif inputs:
        yield inputs


def tokens(part: Part, count: int = COUNT) -> Tensor:
    """A row of ``count`` different ids, (1, count), without those that have a meaning."""
    special = set(_special(part))
    size = part.entry("vocab_size", default=2**15)
    ids = [i for i in range(FIRST, FIRST + count + len(special)) if i not in special and i < size]
    return torch.tensor([ids[:count] if len(ids) >= count else [i % size for i in range(count)]])


def _special(part: Part) -> Iterator[int]:
    """The ids of padding, the ends of a row, images and sounds, from the configurations."""
    for config in part.configs:
        for name, value in vars(config).items():
            if name.endswith(("token_id", "token_index")):
                ids = value if isinstance(value, (list, tuple)) else [value]
                yield from (i for i in ids if isinstance(i, int))


def in_codebooks(part: Part, row: Tensor) -> Iterator[Tensor]:
    """A row of ids, (1, n), and the ids of all codebooks of a sound, where there are some."""
    yield row
    books = part.entry("num_codebooks", "num_channels")
    if not books or "pixel_values" in part.accepted:
        return
    yield row.expand(books, -1).contiguous()  # a row for each codebook
    for count in (books, books + 1):  # the second counts the word itself
        yield row[..., None].expand(-1, -1, count).contiguous()
