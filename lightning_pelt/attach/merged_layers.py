"""One layer into which updates are merged: its new weight and bias, and a trial of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightning_pelt.anatomy.embeddings import embedding_scale
from lightning_pelt.attach.layer_changes import Change, widened
from lightning_pelt.methods._ops import first_tensor

PROBES = 4  # random inputs of a trial merge
ROUNDINGS = 32  # how often the outputs of a trial may be rounded
COARSEST = 2.0**-8  # relative rounding of products in fp32 where faster ones are allowed
TRANSPOSED = (Conv1D, nn.Embedding)  # their weights are (d_in, d_out)
REMEDY = (
    "Load the base in full precision and unsharded (a quantised one by its dequantize()), then "
    "load_adapters and merge; or serve the model with its adapters"
)


class Weights(NamedTuple):
    """Weight (d_out, d_in), or (d,) of a norm, and bias (d_out,), in fp32 or wider."""

    weight: Tensor | None
    bias: Tensor | None


class MergedLayer:
    """A linear layer or a norm, and the changes that it is to take in.

    Args:
        host: the layer.
        path: of it, for messages.
        changes: in the order in which they act.
        d_in: width of its input.
    """

    def __init__(self, host: nn.Module, path: str, changes: Sequence[Change], d_in: int) -> None:
        self.host, self.path, self.changes, self.d_in = host, path, changes, d_in
        self.kind = f"{path} ({type(host).__name__})"
        self.changes_weight = any(change.of_weight for change in changes)
        self.changes_bias = any(change.bias is not None for change in changes) or (
            self._parameter("bias") is not None and any(c.scale is not None for c in changes)
        )

    def _parameter(self, name: str) -> Tensor | None:
        parameter = self.host._parameters.get(name)
        return None if parameter is None else parameter.detach()

    @property
    def changed(self) -> list[str]:
        """Names of the parameters that change: ``weight``, ``bias``."""
        return [
            name
            for name, changes in (("weight", self.changes_weight), ("bias", self.changes_bias))
            if changes
        ]

    def _wide(self) -> Weights:
        weight, bias = self._parameter("weight"), self._parameter("bias")
        if weight is None or not self.changes_weight:
            return Weights(None, None if bias is None else widened(bias))
        weight = widened(weight.T if isinstance(self.host, TRANSPOSED) else weight)
        return Weights(weight, None if bias is None else widened(bias))

    def _merged(self, changes: Sequence[Change]) -> Weights:
        weight, bias = self._wide()
        for change in changes:
            if change.delta is not None and weight is not None:
                weight = weight + change.delta
            if change.scale is not None and weight is not None:
                weight = change.scale[:, None] * weight
                bias = None if bias is None else bias * change.scale
            if change.bias is not None and bias is not None:
                bias = bias + change.bias
        for change in changes:  # every submodule reads the rescaled input, whatever its place
            if change.inputs is not None and weight is not None:
                weight = weight * change.inputs
        return Weights(weight, bias)

    def _write(self, new: Weights) -> None:
        weight, bias = self._parameter("weight"), self._parameter("bias")
        if self.changes_weight and weight is not None and new.weight is not None:
            (weight.T if isinstance(self.host, TRANSPOSED) else weight).copy_(new.weight)
        if self.changes_bias and bias is not None and new.bias is not None:
            bias.copy_(new.bias)

    def merge(self) -> None:
        """Write the merged weight and bias, rounded once."""
        self._write(self._merged(self.changes))

    def try_merge(self) -> None:
        """Merge enlarged changes for a trial, and compare the layer with what hooks would do.

        Raises:
            ValueError: the layer's output does not follow its weight and bias. Both are as before.
        """
        kept = [value for name in self.changed if (value := self._parameter(name)) is not None]
        originals = [value.clone() for value in kept]
        modes = {module: module.training for module in self.host.modules()}
        for module in modes:
            module.training = False  # norms must not count random inputs in their statistics
        try:
            before, after, expected, allowed = self._outputs()
        except Exception as error:  # layers of other libraries raise many types
            raise ValueError(f"{self.kind} cannot be merged: {error}") from error
        finally:
            for value, original in zip(kept, originals, strict=True):
                value.copy_(original)
            for module, mode in modes.items():
                module.training = mode
        if not ((after - expected).abs() <= allowed).all():
            own = " and ".join(self.changed)
            raise ValueError(
                f"{self.kind} does not compute with its {own} alone: a trial merge changed its "
                f"output by up to {(after - before).abs().max():.3g}, expected "
                f"{(expected - before).abs().max():.3g}. {REMEDY}"
            )

    def _outputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Outputs before and after a merge, those expected, and the error allowed, by probe."""
        own = self._parameter(self.changed[0])
        assert own is not None
        with torch.autocast(own.device.type, enabled=False):
            x = self._probes(own)
            before = self._run(x)
            weights = self._wide()
            output = max(float(before.abs().max()), torch.finfo(before.dtype).tiny)
            changes = [change.enlarged(weights.weight, output) for change in self.changes]
            rescaled = widened(x)
            for change in changes:
                rescaled = rescaled if change.inputs is None else rescaled * change.inputs
            expected = self._run(rescaled.to(x.dtype))
            for change in changes:
                expected = change.hooked(expected, rescaled)
            merged = self._merged(changes)
            self._write(merged)
            after = self._run(x)
        exact = own.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
        rounding = max(torch.finfo(own.dtype).eps, 0 if exact else COARSEST)
        sizes = [before.abs().max(), expected.abs().max()]
        for weight in (weights.weight, merged.weight):
            if weight is not None:  # products are rounded in the dtype, and summed up in fp32
                norm = weight.norm(dim=1).max()
                summed = torch.finfo(after.dtype).eps / rounding * rescaled.norm(dim=1).max()
                sizes.append(norm * (1 + summed))
        return before, after, expected, ROUNDINGS * rounding * torch.stack(sizes).max()

    def _probes(self, own: Tensor) -> Tensor:
        """Random inputs (PROBES, d_in, ...), the same every time."""
        if isinstance(self.host, nn.Embedding):
            ids = torch.linspace(0, self.d_in - 1, PROBES).long()
            return F.one_hot(ids, self.d_in).to(own.device, own.dtype)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(PROBES, self.d_in, generator=generator).to(own.device, own.dtype)
        while x.dim() < 4:  # batch norms of images read (B, d, H, W)
            try:
                self._run(x)
            except (ValueError, RuntimeError):
                if self.changes_weight:
                    raise
                x = torch.randn(*x.shape, 2, generator=generator).to(own.device, own.dtype)
            else:
                break
        return x

    def _run(self, x: Tensor) -> Tensor:
        """The layer without its hooks, so without the submodules, on (PROBES, d_in, ...).

        An embedding reads the words of which ``x`` has ones.
        """
        if isinstance(self.host, nn.Embedding):
            return widened(self.host.forward(x.argmax(1))) / embedding_scale(self.host)
        return widened(first_tensor(self.host.forward(x)))
