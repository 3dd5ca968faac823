"""LoRA of word embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt.anatomy import Site
from lightning_pelt.anatomy.embeddings import embedding_scale
from lightning_pelt.methods._no_resizing import NoResizing
from lightning_pelt.methods.gate import GateView
from lightning_pelt.methods.submodule import OutputRows, Removable, Submodule, WeightUpdate

if TYPE_CHECKING:
    from lightning_pelt.methods.lora import LoRA


class EmbeddingLoRA(Submodule):
    """Adds s B a_w to the embedding of each word w; a_w is its row of A.

    Attributes:
        words: A (vocabulary, r), at zero.
        B: (d, r), normally distributed. This is PEFT's start.
    """

    def __init__(self, method: LoRA, site: Site, gate: GateView | None) -> None:
        super().__init__()
        self.site, self.gate, self.name = site, gate, method.name
        self.scale, self.factor, self.path = method.scale, 1.0, site.path
        # As LoRAUp has them for the sites of a layer.
        self.keys, self.gates, self.output_rows = [site.label], [gate], [OutputRows(None)]
        self.words = nn.Parameter(torch.zeros(site.d_in, method.r))
        self.B = nn.Parameter(torch.randn(site.d_out, method.r))

    def install(self, model: nn.Module) -> list[Removable]:
        host = model.get_submodule(self.site.path)
        self.factor = embedding_scale(host)
        handle = host.register_forward_hook(self._add, with_kwargs=True)
        return [handle, NoResizing(model, self.name)]

    def _add(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        return self(output, args[0] if args else next(iter(kwargs.values())))

    def forward(self, output: Tensor, ids: Tensor) -> Tensor:
        """output (..., d), ids (...) -> (..., d)."""
        low = F.embedding(ids, self.words)
        if self.gate is not None:
            low = low * self.gate.read().to(low.dtype)
        # Autocast leaves embeddings in fp32; a fused product would round them.
        update = F.linear(low, self.B).to(output.dtype)
        return torch.add(output, update, alpha=self.scale * self.factor)

    def weight_updates(self) -> list[WeightUpdate]:
        delta = self.scale * self.B @ self.words.T
        return [WeightUpdate(self.site, delta=delta, gate=self.gate)]

    def factors(self, key: str) -> tuple[Tensor, Tensor]:
        """A (r, vocabulary) and B (d, r), see :meth:`LoRAUp.factors`."""
        return self.words.detach().T, self.B.detach()

    @torch.no_grad()
    def set_factors(self, key: str, A: Tensor, B: Tensor) -> None:
        """Overwrite what :meth:`factors` gives.

        Raises:
            RuntimeError: another shape.
        """
        self.words.copy_(A.T)
        self.B.copy_(B)
