"""A model with the recording of its dummy forward, indexed by module."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.anatomy.recording import AttentionCall, Call, is_linear, record
from lightning_pelt.anatomy.sites import Source


class RecordedModel:
    """The indices that every step of the discovery reads.

    Attributes:
        calls: every call of a module.
        attention_calls: every call of the attention function.
        names: path of each module.
        block_of: path of the block that contains a module; modules outside the blocks are absent.
        first: first call of each module that was called.
        batch: number of rows of the inputs.
        words: numbers of tokens in the rows of those inputs that are integers.

    Raises:
        ValueError: as :func:`lightning_pelt.anatomy.recording.record`.
    """

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Tensor] | None = None) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        recording = record(model, inputs)
        self.batch, self.words = recording.batch, recording.words
        self.calls: list[Call] = recording.calls
        self.attention_calls: list[AttentionCall] = recording.attention_calls
        self.block_of = _blocks(model)
        self.first: dict[nn.Module, Call] = {}
        for call in self.calls:
            self.first.setdefault(call.module, call)
        self._counts = Counter(call.module for call in self.calls)

    def repeats(self, module: nn.Module) -> bool:
        """Whether a module of a block runs more often than the block."""
        block = self.model.get_submodule(self.block_of[module])
        return self._counts[module] > max(1, self._counts[block])

    def linear_calls(self, start: int = 0, stop: int | None = None) -> list[Call]:
        """The calls of linear layers among the calls ``start`` to ``stop``."""
        return [call for call in self.calls[start:stop] if is_linear(call.module)]

    def source(self, call: Call, enclosing: nn.Module | None = None) -> Source:
        """What ``call`` reads: the argument of ``enclosing`` that is the same tensor, or its own.

        ``enclosing`` is a module that was called before, such as the attention around a projection.
        """
        argument, tensor = next(iter(call.inputs.items()))
        if enclosing is not None:
            for name, candidate in self.first[enclosing].inputs.items():
                if candidate is tensor:
                    return Source(self.names[enclosing], name, tensor.shape[-1])
        return Source(self.names[call.module], argument, tensor.shape[-1])

    def tensor(self, source: Source) -> Tensor:
        """The recorded tensor of ``source``."""
        return self.first[self.model.get_submodule(source.path)].inputs[source.argument]


def _blocks(model: PreTrainedModel) -> dict[nn.Module, str]:
    """Path of the block around each module: the list element that runs as one layer."""
    elements = [
        f"{path}.{index}".lstrip(".")
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for index in range(len(module))
    ]
    modules = dict(model.named_modules())
    layers = [p for p in elements if isinstance(modules[p], GradientCheckpointingLayer)]
    outermost = [p for p in elements if not any(p.startswith(f"{q}.") for q in elements)]
    blocks: dict[nn.Module, str] = {}
    for path in (*layers, *outermost):
        for module in modules[path].modules():
            blocks.setdefault(module, path)
    return blocks
