"""Prompt tuning: learned embeddings in front of the input of an encoder."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from lightning_pelt.anatomy import Anatomy, MaskArgument, Site, Source, base_of
from lightning_pelt.anatomy.positions import position_limit
from lightning_pelt.methods.base import Method, Part, Place
from lightning_pelt.methods.current import Current
from lightning_pelt.methods.gate import Gate, GateView
from lightning_pelt.methods.padding import Given, Padding
from lightning_pelt.methods.submodule import Removable, Submodule, refer
from lightning_pelt.utils.errors import unknown

Init = Literal["random", "vocabulary"]


@dataclass(frozen=True)
class Prompt(Method):
    r"""Prompt tuning, :math:`E' = [g P; E]` (Lester et al., 2021; https://arxiv.org/abs/2104.08691),
    in the form of the Compacter paper's baseline.

    ``length`` embeddings are prepended to those of the tokens, and as many ones to the mask. In an
    encoder-decoder, the decoder attends to them, and the encoder's outputs contain them. In an
    encoder, they are removed from all outputs (``hidden_states`` and ``attentions`` too), so that
    poolers and heads see the real tokens only. Learned position embeddings shift by ``length``. For
    decoder-only models, use :class:`lightning_pelt.Prefix`.

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

    @property
    def positions(self) -> int:  # type: ignore[override]
        """Number of positions that it takes from the tokens."""
        return self.length

    def size(self, site: Site) -> str:
        return f"l={self.length}"

    def sized(self, size: int) -> Prompt:
        return replace(self, length=size)

    def build(self, place: Place) -> list[Part]:
        (site,), (gate,) = place.sites, place.gates
        return [Part("", self.name, PromptTokens(self, site, gate))]


class PromptTokens(Submodule):
    """The prompt (length, width), prepended to an encoder's embeddings by hooks."""

    embeddings: nn.Embedding

    def __init__(self, method: Prompt, site: Site, gate: GateView | None) -> None:
        super().__init__()
        self.method, self.site, self.gate = method, site, gate
        self.P = nn.Parameter(torch.empty(method.length, site.d_in))
        nn.init.uniform_(self.P, -method.init_range, method.init_range)
        self.mask = Padding(MaskArgument("", "attention_mask", 1))
        self.added: Current[tuple[int, int]] = Current("the number of prompt tokens, and of all")

    def install(self, model: nn.Module) -> list[Removable]:
        assert isinstance(model, PreTrainedModel)
        self.limit, self.family = position_limit(model), model.config.model_type
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
        self.arguments = tuple(inspect.signature(encoder.forward).parameters)
        if self.method.init == "vocabulary":
            self._copy(table)
        self._refuse_beyond(1)
        if self.gate is not None:
            self.gate.layer.padding = self.mask
        handles: list[Removable] = [encoder.register_forward_pre_hook(self._add, with_kwargs=True)]
        if whole:
            outputs = dict.fromkeys((runner, encoder))
            return [*handles, *(m.register_forward_hook(self._take_off) for m in outputs)]
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
        kwargs = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        ids, embeds = kwargs.pop("input_ids", None), kwargs.get("inputs_embeds")
        embeds = self.embeddings(ids) if embeds is None else embeds
        mask = kwargs.get("attention_mask")
        kwargs["inputs_embeds"], before = self(embeds, mask)
        self.added.set((before, before + embeds.shape[1]))
        if before:
            self._refuse_beyond(embeds.shape[1])
        if before and mask is not None:
            kwargs["attention_mask"] = _extended_mask(mask, before)
        for name, fill in (("token_type_ids", 0), ("position_ids", None)):
            given = kwargs.get(name)
            if before and given is not None:
                kwargs[name] = _extended(given, before, fill)
        return (), kwargs

    def forward(self, embeds: Tensor, mask: Tensor | None) -> tuple[Tensor, int]:
        """embeds (B, T, d), mask (B, T) -> (B, length + T, d) and length; (B, T, d) if closed."""
        prompt = self.P.expand(len(embeds), -1, -1)
        if self.gate is not None:
            self.mask.given.set(Given(mask, len(embeds)))
            prompt = prompt * self.gate.on(embeds)
            if self.gate.open == 0:  # in the graph, since DDP waits for every gradient
                return embeds + (0.0 * prompt.sum()).to(embeds.dtype), 0
        return torch.cat([prompt.to(embeds.dtype), embeds], 1), self.P.shape[0]

    def _take_off(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Take the prompt off the outputs of a module, of every block where it returns them."""
        before, total = self.added.get()
        return _without(output, before, total) if before else output

    def _see(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Extend the decoder's mask over the encoder by the prompt."""
        mask, states = kwargs.get("encoder_attention_mask"), kwargs.get("encoder_hidden_states")
        if mask is None or states is None or mask.shape[-1] == states.shape[1]:
            return args, kwargs
        before = states.shape[1] - mask.shape[-1]
        return args, {**kwargs, "encoder_attention_mask": _more_columns(mask, before)}

    def _refuse_beyond(self, tokens: int) -> None:
        """Raise if the prompt and ``tokens`` have no positions."""
        length = self.method.length
        if self.limit is not None and length + tokens > self.limit:
            fits = self.limit - length
            remedy = f"max_length={fits}, or a shorter prompt" if fits > 0 else "a shorter prompt"
            raise ValueError(
                f"Prompt(length={length}) and {tokens} token{'s' * (tokens > 1)} need "
                f"{length + tokens} positions, and {self.family} has {self.limit}: use {remedy}"
            )


def _more_columns(mask: Tensor, count: int) -> Tensor:
    """``mask`` (..., K) with ``count`` keys in front that every query sees, (..., count + K)."""
    return F.pad(mask, (count, 0), value=0.0 if _is_added(mask) else 1)


def _extended_mask(mask: Tensor, before: int) -> Tensor:
    """A mask (B, T) or (B, ..., T or 1, T) for the prompt too. It sees what any token sees."""
    mask = _more_columns(mask, before)
    if mask.dim() == 2 or mask.shape[-2] == 1:
        return mask
    front = mask.amax(-2, keepdim=True).expand(*mask.shape[:-2], before, -1)
    return torch.cat([front, mask], -2)


def _is_added(mask: Tensor) -> bool:
    """Whether a mask is added to the scores; one with a column per token is not."""
    return mask.is_floating_point() and mask.dim() > 2


def _without(output: Any, before: int, total: int) -> Any:
    """Hidden states (B, total, d) and attentions (B, heads, total, total) without the prompt."""
    if isinstance(output, Tensor):
        if output.dim() == 3 and output.shape[1] == total:
            return output[:, before:]
        square = output.dim() == 4 and output.shape[2] == output.shape[3] == total
        return output[..., before:, before:] if square else output
    if isinstance(output, ModelOutput):
        for name, value in output.items():
            setattr(output, name, _without(value, before, total))
        return output
    if isinstance(output, tuple):
        return tuple(_without(value, before, total) for value in output)
    return output


def _extended(given: Tensor, before: int, fill: int | None) -> Tensor:
    """``token_type_ids`` after zeros; ``position_ids`` shifted, after those of the prompt."""
    rows = (*given.shape[:-1], before)
    if fill is not None:
        return torch.cat([given.new_full(rows, fill), given], -1)
    front = torch.arange(before, device=given.device).expand(rows)
    return torch.cat([front, given + before], -1)
