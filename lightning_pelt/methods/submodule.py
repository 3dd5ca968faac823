"""A submodule: a child of the module it extends that acts through its own bound hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lightning_pelt.anatomy import Site


class Removable(Protocol):
    """What undoes one change to the model, such as torch's handle of a hook."""

    def remove(self) -> None: ...


class WeightUpdate(NamedTuple):
    """A change of a base weight that has the effect of a submodule.

    Attributes:
        path: of the linear layer.
        delta: (d_out, d_in), added to rows of its weight.
        rows: (d_out,), which rows; None for all of them.
    """

    path: str
    delta: Tensor
    rows: Tensor | None = None


class Submodule(nn.Module, ABC):
    """A small module that lives as a child of the module it extends and acts through hooks.

    The hooks are bound methods of the submodule, never closures, so that a model with submodules
    can be deep-copied, pickled (``ddp_spawn``), compiled and checkpointed.

    What one hook leaves for another in the same forward is kept in a
    :class:`~lightning_pelt.methods.current.Current`, never in a plain attribute: several threads
    may run one model.

    Attributes:
        temperature: of a softmax that may be annealed; None if there is none.
        sized_by_labels: whether its number of parameters depends on the number of labels.
    """

    temperature: float | None = None
    sized_by_labels: ClassVar[bool] = False

    @abstractmethod
    def install(self, model: nn.Module) -> list[Removable]:
        """Register this submodule's hooks on the modules of ``model`` that it extends."""

    def trial(self, rows: int) -> AbstractContextManager[None]:
        """A context in which the model runs on ``rows`` rows that lack what this method reads.

        ``attach`` tries a plan on inputs of the model alone, without those of
        :attr:`Method.batch_inputs`.
        """
        return nullcontext()

    def folded_state(self) -> dict[str, Tensor] | None:
        """Its tensors after training, where they differ; {} if nothing remains; None if equal."""
        return None

    def weight_updates(self) -> list[WeightUpdate]:
        """The changes of base weights that this submodule amounts to, for mergeable methods."""
        return []

    def parameters_by_site(self) -> Mapping[Site, int]:
        """How many parameters belong to each site, where one submodule serves several blocks."""
        return {}

    def clip_gradients(self, max_norm: float) -> list[nn.Parameter]:
        """Clip the gradients that need a norm for themselves, and return their parameters.

        All other parameters are clipped together by their common norm.
        """
        return []


class OutputRows(nn.Module):
    """The rows of one site in the output of a fused projection, such as GPT-2's ``c_attn``.

    Args:
        channels: the site's channels of the output; None for all of them.
    """

    rows: Tensor | None

    def __init__(self, channels: Sequence[int] | None) -> None:
        super().__init__()
        # A buffer moves with the model once. A constant would be copied in every forward.
        rows = None if channels is None else torch.tensor(channels)
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, values: Tensor, width: int) -> Tensor:
        """values (d, ...) -> (width, ...), zero in the rows of other sites."""
        if self.rows is None:
            return values
        return values.new_zeros(width, *values.shape[1:]).index_copy(0, self.rows, values)


def refer(module: nn.Module, **others: nn.Module | None) -> None:
    """Set attributes of ``module`` to modules that another module owns.

    A reference is not a child: it adds no parameter, no state-dict key and no entry to
    ``named_modules``. Deep copies refer to the copied modules.

    Example:
        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> refer(a, other=b)
        >>> a.other is b, len(list(a.parameters()))
        (True, 2)
    """
    module.__dict__.update(others)
