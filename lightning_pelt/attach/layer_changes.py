"""What a submodule changes in one layer: an update behind its gate, in the layer's channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pelt.methods.submodule import WeightUpdate


@dataclass(frozen=True)
class Change:
    """A :class:`WeightUpdate` of a whole layer with its gate applied; None changes nothing.

    Args:
        delta: (d_out, d_in) of the layer, zero outside the site's channels.
        scale, bias: (d_out,), one and zero outside the site's channels.
        inputs: (d_in,).
    """

    delta: Tensor | None = None
    scale: Tensor | None = None
    inputs: Tensor | None = None
    bias: Tensor | None = None

    @property
    def of_weight(self) -> bool:
        """Whether it changes the weight."""
        return not (self.delta is None and self.scale is None and self.inputs is None)

    @property
    def any(self) -> bool:
        """Whether it changes anything."""
        return self.of_weight or self.bias is not None

    def enlarged(self, weight: Tensor | None, output: float) -> Change:
        """The change at the size of the layer, where it exceeds the rounding of every dtype.

        Args:
            weight: the size of ``delta`` becomes that of it.
            output: of the layer, the size of which ``bias`` gets.
        """
        delta = self.delta
        if delta is not None and weight is not None:
            delta = delta / delta.abs().max()  # of which the squares do not underflow
            delta = delta * (_size(weight) / delta.norm())
        return Change(
            delta,
            None if self.scale is None else _spread(self.scale),
            None if self.inputs is None else _spread(self.inputs),
            None if self.bias is None else self.bias * (output / self.bias.abs().max()),
        )

    def hooked(self, y: Tensor, x: Tensor) -> Tensor:
        """The output (B, d_out, ...) of a layer as the hooks of the submodule change it.

        Args:
            y: the output before.
            x: what the layer has read, (B, d_in).
        """
        if self.delta is not None:
            y = y + x @ self.delta.to(x).T
        if self.scale is not None:
            y = y * self.scale
        if self.bias is not None:
            y = y + self.bias.reshape(-1, *[1] * (y.dim() - 2))
        return y


def _size(weight: Tensor) -> Tensor:
    norm = weight.norm()
    return norm if norm > 0 else torch.ones_like(norm)


def _spread(factors: Tensor) -> Tensor:
    """``factors`` in [0, 2], at least one of them 0 or 2."""
    return 1 + (factors - 1) / (factors - 1).abs().max()


def change_of(update: WeightUpdate, factor: float, width: int) -> Change:
    """``update`` behind a gate of the value ``factor``, in the channels of a layer ``width`` wide.

    Raises:
        ValueError: the update contains NaN or infinity.
    """
    if factor == 0:  # then its values do not matter
        return Change()
    for values in (update.delta, update.scale, update.inputs, update.bias):
        if values is not None and not values.isfinite().all():
            raise ValueError(
                f"the update of {update.path} contains NaN or infinity: the run had diverged"
            )

    def gated(values: Tensor | None, neutral: float, rows: Tensor | None) -> Tensor | None:
        if values is None or (values == neutral).all():
            return None
        values = neutral + factor * (widened(values) - neutral)
        if rows is None:
            return values
        whole = values.new_full((width, *values.shape[1:]), neutral)
        return whole.index_copy(0, rows.to(values.device), values)

    rows = update.rows
    return Change(
        delta=gated(update.delta, 0.0, rows),
        scale=gated(update.scale, 1.0, rows),
        inputs=gated(update.inputs, 1.0, None),
        bias=gated(update.bias, 0.0, rows),
    )


def widened(values: Tensor) -> Tensor:
    """``values`` in fp32, or wider if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
