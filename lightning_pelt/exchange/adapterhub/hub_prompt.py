"""The prompt of AdapterHub, which differs from :class:`lightning_pelt.Prompt`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import OUTPUT, Anatomy, Site, Source, base_of
from lightning_pelt.methods._longer import extended_mask
from lightning_pelt.methods.base import Method, Part, Place
from lightning_pelt.methods.gate import Gate
from lightning_pelt.methods.submodule import Removable, Submodule


@dataclass(frozen=True)
class HubPrompt(Method):
    """Prompt tuning as in AdapterHub: behind the embeddings, and in the outputs.

    ``length`` vectors are put in front of the output of the embeddings, so that they get neither
    positions nor the norm of the embeddings, and positions of words do not shift. They stay in the
    outputs: (B, T, d) becomes (B, length + T, d), and a pooler that reads the first token reads the
    prompt. Adapters of AdapterHub were trained so. For a new one, use
    :class:`lightning_pelt.Prompt`.

    Args:
        length: number of prompt tokens.
        behind_first: put them behind the first token.
        embeddings: path of the embeddings in the base.
        init_range: of the random initial values, uniform in +-``init_range``.
        gate: must be None.
        name: of its parameter group and log lines.

    Raises:
        ValueError: a length below 1, or a gate.

    Example:
        >>> from lightning_pelt import Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attach(tiny_bert(), Plan.uniform(HubPrompt(length=5))).counts["hub_prompt"].trained
        160
    """

    length: int = 10
    behind_first: bool = False
    embeddings: str = "embeddings"
    init_range: float = 0.5
    gate: Gate | None = None
    name: str = "hub_prompt"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"HubPrompt has length={self.length}: it must be at least 1")
        if self.gate is not None:
            raise ValueError("HubPrompt has no gate: AdapterHub's prompts have none")

    def where(self, anatomy: Anatomy) -> list[Site]:
        stack = anatomy.stacks[0]
        if stack.causal or len(anatomy.stacks) > 1:
            raise ValueError(
                f"{anatomy.model_type} has a decoder, and HubPrompt works on encoders alone: use "
                "Prefix"
            )
        source = Source(stack.path, OUTPUT, anatomy.width)
        return [Site("prompt", stack.name, None, stack.path, anatomy.width, anatomy.width, source)]

    def size(self, site: Site) -> str:
        return f"l={self.length}"

    def sized(self, size: int) -> HubPrompt:
        return replace(self, length=size)

    def build(self, place: Place) -> list[Part]:
        (site,) = place.sites
        return [Part("", self.name, HubPromptTokens(self, site))]


class HubPromptTokens(Submodule):
    """The prompt (length, width), in front of the output of the embeddings."""

    def __init__(self, method: HubPrompt, site: Site) -> None:
        super().__init__()
        self.method = method
        self.P = nn.Parameter(torch.empty(method.length, site.d_in))
        nn.init.uniform_(self.P, -method.init_range, method.init_range)

    def install(self, model: nn.Module) -> list[Removable]:
        assert isinstance(model, PreTrainedModel)
        base = base_of(model)
        embeddings = dict(base.named_modules()).get(self.method.embeddings)
        if embeddings is None:
            raise ValueError(
                f"{type(base).__name__} has no module {self.method.embeddings!r}, behind which "
                "HubPrompt puts the prompt"
            )
        self.arguments = tuple(inspect.signature(base.forward).parameters)
        return [
            base.register_forward_pre_hook(self._extend, with_kwargs=True),
            embeddings.register_forward_hook(self._join),
        ]

    def _extend(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        kwargs = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = extended_mask(kwargs["attention_mask"], len(self.P))
        return (), kwargs

    def _join(self, module: nn.Module, args: tuple, output: Any) -> Any:
        return self(output)

    def forward(self, embedded: Tensor) -> Tensor:
        """(B, T, d) -> (B, length + T, d)."""
        prompt = self.P.to(embedded.dtype).expand(len(embedded), -1, -1)
        first = int(self.method.behind_first)
        return torch.cat([embedded[:, :first], prompt, embedded[:, first:]], 1)
