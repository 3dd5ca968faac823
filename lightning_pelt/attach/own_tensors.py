"""Whether the tensors of a layer are ordinary ones that no other layer shares."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_pelt.attach.merged_layers import REMEDY, MergedLayer
from lightning_pelt.attach.tensor_checks import FLOATS


class Memory(NamedTuple):
    """The bytes of a parameter on its device; start and end are equal if they are not known."""

    device: torch.device
    start: int
    end: int

    @classmethod
    def of(cls, parameter: nn.Parameter) -> Memory:
        """From the first to the last element."""
        tensor = parameter.detach()
        if type(tensor) is not Tensor or tensor.is_meta or not tensor.numel():
            return cls(parameter.device, 0, 0)
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in steps)
        start = tensor.data_ptr()
        return cls(tensor.device, start, start + (1 + last) * tensor.element_size())

    def overlaps(self, other: Memory) -> bool:
        """Whether they have a byte in common."""
        return self.device == other.device and self.start < other.end and other.start < self.end


class OwnTensors:
    """The parameters of a model, with which those of a layer are compared.

    Args:
        model: all of it, since any part may share a tensor.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = [
            (f"{path}.{name}" if path else name, parameter, Memory.of(parameter))
            for path, module in model.named_modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]

    def refuse_missing_bias(self, layer: MergedLayer) -> None:
        """Raise if the bias of a layer is to change that has none.

        Raises:
            ValueError: the message names the layer and the remedy.
        """
        if "bias" in layer.changed and layer.host._parameters.get("bias") is None:
            raise ValueError(
                f"{layer.kind} has no bias, and {type(self.model).__name__}.from_pretrained would "
                "drop one that is added: it cannot be merged. Serve the model with its adapters, "
                "or train biases of layers that have one, BitFit(sites=[...])"
            )

    def refuse_others(self, layer: MergedLayer) -> None:
        """Raise unless what changes in a layer are ordinary tensors that it alone has.

        Raises:
            ValueError: a tensor is quantised, sharded, offloaded, computed or tied.
        """
        for name in layer.changed:
            parameter = layer.host._parameters.get(name)
            if parameter is None:
                raise ValueError(
                    f"{layer.kind} has no {name} of its own: it is quantised, or computed from "
                    f"other tensors. {REMEDY}"
                )
            _refuse_extraordinary(parameter, name, layer)
            own, memory = f"{layer.path}.{name}", Memory.of(parameter)
            others = [
                other
                for other, tensor, taken in self.parameters
                if other != own and (tensor is parameter or taken.overlaps(memory))
            ]
            if others:
                raise ValueError(
                    f"the {name} of {layer.path} is also that of {', '.join(others)}, which an "
                    "update of it would change too. Untie them, or serve the model with its "
                    "adapters"
                )


def _refuse_extraordinary(parameter: nn.Parameter, name: str, layer: MergedLayer) -> None:
    kind = type(parameter.detach())
    if kind is not Tensor or parameter.dtype not in FLOATS or parameter.is_meta:
        what = f"{parameter.dtype}" if kind is Tensor else kind.__name__
        raise ValueError(
            f"{layer.path} is quantised, sharded or offloaded (its {name} is {what} on "
            f"{parameter.device.type}): no update can be merged into it. {REMEDY}"
        )
    if name == "weight" and parameter.dim() != 2:
        raise ValueError(
            f"{layer.kind} cannot be merged: its weight of shape {tuple(parameter.shape)} is not "
            "that of a linear layer"
        )
