"""A submodule: a child of the module it extends that acts through its own bound hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lightning_pelt.anatomy import Site

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from lightning_pelt.methods._rows import Rows
    from lightning_pelt.methods.gate import GateView


class Removable(Protocol):
    """What undoes one change to the model, such as torch's handle of a hook."""

    def remove(self) -> None: ...


@dataclass(frozen=True)
class WeightUpdate:
    r"""A change of one layer that has the effect of a submodule.

    The layer :math:`y = W x + b` becomes

    .. math:: y = s \odot ((W + D)(t \odot x) + b) + c

    in the channels of its site. A constant gate g of the submodule is applied to the parts: they
    are :math:`g D`, :math:`1 + g (s - 1)`, :math:`1 + g (t - 1)` and :math:`g c`.

    Args:
        site: the layer, or the channels of its output, that the submodule extends.
        delta: D, (d_out, d_in) of the site.
        scale: s, (d_out,).
        inputs: t, (d_in,).
        bias: c, (d_out,). Norms have this one alone.
        gate: of the submodule, which the parts do not contain; None for ungated.

    Example:
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.testing import tiny_bert
        >>> query = examine(tiny_bert()).select("query")[0]
        >>> WeightUpdate(query, bias=torch.ones(32)).path
        'bert.encoder.layer.0.attention.self.query'
    """

    site: Site
    delta: Tensor | None = None
    scale: Tensor | None = None
    inputs: Tensor | None = None
    bias: Tensor | None = None
    gate: GateView | None = None

    @property
    def path(self) -> str:
        """Path of the layer."""
        return self.site.path

    @property
    def rows(self) -> Tensor | None:
        """The channels of the site in a fused layer's output, (d_out,); None for all of them."""
        return None if self.site.channels is None else torch.tensor(self.site.channels)


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
        mixed_rows: which of several adapters each row of the batch uses, after :meth:`by_rows`.
    """

    temperature: float | None = None
    sized_by_labels: ClassVar[bool] = False
    mixed_rows: Rows | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return super()._apply(keeping_values(fn), recurse)

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
        """The changes of base layers that this submodule amounts to, for mergeable methods.

        They act in the order of the submodules' hooks on a layer, and do not contain the gate:
        each refers to it instead. They are new tensors, or the weights themselves.
        """
        return []

    def write(self) -> None:
        """Write into the base what is no update of a layer, such as rows of a table, for ``merge``.

        Raises:
            ValueError: the base cannot take it in; nothing is changed then.
        """

    def parameters_by_site(self) -> Mapping[Site, int]:
        """How many parameters belong to each site, where one submodule serves several blocks."""
        return {}

    def by_rows(self, others: Sequence[Any], rows: Rows) -> None:
        """Compute every row of a batch with the weights of one of ``others``, for inference.

        Args:
            others: the same submodule of several adapters with equal plans.
            rows: tells which of them each row uses, or none.

        Raises:
            ValueError: it cannot.
        """
        raise ValueError(
            f"{type(self).__name__} cannot have different weights in the rows of one batch, as "
            "those of LoRA and Adapter can: run the adapters one after another, with "
            "adapters.using(name)"
        )

    def sharded_over(self, groups: Sequence[ProcessGroup]) -> None:
        """Note the groups of processes that add up the gradients of sharded weights.

        A process adds up the gradients that it has. A submodule that gives some of its weights no
        gradient must do so in all processes.
        """

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


def keeping_values(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``fn``, which ``Module._apply`` applies to all tensors, so that these keep their values.

    ``Module.to_empty`` allocates a model that was on the meta device. Its submodules were not: they
    have their initial values, and no file of the base holds them.
    """
    probe = torch.tensor([1.0, -2.0, 0.5, 4.0], device="cpu")  # exact in every dtype
    made = fn(probe.clone())
    if type(made) is not Tensor or made.is_meta or torch.equal(made.cpu().float(), probe):
        return fn

    def keeping(tensor: Tensor) -> Tensor:
        new = fn(tensor)
        return new if tensor.is_meta or new.is_meta else new.copy_(tensor)

    return keeping


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
