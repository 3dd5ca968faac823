"""Prompt tuning: learned embeddings in front of the input of an encoder."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import Anatomy, MaskArgument, Site, Source, base_of
from lightning_pelt.anatomy.positions import position_limit
from lightning_pelt.methods._longer import extended, extended_mask, more_columns, without
from lightning_pelt.methods.base import Method, Part, Place
from lightning_pelt.methods.current import Current
from lightning_pelt.methods.gate import Gate, GateView
from lightning_pelt.methods.padding import Given, Padding
from lightning_pelt.methods.submodule import Removable, Submodule, refer
from lightning_pelt.utils.errors import unknown
from lightning_pelt.utils.text_config import text_config

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
        init: ``random``, uniform in +-``init_range``; or ``vocabulary``, the embeddings of the
            first ``length`` words.
        init_range: of the random initial values.
        gate: None for ungated. It reads the embeddings of the tokens and pools over them.
        name: of its parameter group, gates and log lines.

    Raises:
        ValueError: a length below 1, an unknown ``init``, or a gate per token.

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
        if self.gate is not None and self.gate.pool == "token":
            raise ValueError(
                "Prompt(gate=Gate(pool='token')) has one gate per token, and the prompt belongs to "
                "all tokens of a row: use pool='masked', or 'all' to count padding too"
            )

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
    """The prompt (length, width), in front of an encoder's embeddings.

    The encoder gets ``length`` more words, and their embeddings are replaced by the prompt. What it
    does with embeddings, such as Marian's scaling of them, it does with the prompt too.
    """

    embeddings: nn.Embedding

    def __init__(self, method: Prompt, site: Site, gate: GateView | None) -> None:
        super().__init__()
        self.method, self.site, self.gate = method, site, gate
        self.P = nn.Parameter(torch.empty(method.length, site.d_in))
        nn.init.uniform_(self.P, -method.init_range, method.init_range)
        self.mask = Padding(MaskArgument("", "attention_mask", 1))
        self.added: Current[tuple[int, int]] = Current("the number of prompt tokens, and of all")
        self.placeholders: Current[int] = Current("the number of words to be replaced")

    def install(self, model: nn.Module) -> list[Removable]:
        assert isinstance(model, PreTrainedModel)
        self.limit, self.family = position_limit(model), model.config.model_type
        runner = model.get_submodule(self.site.path)
        whole = self.site.source.path == ""
        encoder: Any = base_of(model) if whole else runner
        refer(self, embeddings=self._table_of(encoder))
        self.arguments = tuple(inspect.signature(encoder.forward).parameters)
        # No padding: RoBERTa counts positions without it, and MPNet takes 1 for it in any case.
        self.word = 3 if text_config(model.config).pad_token_id == 2 else 2
        if self.method.init == "vocabulary":
            self._copy()
        self._refuse_beyond(1)
        if self.gate is not None:
            layer = self.gate.layer
            # Also where no attention's mask is known: the mask is an argument of the encoder.
            layer.padding, layer.pool = self.mask, "all" if layer.pool == "all" else "masked"
        handles: list[Removable] = [
            encoder.register_forward_pre_hook(self._add, with_kwargs=True),
            self.embeddings.register_forward_hook(self._replace),
        ]
        if whole:
            outputs = dict.fromkeys((runner, encoder))
            return [*handles, *(m.register_forward_hook(self._take_off) for m in outputs)]
        decoder = model.get_decoder()
        return [*handles, decoder.register_forward_pre_hook(self._see, with_kwargs=True)]

    def _table_of(self, encoder: Any) -> nn.Embedding:
        """The embeddings of its words.

        Raises:
            ValueError: it has none of the prompt's width.
        """
        try:
            table = encoder.get_input_embeddings()
        except (AttributeError, NotImplementedError):  # CLIP's towers, models of sound
            table = None
        if not isinstance(table, nn.Embedding) or table.embedding_dim != self.site.d_in:
            raise ValueError(
                f"{self.family} has no token embeddings of the width of its blocks, so no prompt "
                "can be prepended to them: use Prefix"
            )
        return table

    def _copy(self) -> None:
        words = self.embeddings.num_embeddings
        if words < len(self.P):
            raise ValueError(
                f"Prompt(length={len(self.P)}, init='vocabulary') is longer than the vocabulary of "
                f"{words}: make it shorter, or init='random'"
            )
        with torch.no_grad():
            first = torch.arange(len(self.P), device=self.embeddings.weight.device)
            self.P.copy_(self.embeddings(first))  # mBART's are larger than the table's rows

    def _add(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        kwargs = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        embeds, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        given = kwargs["input_ids"] if embeds is None else embeds
        (rows, tokens), before = given.shape[:2], self._before
        self.mask.given.set(Given(mask, rows))
        self.added.set((before, before + tokens))
        if embeds is None:
            kwargs["input_ids"] = extended(given, before, self.word)
            self.placeholders.set(before)
        else:
            kwargs["inputs_embeds"] = self(embeds)
        if before:
            self._refuse_beyond(tokens)
        if before and mask is not None:
            kwargs["attention_mask"] = extended_mask(mask, before)
        for name, fill in (("token_type_ids", 0), ("position_ids", None)):
            if before and kwargs.get(name) is not None:
                kwargs[name] = extended(kwargs[name], before, fill)
        return (), kwargs

    @property
    def _before(self) -> int:
        """Number of tokens in front: none if the gate is closed."""
        return 0 if self.gate is not None and self.gate.open == 0 else len(self.P)

    def _replace(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        """Replace the embeddings of the words in front, once per forward of the encoder."""
        before = self.placeholders.peek()
        self.placeholders.clear()
        return None if before is None else self(output[:, before:])

    def forward(self, embeds: Tensor) -> Tensor:
        """embeds (B, T, d) -> (B, length + T, d); (B, T, d) if closed."""
        prompt = self.P.expand(embeds.shape[0], -1, -1)
        if self.gate is not None:
            prompt = prompt * self.gate.on(embeds)
            if not self._before:  # in the graph, since DDP waits for every gradient
                return embeds + (0.0 * prompt.sum()).to(embeds.dtype)
        return torch.cat([prompt.to(embeds.dtype), embeds], 1)

    def _take_off(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Take the prompt off the outputs of a module, of every block where it returns them."""
        before, total = self.added.get()
        return without(output, before, total) if before else output

    def _see(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Extend the decoder's mask over the encoder by the prompt."""
        mask, states = kwargs.get("encoder_attention_mask"), kwargs.get("encoder_hidden_states")
        if mask is None or states is None or mask.shape[-1] == states.shape[1]:
            return args, kwargs
        before = states.shape[1] - mask.shape[-1]
        return args, {**kwargs, "encoder_attention_mask": more_columns(mask, before)}

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
