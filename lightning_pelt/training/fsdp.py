"""FSDP2: which modules of an attached model are sharded as one unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.distributed.fsdp import fully_shard

from lightning_pelt.training.tensor_parallel import split_base
from lightning_pelt.utils.quantised import kinds_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from lightning_pelt.attach import Attachment


def shard(attachment: Attachment, mesh: DeviceMesh) -> None:
    """Shard every block of an attached model as one unit, and the rest of the model as another.

    Submodules are children of the blocks they extend, so a block gathers its submodules together
    with its base weights. Modules that several blocks use, such as a prefix's MLP, belong to the
    root and stay gathered for the whole forward. Processes of the dimension ``tensor_parallel``
    split the weights of the frozen base further, see :func:`split_base`.

    Args:
        attachment: of the model.
        mesh: with the dimensions ``data_parallel`` and ``tensor_parallel`` that Lightning's
            ``ModelParallelStrategy`` creates.

    Raises:
        ValueError: a method or a quantised base cannot be sharded, or the mesh asks for tensor
            parallelism and no layer can be split.
    """
    for method in attachment.plan.methods:
        method.refuse_sharding()
    if kinds := kinds_of(attachment.model.parameters()):
        raise ValueError(
            f"the base is quantised ({', '.join(kinds)}), and its weights cannot be sharded: use "
            "strategy=ddp, where each process has the quantised base, or leave quantise out"
        )
    if mesh["tensor_parallel"].size() > 1:
        split_base(attachment, mesh["tensor_parallel"])
    data = mesh["data_parallel"]
    paths = [path for stack in attachment.anatomy.stacks for path in stack.blocks]
    # ALBERT's blocks are one module.
    for block in dict.fromkeys(map(attachment.model.get_submodule, paths)):
        fully_shard(block, mesh=data)
    fully_shard(attachment.model, mesh=data)
