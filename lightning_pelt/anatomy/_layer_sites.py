"""Sites other than sublayers: norms, outputs of blocks, and linear layers outside the blocks."""

from __future__ import annotations

from lightning_pelt.anatomy._blocks import Blocks
from lightning_pelt.anatomy._norms import is_norm
from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy._stacks import Position
from lightning_pelt.anatomy.calls import widths
from lightning_pelt.anatomy.sites import OUTPUT, Site, Source


def norm_and_outer_sites(
    recorded: RecordedModel, blocks: Blocks, positions: dict[str, Position]
) -> list[Site]:
    """The norms of every block, and the norms and linear layers of the base outside the blocks.

    Args:
        recorded: the model.
        blocks: of the model.
        positions: of each block by its path.
    """
    sites = []
    vocabulary = recorded.model.get_output_embeddings()
    for module, call in recorded.first.items():
        block = blocks.of.get(module)
        if module is vocabulary or module in blocks.beside or not call.inputs:
            continue
        if not recorded.is_live(module):
            continue
        stack, index = positions[block] if block else ("", None)
        if is_norm(module):
            role, d_in = "norm", int(module.weight.shape[0])  # type: ignore[index]
            d_out = d_in
        elif call.linear and not block:
            role, (d_in, d_out) = "linear", widths(module)
        else:
            continue
        path, source = recorded.names[module], recorded.source(call)
        sites.append(Site(role, stack, index, path, d_in, d_out, source))
    return sites


def block_sites(recorded: RecordedModel, positions: dict[str, Position]) -> list[Site]:
    """The output of every block that returns (B, T, d): the residual stream."""
    sites = []
    for path, (stack, index) in positions.items():
        module = recorded.at(path)
        call = recorded.first.get(module)
        if call is None or not recorded.is_live(module):
            continue
        if call.output is not None and call.output.dim() == 3:
            width = call.output.shape[-1]
            source = Source(path, OUTPUT, width)
            sites.append(Site("block", stack, index, path, width, width, source))
    return sites
