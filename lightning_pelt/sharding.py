"""FSDP2: which modules of an attached model are sharded as a unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.distributed.fsdp import fully_shard

from lightning_pelt.profiles.masks import Masks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from lightning_pelt.attach import Attachment


def shard(attachment: Attachment, mesh: DeviceMesh) -> None:
    """Shard every block of an attached model, and the rest of it as one more unit.

    Submodules lie inside the blocks they extend, so a block gathers its own in one go with its base
    weights. What several blocks use, such as a prefix's MLP, belongs to the root and stays gathered
    for the whole forward.

    Args:
        mesh: with the dimensions ``data_parallel`` and ``tensor_parallel``, as Lightning's
            ``ModelParallelStrategy`` makes it.

    Raises:
        ValueError: the mesh splits single tensors, for which a plan has no layout; or the plan has
            several profiles.
    """
    profiles = [m for m in attachment.model.modules() if isinstance(m, Masks) and len(m.logits) > 1]
    if profiles:
        # Ranks add up the gradients that they have, one after the other: with different profiles in
        # their batches they would add one profile's to another's.
        raise ValueError(
            f"XPEFT has {len(profiles[0].logits)} profiles, and a batch of one process may lack "
            "some that another has, which sharded gradients cannot tell: use "
            "DDPStrategy(find_unused_parameters=True), or train one profile alone"
        )
    if mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            f"the strategy asks for tensor parallelism over {mesh['tensor_parallel'].size()} "
            "processes, and only the data can be divided here: use "
            "ModelParallelStrategy(data_parallel_size=<processes>, tensor_parallel_size=1)"
        )
    data = mesh["data_parallel"]
    paths = [path for stack in attachment.anatomy.stacks for path in stack.blocks]
    for block in dict.fromkeys(map(attachment.model.get_submodule, paths)):  # ALBERT's are one
        fully_shard(block, mesh=data)
    fully_shard(attachment.model, mesh=data)
