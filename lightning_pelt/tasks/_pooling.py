"""Embeddings of texts: a model without a head, and one vector from the vectors of the tokens."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    PreTrainedModel,
)
from transformers.utils import cached_file

from lightning_pelt.utils.backbone import resolve_backbone
from lightning_pelt.utils.json_data import parse_json

Pooling = Literal["mean", "cls", "last"]
FILE = "1_Pooling/config.json"
SAVED = "sentence_pooling"  # entry of a model's configuration
# Names in sentence-transformers' files, of version 6 and of those before.
MODES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


class AutoSentenceModel:
    """Loads a model without a head: of an encoder-decoder, the encoder."""

    @staticmethod
    def from_pretrained(name: str, **options: Any) -> Any:
        """A model, and its loading info if ``output_loading_info`` asks for it.

        A pooler that the file lacks is left out: it would be trained as new, and nothing reads it.
        """
        config = AutoConfig.from_pretrained(name)
        auto: Any = AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
        options["output_loading_info"] = True
        model, report = auto.from_pretrained(name, **options)
        lacks_pooler = any(key.startswith("pooler.") for key in report["missing_keys"])
        if lacks_pooler and "add_pooling_layer" in inspect.signature(type(model)).parameters:
            return auto.from_pretrained(name, add_pooling_layer=False, **options)
        return model, report


def pooling_of(model: PreTrainedModel) -> Pooling:
    """How the texts of a model are pooled, which its configuration remembers.

    Raises:
        ValueError: as :func:`saved_pooling`.
    """
    found: Pooling | None = getattr(model.config, SAVED, None)
    if found is None:
        name = model.config.name_or_path
        found = (saved_pooling(name) if name else None) or "mean"
        setattr(model.config, SAVED, found)
    return found


def saved_pooling(backbone: str) -> Pooling | None:
    """How sentence-transformers pools with this backbone; None if it has no file that says it.

    Raises:
        ValueError: it pools in a way that is not known here.
    """
    folder = resolve_backbone(backbone)
    if Path(folder).is_dir():
        path = Path(folder) / FILE
        file = str(path) if path.is_file() else None
    else:
        file = cached_file(
            folder,
            FILE,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    if file is None:
        return None
    content = parse_json(Path(file).read_bytes(), file)
    modes = [name for flag, name in FLAGS.items() if content.get(flag)]
    given = content.get("pooling_mode", modes)
    modes = [given] if isinstance(given, str) else list(given)
    if len(modes) != 1 or modes[0] not in MODES:
        raise ValueError(
            f"{backbone!r} pools by {' and '.join(modes) or 'nothing'} ({FILE}), expected one of "
            f"{', '.join(MODES)}: set pooling of Contrastive to mean, cls or last"
        )
    return MODES[modes[0]]


def embed(model: PreTrainedModel, inputs: dict[str, Tensor], pooling: Pooling) -> Tensor:
    """One vector per text in fp32, (N, d), from the last hidden states of its real tokens.

    Args:
        model: without a head.
        inputs: of the model, with ``input_ids`` (N, T), padded on either side.
        pooling: the ``mean`` over the tokens, the first (``cls``), or the ``last``.
    """
    states = model(**inputs).last_hidden_state.float()
    mask = inputs.get("attention_mask")
    real = states.new_ones(states.shape[:2]) if mask is None else mask.float()
    if pooling == "mean":
        return (states * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
    place = real.argmax(1) if pooling == "cls" else real.shape[1] - 1 - real.flip(1).argmax(1)
    return states.take_along_dim(place[:, None, None], 1)[:, 0]


def normalised(embeddings: Tensor, normalise: bool) -> Tensor:
    """``embeddings`` (N, d), of length 1 if ``normalise``."""
    return F.normalize(embeddings, dim=-1) if normalise else embeddings
