"""Models of which this process holds only a part."""

from __future__ import annotations

from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from lightning_pelt.utils.shards import is_flat, is_shard


def refuse_shards(model: PreTrainedModel) -> None:
    """Refuse to attach a plan to a sharded model.

    Raises:
        ValueError: data parallelism has sharded the model, and would not add up the gradients of
            new submodules; or tensor parallelism has split its layers, which has to follow.
    """
    shards = {name: p for name, p in model.named_parameters() if is_shard(p)}
    if not shards:
        return
    name, first = next(iter(shards.items()))
    what = f"{type(model).__name__} is sharded already ({name} and {len(shards) - 1} others)"
    if is_flat(first) or any(isinstance(module, FSDPModule) for module in model.modules()):
        raise ValueError(
            f"{what}, and the gradients of new submodules would not be added up: call "
            "lightning_pelt.attach(model, plan) before fully_shard or FullyShardedDataParallel. "
            "With PELTCallback, call it in configure_model with the same plan"
        )
    raise ValueError(
        f"{what}: submodules would see the tensors of one process. Load the model without tp_plan, "
        "call lightning_pelt.attach(model, plan) before layers are split, and then "
        "lightning_pelt.split_base(attachment, mesh['tensor_parallel']) in the place of "
        "parallelize_module. With PELTCallback, do so in configure_model with the same plan; "
        "PELTModule does it under ModelParallelStrategy(tensor_parallel_size=...)"
    )
