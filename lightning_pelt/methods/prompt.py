"""Prompt tuning: learned embeddings in front of the input of an encoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import Anatomy, Site, Source, base_of
from lightning_pelt.methods.base import Method, Part, Place
from lightning_pelt.methods.gate import Gate, GateView, Padding
from lightning_pelt.methods.submodule import Removable, Submodule, refer
from lightning_pelt.utils.errors import unknown

Init = Literal["random", "vocabulary"]


@dataclass(frozen=True)
class Prompt(Method):
    r"""Prompt tuning, :math:`E' = [g P; E]` (Lester et al., 2021; https://arxiv.org/abs/2104.08691),
    in the form of the Compacter paper's baseline.

    ``length`` embeddings are prepended to those of the tokens, and as many ones to the mask. In an
    encoder-decoder, the decoder attends to them. In an encoder, they are removed after the last
    block, so that poolers and heads see the real tokens only. Learned position embeddings shift by
    ``length``. For decoder-only models, use :class:`lightning_pelt.Prefix`.

    Args:
        length: number of prompt tokens.
        init: ``random``, uniform in +-``init_range``; or ``vocabulary``, the first ``length`` rows
            of the model's embeddings.
        init_range: of the random initial values.
        gate: None for ungated. It reads the embeddings of the tokens.
        name: of its parameter group, gates and log lines.

    Raises:
        ValueError: a length below 1, or an unknown ``init``.

    Example:
        >>> from lightning_pelt import Plan, Prompt, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attach(tiny_bert(), Plan.uniform(Prompt(length=5))).counts["prompt"].trained
        160
    """

    length: int = 100
    init: Init = "random"
    init_range: float = 0.5
    gate: Gate | None = None
    name: str = "prompt"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"Prompt has length={self.length}: it must be at least 1")
        if self.init not in get_args(Init):
            raise unknown("init of a prompt", self.init, get_args(Init))

    def where(self, anatomy: Anatomy) -> list[Site]:
        stack = anatomy.stacks[0]
        if stack.causal:
            raise ValueError(
                f"{anatomy.model_type} is a decoder, and Prompt works on encoders: use Prefix, "
                "which acts in every block and changes neither positions nor cache"
            )
        whole = len(anatomy.stacks) == 1
        source = Source("" if whole else stack.path, "inputs_embeds", anatomy.width)
        return [Site("prompt", stack.name, None, stack.path, anatomy.width, anatomy.width, source)]

    def gate_width(self, site: Site) -> int:
        return site.d_in

    def size(self, site: Site) -> str:
        return f"l={self.length}"

    def sized(self, size: int) -> Prompt:
        return replace(self, length=size)

    def build(self, place: Place) -> list[Part]:
        (site,), (gate,) = place.sites, place.gates
        return [Part("", self.name, PromptTokens(self, site, gate))]


class PromptTokens(Submodule):
    """The prompt (length, width), prepended to an encoder's embeddings by hooks."""

    transient = ("before",)
    embeddings: nn.Embedding

    def __init__(self, method: Prompt, site: Site, gate: GateView | None) -> None:
        super().__init__()
        self.method, self.site, self.gate = method, site, gate
        self.P = nn.Parameter(torch.empty(method.length, site.d_in))
        nn.init.uniform_(self.P, -method.init_range, method.init_range)
        self.before = 0  # number of prompt tokens in the current forward

    def install(self, model: nn.Module) -> list[Removable]:
        assert isinstance(model, PreTrainedModel)
        runner = model.get_submodule(self.site.path)
        whole = self.site.source.path == ""
        encoder: Any = base_of(model) if whole else runner
        table = encoder.get_input_embeddings()
        if not isinstance(table, nn.Embedding) or table.embedding_dim != self.site.d_in:
            raise ValueError(
                f"{model.config.model_type} has no token embeddings of the width of its blocks, so "
                "no prompt can be prepended to them: use Prefix"
            )
        refer(self, embeddings=table)
        if self.method.init == "vocabulary":
            self._copy(table)
        if self.gate is not None:
            self.gate.layer.padding = _Mask()
        handles: list[Removable] = [encoder.register_forward_pre_hook(self._add, with_kwargs=True)]
        if whole:
            return [*handles, runner.register_forward_hook(self._take_off)]
        decoder = model.get_decoder()
        return [*handles, decoder.register_forward_pre_hook(self._see, with_kwargs=True)]

    def _copy(self, table: nn.Embedding) -> None:
        if len(table.weight) < len(self.P):
            raise ValueError(
                f"Prompt(length={len(self.P)}, init='vocabulary') is longer than the vocabulary of "
                f"{len(table.weight)}: make it shorter, or init='random'"
            )
        with torch.no_grad():
            self.P.copy_(table.weight[: len(self.P)])

    def _add(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        kwargs = dict(kwargs)
        ids = args[0] if args else kwargs.pop("input_ids", None)
        embeds = kwargs.get("inputs_embeds")
        embeds = self.embeddings(ids) if embeds is None else embeds
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        kwargs["inputs_embeds"], self.before = self(embeds, mask)
        if self.before and mask is not None:
            mask = torch.cat([mask.new_ones(len(mask), self.before), mask], 1)
        if mask is not None:
            kwargs["attention_mask"] = mask
        for name, fill in (("token_type_ids", 0), ("position_ids", None)):
            given = kwargs.get(name)
            if self.before and given is not None:
                kwargs[name] = self._extended(given, fill)
        return (), kwargs

    def _extended(self, given: Tensor, fill: int | None) -> Tensor:
        """``token_type_ids`` after zeros; ``position_ids`` shifted, after those of the prompt."""
        rows = (*given.shape[:-1], self.before)
        if fill is not None:
            return torch.cat([given.new_full(rows, fill), given], -1)
        front = torch.arange(self.before, device=given.device).expand(rows)
        return torch.cat([front, given + self.before], -1)

    def forward(self, embeds: Tensor, mask: Tensor | None) -> tuple[Tensor, int]:
        """embeds (B, T, d), mask (B, T) -> (B, length + T, d) and length; (B, T, d) if closed."""
        prompt = self.P.expand(len(embeds), -1, -1)
        if self.gate is not None:
            self.gate.layer.padding.mask = mask  # type: ignore[union-attr]
            prompt = prompt * self.gate.on(embeds)
            if self.gate.open == 0:  # in the graph, since DDP waits for every gradient
                return embeds + (0.0 * prompt.sum()).to(embeds.dtype), 0
        return torch.cat([prompt.to(embeds.dtype), embeds], 1), self.P.shape[0]

    def _take_off(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if not self.before:
            return output
        if isinstance(output, Tensor):
            return output[:, self.before :]
        if isinstance(output, tuple):
            return (output[0][:, self.before :], *output[1:])
        output.last_hidden_state = output.last_hidden_state[:, self.before :]
        return output

    def _see(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Extend the decoder's mask over the encoder by the prompt."""
        mask, states = kwargs.get("encoder_attention_mask"), kwargs.get("encoder_hidden_states")
        if mask is None or states is None or mask.shape[1] == states.shape[1]:
            return args, kwargs
        front = mask.new_ones(len(mask), states.shape[1] - mask.shape[1])
        return args, {**kwargs, "encoder_attention_mask": torch.cat([front, mask], 1)}


class _Mask(Padding):
    """The padding mask of the token embeddings, which no attention module has received yet."""

    def __init__(self) -> None:
        self.mask, self.batch = None, 1
