"""Tensor parallelism: the weights of a frozen base are split over processes by their rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from lightning_pelt.attach import Attachment


def split_base(attachment: Attachment, mesh: DeviceMesh) -> list[str]:
    """Split the frozen linear layers of the blocks of an attached model over processes.

    Each process holds an equal share of the rows of each weight, computes the outputs that belong
    to them, and gathers those of the others. What a layer reads and returns is whole on every
    process. So submodules, gates and prefixes work unchanged at every site: they are copies, their
    gradients are equal on all processes of ``mesh``, and so are their weights after each step, as
    long as these processes have the same batches and draw the same random numbers. Lightning's
    ``ModelParallelStrategy`` gives them the same batches; this package gives them the same seeds.

    This saves the memory of weights, not that of activations, and costs two collectives for each
    layer. Layers whose weight is trained, quantised, or has a number of rows that the processes
    cannot divide stay whole, as do biases.

    Args:
        attachment: of the model, before it is sharded.
        mesh: one dimension: the processes that split each weight.

    Returns:
        The paths of the layers that were split.

    Raises:
        ValueError: no layer can be split.

    Example::

        class Mine(LightningModule):  # with PELTCallback(plan)
            def configure_model(self):
                attachment = attach(self.model, plan)
                split_base(attachment, self.device_mesh["tensor_parallel"])
                fully_shard(self.model, mesh=self.device_mesh["data_parallel"])
    """
    blocks = [path for stack in attachment.anatomy.stacks for path in stack.blocks]
    inside = tuple(f"{path}." for path in blocks)
    split = []
    for path, module in attachment.model.named_modules():
        # Subclasses of nn.Linear, such as quantised ones, compute with their weights differently.
        if not path.startswith(inside) or type(module) is not nn.Linear:
            continue
        base = f"{path}.weight" in attachment.base and not module.weight.requires_grad
        if base and not isinstance(module.weight, DTensor) and not len(module.weight) % mesh.size():
            _SplitRows(module, mesh)
            split.append(path)
    if not split:
        raise ValueError(
            f"{type(attachment.model).__name__} has no layer that {mesh.size()} processes can "
            "split: tensor parallelism splits frozen linear layers (nn.Linear, not quantised) in "
            "the blocks, whose width the number of processes divides. Use "
            "ModelParallelStrategy(data_parallel_size=<processes>, tensor_parallel_size=1)"
        )
    return split


def is_split(module: nn.Module) -> bool:
    """Whether :func:`split_base` has split a layer."""
    return isinstance(getattr(module.forward, "__self__", None), _SplitRows)


class _SplitRows:
    """Replaces the forward of a linear layer.

    Not hooks: those of submodules were registered first, and would see the output of one process.
    """

    def __init__(self, module: nn.Linear, mesh: DeviceMesh) -> None:
        self.module, self.mesh = module, mesh
        rows = module.weight.detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
        share = DTensor.from_local(rows, mesh, [Shard(0)], run_check=False)
        module.weight = nn.Parameter(share, requires_grad=False)
        module.forward = self.forward  # type: ignore[method-assign,assignment]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_in) -> (..., d_out), both the same on all processes of the mesh."""
        whole = DTensor.from_local(x, self.mesh, [Replicate()], run_check=False)
        outputs: Any = nn.functional.linear(whole, self.module.weight)
        y: Tensor = outputs.redistribute(placements=[Replicate()]).to_local()
        return y if self.module.bias is None else y + self.module.bias.to(y.dtype)
