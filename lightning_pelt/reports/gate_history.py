"""The gates of a run over its steps, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

CLOSED = 0.0  # the value of a gate that a schedule or pruning has closed
SMALLEST = 2.0**-14  # of an open gate, so that it is not 0 in half precision


class GateHistory:
    """Readings of the gates, thinned evenly.

    Up to ``most`` readings are kept, besides the last one. When there are more, every second one is
    dropped: the readings kept are those whose steps are multiples of :attr:`stride`, a power of
    two. So a resumed run keeps the readings of one that was not interrupted. Values are kept in
    half precision: 200 readings of 24 gates take 10 kB in a checkpoint.

    Args:
        most: number of readings.

    Raises:
        ValueError: ``most`` is below 2.

    Example:
        >>> history = GateHistory(most=3)
        >>> for step in range(10):
        ...     history.add(step, {"00/lora": 0.5})
        >>> history.steps
        [0, 4, 8, 9]
    """

    def __init__(self, most: int = 200) -> None:
        if most < 2:
            raise ValueError(f"most={most} must be at least 2 readings")
        self.most = most
        self.stride = 1
        self.names: list[str] = []
        self.steps: list[int] = []
        self._rows: list[Tensor] = []  # (n gates,) float16

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def values(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(readings, gates): NaN where a gate has not run, and 0 where it is closed."""
        rows = torch.stack(self._rows) if self._rows else torch.empty(0, len(self.names))
        return rows.float().numpy()

    def add(self, step: int, gates: Mapping[str, float]) -> None:
        """Add a reading.

        It replaces those of the same and of later steps, which are from another run. A reading of
        other gates than before begins another history.

        Args:
            step: of the optimizer.
            gates: means in [0, 1] by name; NaN for a gate that has not run, 0 for a closed one.
        """
        if list(gates) != self.names:
            self.names, self.steps = list(gates), []
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
        if len(self.steps) > 1 and self.steps[-1] % self.stride:
            self.steps.pop()  # it was kept as the last one
        self.stride = self.stride if self.steps else 1
        row = [value if value == CLOSED else max(value, SMALLEST) for value in gates.values()]
        self._rows[len(self.steps) :] = [torch.tensor(row, dtype=torch.float16)]
        self.steps.append(step)
        while len(self.steps) > self.most + 1 or self._one_too_many():
            self._thin()

    def _one_too_many(self) -> bool:
        return len(self.steps) > self.most and self.steps[-1] % self.stride == 0

    def _thin(self) -> None:
        self.stride *= 2
        last = len(self.steps) - 1
        kept = [i for i, step in enumerate(self.steps) if i == last or step % self.stride == 0]
        self.steps = [self.steps[i] for i in kept]
        self._rows = [self._rows[i] for i in kept]

    def state_dict(self) -> dict[str, Any]:
        """Plain data and a tensor (readings, gates)."""
        values = torch.from_numpy(self.values).half()
        return {
            "names": list(self.names),
            "steps": list(self.steps),
            "stride": self.stride,
            "values": values,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.names, self.steps = list(state["names"]), list(state["steps"])
        self.stride = int(state["stride"])
        self._rows = list(state["values"].half().cpu().unbind(0))


def closed_for_good(history: GateHistory, names: Sequence[str]) -> dict[str, int]:
    """The step from which each gate is closed up to the last reading.

    Args:
        history: of the gates.
        names: of gates; those that are open in the last reading are left out.
    """
    values, found = history.values, {}
    for name in names:
        if name in history.names and len(history):
            opened = np.flatnonzero(values[:, history.names.index(name)] != CLOSED)
            first = int(opened[-1]) + 1 if len(opened) else 0
            if first < len(history):
                found[name] = history.steps[first]
    return found
