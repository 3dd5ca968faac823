"""Gates: how much each submodule contributes, learned from its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt.anatomy import OUTPUT, Site, Source
from lightning_pelt.methods._gate_values import GateValues
from lightning_pelt.methods._kept import KeepingSubmodule
from lightning_pelt.methods._ops import argument, autocasts, cast, first_tensor
from lightning_pelt.methods._rows import Rows
from lightning_pelt.methods.config import Nested
from lightning_pelt.methods.current import Current, exporting, recording
from lightning_pelt.methods.padding import Padding
from lightning_pelt.methods.submodule import Removable
from lightning_pelt.utils.errors import unknown

Pool = Literal["auto", "masked", "all", "token"]
PARTS = ("weight", "bias")  # the parameters of a gate


@dataclass(frozen=True)
class Gate(Nested):
    r"""How the submodules of a method are gated.

    :math:`g = \operatorname{pool}_t \sigma(w \cdot x_t + b)`, the average of sigmoids of UniPELT
    (Mao et al., 2022, section 3.2; https://arxiv.org/abs/2110.07577).

    Args:
        pool: ``masked`` averages over real tokens; ``all`` averages over padding too, as the
            authors' code does; ``token`` gates every token separately, so that no information flows
            from later to earlier tokens and cached decoding equals the full pass. ``auto`` is
            ``token`` on causal stacks and ``masked`` elsewhere. Gates on norms and outside the
            blocks are always per token.
        shared: one gate for all sites of the method that read the same tensor, not one per site.
        learned: False for a gate without weights, which only a schedule opens and closes.
        init_std: standard deviation of the initial weights.
        init_bias: the initial bias; 0 starts the gate near 0.5.

    Raises:
        ValueError: an unknown ``pool``, or a negative ``init_std``.

    Example:
        >>> from lightning_pelt import Gate, LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attachment = attach(tiny_bert(), Plan.uniform(LoRA(gate=Gate(shared=True))))
        >>> list(attachment.gates)
        ['00/lora', '01/lora']
    """

    pool: Pool = "auto"
    shared: bool = False
    learned: bool = True
    init_std: float = 0.02
    init_bias: float = 0.0

    def __post_init__(self) -> None:
        if self.pool not in get_args(Pool):
            raise unknown("pool of a gate", self.pool, get_args(Pool))
        if self.init_std < 0:
            raise ValueError(f"init_std is {self.init_std}: a standard deviation is at least 0")


class GateLayer(KeepingSubmodule):
    """All gates that read one tensor, as one matrix product.

    Each gate has separate parameters, a weight (1, width) and a bias (1,), so that each can be held
    or closed alone. The buffer ``open`` (n,) multiplies the gates; schedules write it. Sigmoid and
    pooling run in fp32.

    Args:
        width: of the tensor that the gates read.
        names: of the gates.
        gate: their configuration.
        pool: how they pool, ``auto`` resolved.
        source: the tensor that they read; None if a submodule passes it to :meth:`GateView.on`.
        padding: the mask of their block, for pooled gates.
    """

    open: Tensor

    def __init__(
        self,
        width: int,
        names: Sequence[str],
        *,
        gate: Gate,
        pool: Pool,
        source: Source | None = None,
        padding: Padding | None = None,
    ) -> None:
        super().__init__()
        self.names = [name.replace(".", "_") for name in names]
        self.gate, self.pool, self.width = gate, pool, width
        self.openness = [1.0] * len(self.names)  # a copy on the host, which reads without a sync
        self.source, self.padding = source, padding
        self.live: Current[GateValues] = Current(f"gate {', '.join(names)}")
        self.read: Current[Tensor] | None = None  # what the gates read, where that matters
        self.seen: list[Tensor | None] = [None]  # a module's own attributes are slow to set
        for name in self.names if gate.learned else ():
            self.register_parameter(f"{name}_weight", nn.Parameter(torch.empty(1, width)))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(1)))
        self.parameter_names = [f"{name}_{part}" for name in self.names for part in PARTS]
        self.register_buffer("open", torch.ones(len(self.names)))
        self.register_load_state_dict_post_hook(_mirror_openness)
        self.reset_parameters()

    @property
    def last(self) -> Tensor | None:
        """The gates in the last forward, detached, (B, 1, n), or (B, T, n) per token or packed."""
        return self.seen[0]

    @last.setter
    def last(self, gates: Tensor | None) -> None:
        self.seen[0] = gates

    def remember_input(self) -> None:
        """Keep what the gates read, for :func:`passes_by`."""
        self.read = Current(f"what gate {', '.join(self.names)} reads")

    def reset_parameters(self) -> None:
        for index in range(len(self.names)):
            self.reset_gate(index)

    def reset_gate(self, index: int) -> None:
        """Draw the initial weight of one gate."""
        if self.gate.learned:
            weight, bias = self.parameters_of(index)
            nn.init.normal_(weight, std=self.gate.init_std)
            nn.init.constant_(bias, self.gate.init_bias)

    def parameters_of(self, index: int) -> list[nn.Parameter]:
        name = self.names[index]
        return [getattr(self, f"{name}_{part}") for part in PARTS if self.gate.learned]

    def install(self, model: nn.Module) -> list[Removable]:
        if self.source is None:  # a submodule calls GateView.on
            return []
        host = model.get_submodule(self.source.path)
        if self.source.argument == OUTPUT:
            return [host.register_forward_hook(self._read_output)]
        return [host.register_forward_pre_hook(self._read, with_kwargs=True)]

    def _read(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        assert self.source is not None
        self.compute(argument(args, kwargs, self.source.argument))

    def _read_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.compute(first_tensor(output))

    def compute(self, x: Tensor) -> None:
        """Compute the gates for ``x`` (B, T, width), and keep them for the submodules.

        What the module returns is kept, not what it computes inside: DeepSpeed's ZeRO-3 gathers
        its weights again for the gradients of that.
        """
        self.live.set(GateValues.of(self(x), len(self.names)))
        if self.read is not None:
            self.read.set(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, 1, n) pooled, (B, T, n) per token or where rows are packed."""
        rows = self.mixed_rows
        if not self.gate.learned:
            gates = last = (self.open if rows is None else rows.of(self.stacked_open, x)).float()
        else:
            gates = self._by_token(x)
            pooled = gates if self.pool == "token" else self._pooled(gates)
            gates, last = self._spread(pooled, gates), pooled.detach()
        if not exporting():
            self.seen[0] = last
        return gates

    def _by_token(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, n) in fp32."""
        if self.mixed_rows is not None:
            weights = cast(self.stacked[0], x.dtype)
            bias = self.mixed_rows.of(self.stacked[1].float(), x)
            scores = self.mixed_rows.product(x, weights).float() + bias
            return scores.sigmoid() * self.mixed_rows.of(self.stacked_open, x).float()
        weight, bias, factors = self.kept.of([*self._weights(), self.open], self._with_factors)
        if x.dtype == weight.dtype == torch.float32 and not autocasts(x):
            gates = F.linear(x, weight, bias).sigmoid()
        else:
            gates = (F.linear(x, weight.to(x.dtype)).float() + bias.float()).sigmoid()
        return gates if factors is None else gates * factors

    def _with_factors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """All weights, all biases, and what multiplies the gates; None for 1."""
        free = not torch.is_grad_enabled() and not recording() and self.open.is_cpu
        all_open = free and bool((self.open == 1).all())
        return *self._stacked(), None if all_open else self.open.float()

    def by_rows(self, others: Sequence[GateLayer], rows: Rows) -> None:
        self.mixed_rows, self.stacked_open = rows, rows.stack([other.open for other in others])
        if self.gate.learned:
            weights, biases = zip(*(other._stacked() for other in others), strict=True)
            self.stacked = (rows.stack([weight.mT for weight in weights]), rows.stack(biases))

    def _stacked(self) -> tuple[Tensor, Tensor]:
        """All weights (n, width) and all biases (n,)."""
        tensors = self._weights()
        return torch.cat(tensors[::2]), torch.cat(tensors[1::2])

    def _weights(self) -> list[Tensor]:
        """Weight and bias of every gate in turn."""
        here = [*self._parameters.values()]  # in their order, and faster than by name
        if len(here) == len(self.parameter_names):
            return here  # type: ignore[return-value]
        return [getattr(self, name) for name in self.parameter_names]

    def _pooled(self, gates: Tensor) -> Tensor:
        """(B, ..., T, n), or (B T, n) where a feed-forward flattens its input, -> (B, 1, n).

        The rows of a packed batch are pooled by example, -> (B, T, n).
        """
        if gates.dim() == 2:
            batch = self.padding.given.get().batch if self.padding else gates.shape[0]
            gates = gates.unflatten(0, (batch, -1))
        rows = gates if gates.dim() == 3 else gates.flatten(1, -2)
        masked = self.padding is not None and self.pool == "masked"
        if self.padding is not None and rows.shape[1] == gates.shape[-2]:
            examples = self.padding.examples(rows.shape[1])
            if examples is not None:
                return examples.mean(rows, masked=masked)
        found = self.padding.weights(rows.shape[1]) if masked else None  # type: ignore[union-attr]
        if found is None:
            return rows.sum(1, keepdim=True) / rows.shape[1]
        weights, count = found
        return (rows * weights).sum(1, keepdim=True) / count

    def _spread(self, pooled: Tensor, gates: Tensor) -> Tensor:
        """``pooled`` in a shape that broadcasts like ``gates``, which has one value per token."""
        if self.pool == "token" or gates.dim() == 3:
            return pooled
        if gates.dim() == 2:
            tokens = gates.shape[0] // pooled.shape[0]
            return pooled.expand(-1, tokens, -1).flatten(0, 1)
        if pooled.shape[1] > 1:  # of packed rows
            return pooled.view_as(gates)
        return pooled.view(pooled.shape[0], *[1] * (gates.dim() - 2), -1)


def _mirror_openness(layer: GateLayer, incompatible: Any) -> None:
    layer.openness = [float(value) for value in layer.open.tolist()]


class GateView:
    """One gate of a model: its value in the last forward, and its openness.

    Attributes:
        name: ``07/lora.query``: block and site.
        block, site, method: ``07``, ``lora.query``, ``lora``.
    """

    def __init__(self, name: str, method: str, layer: GateLayer, index: int) -> None:
        self.name, self.method, self.layer, self.index = name, method, layer, index
        self.block, _, self.site = name.partition("/")

    def on(self, x: Tensor) -> Tensor:
        """The gate for ``x`` (B, T, width): (B, 1, 1) pooled, (B, T, 1) per token or packed.

        For methods that define :meth:`~lightning_pelt.methods.base.Method.gate_width`.
        """
        self.layer.compute(x)
        return self.read()

    def read(self) -> Tensor:
        """The gate in the current forward: (B, 1, 1) pooled, (B, T, 1) per token or packed.

        Raises:
            RuntimeError: the gate has not seen its input. A method with
                :meth:`~lightning_pelt.methods.base.Method.gate_width` calls :meth:`on`.
        """
        each, whole, _ = self.layer.live.get()
        return whole.narrow(-1, self.index, 1) if each is None else each[self.index]

    def number(self) -> float | None:
        """The gate in the current forward as a number, if it is one that need not be waited for.

        That is a single value on a CPU without gradients. A number multiplies within a product.

        Raises:
            RuntimeError: as :meth:`read`.
        """
        numbers = self.layer.live.get().numbers
        return None if numbers is None else numbers[self.index]

    @property
    def value(self) -> Tensor | None:
        """The gate in the last forward, detached, fp32: (B,) pooled, (B, T) per token, or None.

        A gate that is not learned has a single value, of shape (). One that pools over the examples
        of packed rows has the value of its example for each token, (B, T).
        """
        if self.layer.last is None:
            return None
        last = self.layer.last[..., self.index]
        return last if self.layer.pool == "token" or last.dim() == 0 else last.squeeze(1)

    @property
    def open(self) -> float:
        """The factor in [0, 1] by which a schedule multiplies the gate."""
        return self.layer.openness[self.index]

    def set_open(self, openness: float) -> None:
        """Multiply the gate by ``openness`` in [0, 1]; 0 bypasses the submodule exactly.

        Raises:
            ValueError: ``openness`` lies outside [0, 1].
        """
        if not 0.0 <= openness <= 1.0:
            raise ValueError(f"gate {self.name}: openness is {openness}, it must lie in [0, 1]")
        with torch.no_grad():
            self.layer.open[self.index] = openness
        self.layer.openness[self.index] = float(openness)

    def parameters(self) -> list[nn.Parameter]:
        """Weight (1, d) and bias (1,); empty for a gate that is not learned."""
        return self.layer.parameters_of(self.index)

    def __repr__(self) -> str:
        return f"GateView({self.name!r}, open={self.open:g})"


def passes_by(gate: GateView | None, site: Site, x: Tensor) -> bool:
    """Whether the layer at ``site`` runs on an ``x`` that its gate has not read.

    The queries and keys of DeBERTa-v3 are projections of the tokens and of the relative positions.
    A gated submodule changes those of the tokens.
    """
    if gate is None or not site.repeated or gate.layer.read is None:
        return False
    return gate.layer.read.get() is not x
