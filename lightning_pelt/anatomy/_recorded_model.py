"""A model with the recording of its dummy forward, indexed by module."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.anatomy._ancestry import Ancestry
from lightning_pelt.anatomy.calls import AttentionCall, Call
from lightning_pelt.anatomy.recording import record
from lightning_pelt.anatomy.sites import Source


class RecordedModel:
    """The indices that every step of the discovery reads.

    Attributes:
        calls: every call of a module.
        attention_calls: every call of the attention function.
        names: path of each module.
        elements: for each module the paths of the elements of lists around it, itself among them,
            the outermost first; those that are called.
        first: first call of each module that was called; of one that runs without gradients at
            first (HRM), the first call with them.
        order: number of that call.
        ancestry: of all recorded tensors.
        batch: number of rows of the inputs.
        words: numbers of tokens in the rows of those inputs that are integers.
        at_once: whether no other inputs were tried before.

    Raises:
        ValueError: as :func:`lightning_pelt.anatomy.recording.record`.
    """

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Tensor] | None = None) -> None:
        self.model = model
        self._at = dict(model.named_modules())
        self.names = {module: name for name, module in self._at.items()}
        self._called: dict[str, list[Call]] = {}  # by path
        recording = record(model, inputs)
        self.batch, self.words = recording.batch, recording.words
        self.at_once = recording.at_once
        self.calls: list[Call] = recording.calls
        self.attention_calls: list[AttentionCall] = recording.attention_calls
        self.first: dict[nn.Module, Call] = {}
        self.order: dict[nn.Module, int] = {}
        for number, call in enumerate(self.calls):
            known = self.first.get(call.module)
            if known is None or (not _has_graph(known) and _has_graph(call)):
                self.first[call.module], self.order[call.module] = call, number
        self._counts = Counter(call.module for call in self.calls)
        self.elements = self._elements()
        self.ancestry = Ancestry(recording)

    def at(self, path: str) -> nn.Module:
        """The module at ``path``, which may be another path than in :attr:`names`."""
        found = self._at.get(path)
        return self.model.get_submodule(path) if found is None else found

    def _elements(self) -> dict[nn.Module, tuple[str, ...]]:
        around: dict[nn.Module, tuple[str, ...]] = {}
        for path, elements in self.lists():
            for element in elements:
                name = self.names[element]
                # An element of two lists has one path.
                if self._runs(element) and name.rpartition(".")[0] == path:
                    for inner in self.below(name):
                        around[inner] = (*around.get(inner, ()), name)
        return around

    def _runs(self, element: nn.Module) -> bool:
        """Whether an element of a list runs: a list of different modules does, one of equals not.

        The blocks of Idefics' resampler are lists of an attention and a feed-forward.
        """
        children = list(element.children())
        different = isinstance(element, nn.ModuleList) and len({type(c) for c in children}) > 1
        return element in self.first or (different and any(c in self.first for c in children))

    def lists(self) -> list[tuple[str, list[nn.Module]]]:
        """Path and elements of each list of modules, the outermost first."""
        return [(name, list(m.children())) for m, name in self.names.items() if _is_list(m)]

    def below(self, path: str) -> list[nn.Module]:
        """The modules at and below ``path``, without those that have their first path elsewhere."""
        modules = self.at(path).modules()
        return [m for m in modules if f"{self.names[m]}.".startswith(f"{path}.")]

    def called(self, path: str) -> list[Call]:
        """The first calls of the modules at and below ``path``, in network order."""
        if path not in self._called:
            modules = [m for m in self.at(path).modules() if m in self.first]
            modules.sort(key=self.order.__getitem__)
            self._called[path] = [self.first[module] for module in modules]
        return self._called[path]

    def is_live(self, module: nn.Module) -> bool:
        """Whether the model's output is computed from that of a module which was called.

        LLaVA runs the last block of its vision tower, and reads the block before.
        """
        call = self.first.get(module)
        node = None if call is None or call.output is None else call.output.grad_fn
        return node is None or not self.ancestry.live or node in self.ancestry.live

    def repeats(self, module: nn.Module, block: str) -> bool:
        """Whether a module of the block at the path ``block`` runs more often than the block."""
        around = self.at(block)
        return self._counts[module] > max(1, self._counts[around])

    def runs_once(self, module: nn.Module) -> bool:
        """Whether a module is called once in a forward."""
        return self._counts[module] == 1

    def linear_calls(self, start: int = 0, stop: int | None = None) -> list[Call]:
        """The calls of linear layers among the calls ``start`` to ``stop``."""
        return [call for call in self.calls[start:stop] if call.linear]

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
        return self.first[self.at(source.path)].inputs[source.argument]


def _has_graph(call: Call) -> bool:
    return call.output is not None and call.output.requires_grad


def _is_list(module: nn.Module) -> bool:
    """Whether a module is a list of modules, or runs modules of one class after each other."""
    if not isinstance(module, nn.Sequential):
        return isinstance(module, nn.ModuleList)
    kinds = {type(child) for child in module.children()}
    return len(kinds) == 1 and any(True for child in module for _ in child.children())
