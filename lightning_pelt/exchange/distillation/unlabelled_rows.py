"""Unlabelled rows: batches for a model without its labels, and which of their tokens are real."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

Batch = dict[str, Tensor]
LABELS = ("labels", "label", "start_positions", "end_positions")
HELD_OUT = 10  # one batch of ten is held out, and at most so many


def batches_for(model: PreTrainedModel, data: Iterable[Any], extra: Sequence[str]) -> list[Batch]:
    """The batches of ``data``, with the inputs of ``model`` alone.

    Labels are left out. An encoder-decoder without ``decoder_input_ids`` gets those that belong to
    its labels.

    Args:
        model: whose inputs are kept.
        data: batches, mappings of names to tensors.
        extra: names of further inputs, which a method reads.

    Raises:
        ValueError: a batch is not a mapping, or holds no input of the model.
    """
    parameters = inspect.signature(model.forward).parameters
    known = {*parameters, *extra} - set(LABELS)
    batches = []
    for batch in data:
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"a batch is a {type(batch).__name__}, expected a mapping of the model's inputs: "
                'give dictionaries such as tokenizer(texts, padding=True, return_tensors="pt")'
            )
        kept = {n: t for n, t in batch.items() if n in known and isinstance(t, Tensor)}
        if not kept:
            raise ValueError(
                f"a batch holds {', '.join(map(str, batch)) or 'nothing'}, and "
                f"{type(model).__name__} reads tensors named {', '.join(parameters)}"
            )
        batches.append(kept | _decoder_inputs(model, batch))
    return batches


def _decoder_inputs(model: PreTrainedModel, batch: Mapping[str, Any]) -> Batch:
    """``decoder_input_ids`` from the labels, where a model needs and can make them."""
    make = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    labels = batch.get("labels")
    decodes = bool(getattr(model.config, "is_encoder_decoder", False))
    if not decodes or make is None or "decoder_input_ids" in batch or not torch.is_tensor(labels):
        return {}
    inputs = make(labels=labels)
    mask = batch.get("decoder_attention_mask")
    if mask is None:  # the input of a position is the label before it
        mask = F.pad((labels != -100)[:, :-1], (1, 0), value=True).long()
    return {"decoder_input_ids": inputs, "decoder_attention_mask": mask}


def split(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Batches to train on, and held-out ones; a single batch is both."""
    if len(batches) < 2:
        return list(batches), list(batches)
    held = set(islice(range(1, len(batches), HELD_OUT), HELD_OUT))
    rest = [batch for number, batch in enumerate(batches) if number not in held]
    return rest, [batches[number] for number in sorted(held)]


def on(device: torch.device, batch: Batch) -> Batch:
    """The batch on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def joined(batches: Sequence[Batch], tokens: int, *, seed: int = 0) -> Batch:
    """Batches in random order, up to about ``tokens`` words, as one; shorter rows are padded.

    The order is random because batches are often sorted by length. Batches that do not fit
    together, such as those of other inputs, are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    first, *others = (batches[n] for n in torch.randperm(len(batches), generator=generator))
    chosen = [first]
    (count, longest) = _shape(first)
    for batch in others:
        rows, width = _shape(batch)
        if (count + rows) * max(longest, width) > tokens:
            break
        if batch.keys() == first.keys() and all(_fit(batch[n], first[n], first) for n in first):
            chosen.append(batch)
            count, longest = count + rows, max(longest, width)
    return {name: _stack([batch[name] for batch in chosen]) for name in first}


def _shape(batch: Batch) -> tuple[int, int]:
    """Rows of a batch and words of a row."""
    mask = batch.get("attention_mask", next(iter(batch.values())))
    return mask.shape[0], mask.shape[1] if mask.dim() == 2 else 1


def _fit(one: Tensor, other: Tensor, batch: Batch) -> bool:
    """Whether two tensors can be stacked by rows, after padding of (B, T)."""
    if one.dim() != other.dim():
        return False
    return one.shape[1:] == other.shape[1:] or (one.dim() == 2 and "attention_mask" in batch)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    if tensors[0].dim() != 2:
        return torch.cat(list(tensors))
    width = max(tensor.shape[1] for tensor in tensors)
    return torch.cat([F.pad(tensor, (0, width - tensor.shape[1])) for tensor in tensors])


def real(batch: Batch, values: Tensor, *, decoder: bool) -> Tensor | None:
    """Which of ``values`` (B, T, ...) belong to real tokens, (B, T); None for all of them.

    Args:
        batch: the inputs of the model.
        values: hidden states or logits.
        decoder: whether they are those of the decoder of an encoder-decoder.
    """
    mask = batch.get("decoder_attention_mask" if decoder else "attention_mask")
    if mask is None or mask.dim() != 2 or mask.shape != values.shape[:2] or values.dim() < 3:
        return None
    return mask.bool().to(values.device)
