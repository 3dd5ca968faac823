"""Whether a model keeps the examples of a packed row apart, tried on a few tokens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.anatomy.dummy_inputs import undisturbed
from lightning_pelt.anatomy.dummy_inputs.part import Part
from lightning_pelt.anatomy.dummy_inputs.text import tokens
from lightning_pelt.utils.model_class import class_name

SIZES = ((3, 5), (4, 2))  # of the examples in two rows; the rest of a row is padding
WIDTH = 8
FLASH = "flash"  # in the name of an attention implementation
REMEDY = (
    "Train without packing, on batches of rows of similar length; or use a decoder that follows "
    "position_ids, such as Llama, Mistral, Qwen, Gemma, GPT-NeoX or GPT-2"
)


def packing_fault(
    model: PreTrainedModel,
    *,
    rows: int = 1,
    context: Callable[[int], AbstractContextManager[object]] = nullcontext,
) -> str | None:
    """Why ``model`` cannot run on packed rows; None if it can.

    The model runs without gradients on packed rows, on their examples one by one, and on the rows
    as if each were one example. In the first case its outputs should be those of the second. The
    third shows how much they change where examples attend to each other.

    Args:
        model: a decoder.
        rows: of the batches in training. Flash attention finds the examples of a single row only.
        context: of a forward with that many rows, for methods that read more than tokens.

    Example:
        >>> from lightning_pelt.testing import tiny_bert, tiny_llama
        >>> packing_fault(tiny_llama())
        >>> packing_fault(tiny_bert())[:38]
        'BertForSequenceClassification does not'
    """
    name = class_name(model)
    if getattr(model.config, "is_encoder_decoder", False):
        return f"{name} has an encoder, and only the rows of decoders can be packed. {REMEDY}"
    flash = FLASH in (getattr(model.config, "_attn_implementation", None) or "")
    if flash and rows > 1:
        return (
            f"{name} uses flash attention, which finds the examples of a batch of one row, and the "
            f"batches have {rows}: set batch_size=1 with longer rows, or attn_implementation='sdpa'"
        )
    if model.device.type == "meta":
        return None
    device = model.device.type
    with (
        torch.no_grad(),
        torch.autocast(device, enabled=False),
        torch.compiler.set_stance("force_eager"),
        undisturbed(model, portable=False),
    ):
        try:
            return _fault(model, name, _Trial(model, 1 if flash else len(SIZES), context))
        except torch.OutOfMemoryError:
            raise
        except ValueError as error:  # of a method, with its remedy
            return f"{name} does not run on packed rows: {error}"
        except Exception as error:
            kind = type(error).__name__
            return f"{name} does not run on packed rows ({kind}: {str(error)[:200]}). {REMEDY}"


class _Trial:
    """Packed rows of a few tokens, and a model that runs on them."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: int,
        context: Callable[[int], AbstractContextManager[object]],
    ) -> None:
        self.model, self.context = model, context
        row = tokens(Part(model), WIDTH)[0]
        self.ids = torch.stack([row.roll(number) for number in range(rows)])
        self.sizes = SIZES[:rows]

    def outputs(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """(B, T, d): logits, or hidden states of a model without any."""
        given = {"input_ids": ids.to(self.model.device)}
        if positions is not None:
            given["position_ids"] = positions.to(self.model.device)
        with self.context(len(ids)):
            result = self.model(**given, use_cache=False)
        first = result["logits"] if "logits" in result else result[0]
        if first.dim() != 3 or first.shape[1] != ids.shape[1]:
            raise TypeError(f"its outputs of shape {tuple(first.shape)} are not one for each token")
        return first.float()

    def packed(self, *, restart: bool) -> Tensor:
        """The outputs of all examples, (tokens, d)."""
        positions = [
            torch.cat([*map(torch.arange, sizes), torch.zeros(WIDTH - sum(sizes)).long()])
            if restart
            else torch.arange(WIDTH)
            for sizes in self.sizes
        ]
        outputs = self.outputs(self.ids, torch.stack(positions))
        return torch.cat(
            [row[: sum(sizes)] for row, sizes in zip(outputs, self.sizes, strict=True)]
        )

    def one_by_one(self) -> Tensor:
        """The outputs of all examples, (tokens, d), each without the others."""
        return torch.cat(
            [
                self.outputs(ids[None])[0]
                for row, sizes in zip(self.ids, self.sizes, strict=True)
                for ids in row[: sum(sizes)].split(sizes)
            ]
        )


def _fault(model: PreTrainedModel, name: str, trial: _Trial) -> str | None:
    alone, packed = trial.one_by_one(), trial.packed(restart=True)
    mixed = float((trial.packed(restart=False) - alone).abs().max())
    change = float((packed - alone).abs().max())
    exact = all(map(_is_exact, model.parameters()))
    # Rounding is about a hundredth of the outputs in half precision, or where activations are
    # quantized with those of other rows, and less than a millionth otherwise.
    allowed = 0.1 * mixed if not exact else min(0.1 * mixed, 1e-3 * float(alone.abs().max()))
    if change <= allowed:
        return None
    return (
        f"{name} does not keep the examples of a packed row apart: its attention, its positions or "
        "its recurrence ignore position_ids, and its outputs on an example change by "
        f"{change:.2g} with the examples before it. {REMEDY}"
    )


def _is_exact(weight: Tensor) -> bool:
    """Whether products with ``weight`` do not depend on other rows: in full precision, as it is."""
    return type(weight.data) is Tensor and weight.dtype in (torch.float32, torch.float64)
