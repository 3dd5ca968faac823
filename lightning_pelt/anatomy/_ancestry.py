"""What was computed from what, through linear layers and attentions.

The graph of a recording is cut there, see :mod:`._recorder`; here it is followed across the cuts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor

from lightning_pelt.anatomy.calls import Recording


class Ancestry:
    """Follows the graph of a recording.

    Attributes:
        live: the nodes from which the model's outputs are computed.
    """

    def __init__(self, recording: Recording) -> None:
        self._read: dict[Any, list[Tensor]] = {}  # what a cut piece of the graph was computed from
        for call in recording.calls:
            if call.linear and call.output is not None:
                self._read[call.output.grad_fn] = list(call.inputs.values())
        self._weighted = {
            id(attention.mark): [tensor for pair in attention.operands for tensor in pair]
            for attention in recording.attention_calls
            if attention.mark is not None
        }
        self.live = self.nodes(recording.outputs)

    def nodes(self, tensors: Iterable[Tensor], stops: Collection[Any] = ()) -> set[Any]:
        """The nodes from which ``tensors`` are computed.

        Args:
            tensors: recorded ones.
            stops: nodes before which nothing is followed; those that are reached are returned.
        """
        queue = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
        seen = set(queue)
        while queue:
            node = queue.pop()
            if node in stops:
                continue
            before = [next_node for next_node, _ in node.next_functions]
            marked = self._weighted.get(id(getattr(node, "variable", None)), [])
            before += [tensor.grad_fn for tensor in (*self._read.get(node, ()), *marked)]
            new = {each for each in before if each is not None} - seen
            seen |= new
            queue += new
        return seen

    def first_of(self, tensor: Tensor, arguments: Iterable[Tensor]) -> int | None:
        """The number of the first of ``arguments`` from which ``tensor`` is computed."""
        nodes = [argument.grad_fn for argument in arguments]
        reached = self.nodes([tensor], stops={node for node in nodes if node is not None})
        return next((i for i, node in enumerate(nodes) if node in reached), None)
