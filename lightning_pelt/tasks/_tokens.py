"""Shared by the generating tasks: loss and perplexity over tokens, generation, decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_pelt.anatomy.positions import position_limit

IGNORED = -100


class Perplexity(Metric):
    """``exp`` of the mean loss per token over all batches and ranks.

    It is updated with losses, not probabilities, so that an unlikely token adds a large finite
    number. A weighted ``MeanMetric`` would either drop NaN or ignore the weights.
    """

    higher_is_better = False
    full_state_update = False
    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, tokens: Tensor) -> None:
        """Add the mean ``loss`` of a batch over ``tokens`` tokens."""
        self.total += loss * tokens
        self.tokens += tokens

    def compute(self) -> Tensor:
        return (self.total / self.tokens).exp()


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in fp32 of (B, T, V) logits over the (B, T) labels that are not ignored.

    If all labels are ignored, the loss is 0 and the gradients are zeros instead of NaN.
    """
    total = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / count(labels).clamp(min=1)


def count(labels: Tensor) -> Tensor:
    """The number of labels that are not ignored, as a scalar tensor."""
    return (labels != IGNORED).sum()


def left_padded(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the padding of (B, T) ids to the left, and cut them to the longest row.

    Generation continues after the last column. A row without tokens starts from its last column.
    """
    order = mask.long().argsort(dim=1, stable=True)
    width = max(1, int(mask.long().sum(1).max()))
    ids, mask = ids.gather(1, order)[:, -width:], mask.gather(1, order)[:, -width:].clone()
    mask[:, -1] = 1
    return ids, mask


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    inputs: dict[str, Tensor],
    *,
    max_new_tokens: int,
    num_beams: int,
    **options: Any,
) -> Tensor:
    """Generate token ids, greedily or with beam search: deterministic.

    Generation ends at the last position of the model if that comes before ``max_new_tokens``.

    Raises:
        ValueError: the input leaves no position.
    """
    limit = position_limit(model)
    if limit is not None:
        given = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        if given >= limit:
            raise ValueError(
                f"the input has {given} tokens, and the model has {limit} positions: cut rows to "
                "fewer tokens (max_length), so that some can be generated"
            )
        max_new_tokens = min(max_new_tokens, limit - given)
    return model.generate(  # type: ignore[operator]
        **inputs,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
        **options,
        pad_token_id=require_tokenizer(tokenizer).pad_token_id,
    )


def stop_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, stop: Sequence[str] = ()
) -> list[int] | None:
    """The tokens at which generation ends; None if there are none.

    They are those of the model's generation configuration, the end of text of the tokenizer, and
    ``stop``.

    Raises:
        ValueError: a text of ``stop`` is not one token.
    """
    tokenizer = require_tokenizer(tokenizer)
    given = getattr(model.generation_config, "eos_token_id", None)
    own = given if isinstance(given, list) else [given]
    ids = [i for i in (*own, tokenizer.eos_token_id) if i is not None]
    for text in stop:
        found = tokenizer.encode(text, add_special_tokens=False)
        if len(found) != 1:
            raise ValueError(
                f"generation stops at one token, and the tokenizer splits {text!r} of stop into "
                f"{len(found)}: name a special token, or add it to the tokenizer"
            )
        ids += found
    return list(dict.fromkeys(ids)) or None


def decode(tokenizer: PreTrainedTokenizerBase | None, ids: Tensor) -> list[str]:
    """Decode (B, T) ids without special tokens, ignored labels and surrounding white space."""
    tokenizer = require_tokenizer(tokenizer)
    ids = torch.where(ids == IGNORED, tokenizer.pad_token_id, ids)
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def require_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """Check that there is a tokenizer with a padding token.

    Raises:
        ValueError: there is none.
    """
    if tokenizer is None:
        raise ValueError("generating text needs the tokenizer of the backbone: pass tokenizer=...")
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "the tokenizer has no padding token: set tokenizer.pad_token, such as to its "
            "end-of-text token"
        )
    return tokenizer


def check_generation(max_new_tokens: int, num_beams: int) -> None:
    """Check the options of generation.

    Raises:
        ValueError: a number is below 1.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("num_beams", num_beams)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
