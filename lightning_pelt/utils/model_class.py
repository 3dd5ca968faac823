"""The transformers class of a model, by name: what a file of adapters says of its model."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedModel

SHARDED = "FSDPModule"  # FSDP2 replaces the class of a module by a child of it and of this one


def class_name(model: PreTrainedModel) -> str:
    """The name of the model's class; with its module, if it is not one of transformers.

    Example:
        >>> from lightning_pelt.testing import tiny_bert
        >>> class_name(tiny_bert())
        'BertForSequenceClassification'
    """
    for cls in type(model).__mro__:
        if not any(base.__name__ == SHARDED for base in cls.__mro__):
            break
    known = getattr(transformers, cls.__name__, None) is cls
    return cls.__name__ if known else f"{cls.__module__}.{cls.__qualname__}"


def find_class(name: str) -> Any:
    """The model class of transformers with this name, an ``Auto`` class included; None if unknown.

    Example:
        >>> [find_class(name) is None for name in ("BertModel", "AutoModel", "pipeline")]
        [False, False, True]
    """
    found = getattr(transformers, name, None) if name.isidentifier() else None
    if not isinstance(found, type):
        return None
    is_auto = name.startswith("AutoModel") and hasattr(found, "from_pretrained")
    return found if is_auto or issubclass(found, PreTrainedModel) else None
