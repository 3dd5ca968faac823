"""The cache key of tokenized rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from lightning_pelt.data._table_io import FORMAT

# Arguments that do not change the tokens of a row. Those that select rows change the fingerprint of
# the raw rows, which is part of the key.
NOT_IN_KEY = {
    "backbone",
    "batch_size",
    "eval_batch_size",
    "pad",
    "bucketed",
    "num_workers",
    "seed",
    "limit_train",
    "limit_eval",
    "holdout",
}


def cache_key(
    raw: Dataset, kind: tuple[object, ...], arguments: Mapping[str, Any], vocabulary: str
) -> str:
    """The fingerprint of the tokenized rows.

    Args:
        raw: the rows before tokenization.
        kind: the class of the data module, and whether the rows are predicted.
        arguments: of the data module.
        vocabulary: see :func:`vocabulary_digest`.
    """
    used = {k: v for k, v in arguments.items() if k not in NOT_IN_KEY and not k.startswith("_")}
    return Hasher.hash((raw._fingerprint, (FORMAT, *kind), used, vocabulary))


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what determines tokens, without state of the tokenizer that changes with use.

    A digest, so that the words of a large vocabulary are hashed once and not for every split.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        parts: Any = [type(tokenizer).__name__, tokenizer.get_vocab()]
    else:
        found = json.loads(backend.to_str())
        parts = {k: v for k, v in found.items() if k not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
