"""LoRA of fused experts: an update of each slice of their stacked weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt.anatomy import Site, grouped, run_experts
from lightning_pelt.methods._ops import cast
from lightning_pelt.methods.submodule import Removable, Submodule, WeightUpdate, refer

if TYPE_CHECKING:
    from lightning_pelt.methods.lora import LoRA

ALIGNED = 16  # bytes of the rows that grouped products of GPUs read


class ExpertsLoRA(Submodule):
    r""":math:`y = W_e x + s \, B_e A_e x` for the expert e of each token.

    All experts are one grouped product per factor, whichever implementation of the experts the
    configuration names. The weights W are read and never copied: beside them, a forward keeps as
    many values per token and expert as the rank. The submodule stands in for the forward of the
    experts, since nothing else of them sees what their second product reads.

    Args:
        method: is not gated.
        sites: ``expert.in``, ``expert.out``, or both, of one module.
    """

    host: Any

    def __init__(self, method: LoRA, sites: Sequence[Site]) -> None:
        super().__init__()
        self.path, self.scale, self.sites = sites[0].path, method.scale, list(sites)
        self.dropout = nn.Dropout(method.dropout) if method.dropout else None
        for site in sites:
            role, count = site.kind.removeprefix("expert."), site.experts or 0
            bound = site.d_in**-0.5  # as LoRA has it in one linear layer
            A = torch.empty(count, method.r, site.d_in).uniform_(-bound, bound)
            self.register_parameter(f"A_{role}", nn.Parameter(A))
            B = torch.zeros(count, site.d_out, method.r)
            self.register_parameter(f"B_{role}", nn.Parameter(B))

    def install(self, model: nn.Module) -> list[Removable]:
        host = model.get_submodule(self.path)
        if "forward" in host.__dict__:
            raise ValueError(
                f"the forward of {self.path} is replaced already, by a LoRA of another name or by "
                "another library: experts take one LoRA"
            )
        refer(self, host=host)
        host.__dict__["forward"] = self.run
        return [_Forward(host)]

    def run(self, *args: Any, **kwargs: Any) -> Tensor:
        """The forward of the experts: what they read, the experts of each token, their factors."""
        output: Tensor = self(*args, *kwargs.values())
        return output

    def forward(self, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """hidden (N, d), chosen (N, k), shares (N, k) -> (N, d)."""
        return run_experts(self.host, hidden, chosen, shares, self.update)

    def update(self, role: str, x: Tensor, ends: Tensor) -> Tensor | None:
        """x (S, d_in) ordered by expert, ends (experts,) -> (S, d_out); None without a site."""
        A, B = self._parameters.get(f"A_{role}"), self._parameters.get(f"B_{role}")
        if A is None or B is None:
            return None
        if self.dropout is not None:
            x = self.dropout(x)
        missing = -A.shape[1] % (ALIGNED // x.dtype.itemsize)
        down = F.pad(cast(A, x.dtype), (0, 0, 0, missing))
        up = F.pad(cast(B, x.dtype), (0, missing))
        low = grouped(x, down.mT, ends)
        return self.scale * grouped(low, up.mT, ends)

    def weight_updates(self) -> list[WeightUpdate]:
        raise ValueError(
            f"the update of the experts at {self.path} cannot be merged or exported: serve the "
            "model with its adapters"
        )


class _Forward:
    """Gives a module its own forward back."""

    def __init__(self, host: nn.Module) -> None:
        self.host = host

    def remove(self) -> None:
        self.host.__dict__.pop("forward", None)
