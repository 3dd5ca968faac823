"""The fingerprint of a base: what it computes, and samples of its weights."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedConfig

from lightning_pelt.utils.backbone import public_name
from lightning_pelt.utils.hub_commit import commit_of
from lightning_pelt.utils.quantised import kinds_of
from lightning_pelt.utils.text_config import text_config

TENSORS = 64  # sampled tensors at most
VALUES = 4  # sampled values of each tensor
TOKENS = "vocab_size"  # in configurations
FLOATS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
KINDS: dict[str, tuple[type, ...]] = {
    "name": (str, type(None)),
    "revision": (str, type(None)),
    "tokenizer": (str, type(None)),
    "labels": (list, type(None)),
    "config": (dict,),
    "weights": (dict,),
    "vocabulary": (dict,),
    "token_parameters": (int,),
    "quantised": (str, type(None)),
}

# Entries of a configuration that do not change what a trained model computes.
IRRELEVANT = {
    *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "model_type"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "name_or_path"),
    *("use_cache", "return_dict", "torchscript", "gradient_checkpointing", "tokenizer_class"),
    *("chunk_size_feed_forward", "task_specific_params", "quantization_config"),
}
IRRELEVANT_PARTS = ("drop", "initializer", "_token_id", "output_")


def fingerprint(config: PreTrainedConfig, base: Mapping[str, Tensor]) -> dict[str, Any]:
    """What distinguishes a base from others of the same architecture, as plain data.

    It does not depend on the device. It is taken before data parallelism wraps or shards the model.
    Quantised tensors are left out.

    Args:
        config: of the model.
        base: the tensors that stay frozen, by name.

    Returns:
        ``name`` and ``revision`` of what was loaded, or None; ``config``, the entries of the
        configuration that change what the model computes; ``weights``, the dtype and four values of
        at most 64 tensors, by name; ``vocabulary``, for tensors with a row per token, the number of
        rows and the dtype and values of a few of the first ones; ``token_parameters``, how many
        parameters a token has in them; and ``quantised``, how tensors are quantised, or None.
    """
    vocabulary = _vocabulary(config, base)
    rows = {id(base[n]): base[n][0].numel() for n in vocabulary if isinstance(base[n], Parameter)}
    return {
        "name": public_name(config.name_or_path) if config.name_or_path else None,
        "revision": commit_of(config),
        "config": _computation(config.to_dict()),
        "weights": _samples(base),
        "vocabulary": vocabulary,
        "token_parameters": sum(rows.values()),
        "quantised": ", ".join(kinds_of(base.values())) or None,
    }


def follow(
    recorded: dict[str, Any],
    config: PreTrainedConfig,
    tensors: Mapping[str, Tensor],
    parameters: int,
) -> dict[str, Any]:
    """A recorded fingerprint, if the vocabulary has been resized since: as the model is now.

    The samples stay those of the recorded rows. Rows beyond them are new, and no part of the base.

    Args:
        recorded: when the plan was attached.
        config: of the model, which ``resize_token_embeddings`` changes.
        tensors: of the model by name.
        parameters: size of the backbone when the plan was attached.
    """
    added, resized = {}, False
    for name, (rows, _) in recorded.get("vocabulary", {}).items():
        tensor = tensors.get(name)
        if tensor is not None and _is_usable(tensor.detach()) and len(tensor) != rows:
            resized = True
            if isinstance(tensor, Parameter):
                added[id(tensor)] = (len(tensor) - rows) * tensor[0].numel()  # tied ones once
    if not resized:
        return recorded
    size = parameters + sum(added.values())
    return {**recorded, "config": _computation(config.to_dict()), "parameters": size}


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """How two fingerprints differ. Entries that only one of them has are not compared.

    Weights of two dtypes are equal if they agree up to the rounding of the coarser one. Of tensors
    with a row per token, the rows that both have are compared. A base that was quantised in
    training has to be quantised in the same way; adapters of a full one fit every quantised copy.

    Raises:
        ValueError: ``saved`` is not a fingerprint.
    """
    for name, kinds in KINDS.items():
        if not isinstance(saved.get(name, kinds[0]()), kinds):
            raise ValueError(
                f"the backbone has {name}={saved[name]!r}, which is no {kinds[0].__name__}"
            )
    ours = dict(_flat(here.get("config", {})))
    theirs = dict(_flat(saved.get("config", {})))
    found = [
        f"{name} {theirs[name]!r} there, {ours[name]!r} here"
        + (" (see resize_token_embeddings)" if name.split(".")[-1] == TOKENS else "")
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    ]
    then, now = saved.get("quantised"), here.get("quantised")
    if then and then != now:
        found.append(f"{then} there, {now or 'not quantised'} here (see quantise)")
    known, own = _comparable(saved, here)
    common = sorted(known.keys() & own.keys())
    other = [name for name in common if not _equal(known[name], own[name])]
    if other:
        count = f"{len(other)} of {len(common)} sampled tensors of the base have other values"
        found.append(f"{count}, such as {other[0]}")
    return found


def only_tokens_differ(saved: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether the sizes of two backbones differ by rows of the vocabulary and by nothing else.

    Args:
        saved: a fingerprint with ``parameters``, the size of the backbone.
        here: another one.
    """
    sizes = [each.get("token_parameters", 0) for each in (saved, here)]
    tokens = [_tokens(each.get("config", {})) for each in (saved, here)]
    if not sizes[0] or sizes[0] != sizes[1] or None in tokens:
        return False
    return bool(saved["parameters"] - here["parameters"] == sizes[0] * (tokens[0] - tokens[1]))


def _tokens(config: Mapping[str, Any]) -> Any:
    """Size of the vocabulary, the first of a configuration."""
    return next((v for name, v in _flat(config) if name.split(".")[-1] == TOKENS), None)


def _computation(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for key, value in config.items():
        name = str(key)  # numbers in Aria's
        if name.startswith("_") or name in IRRELEVANT or any(p in name for p in IRRELEVANT_PARTS):
            continue
        kept[name] = _computation(value) if isinstance(value, Mapping) else value
    return json.loads(json.dumps(kept, default=str))


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(config, Mapping):
        yield prefix.rstrip("."), config
        return
    for name, value in config.items():
        yield from _flat(value, f"{prefix}{name}.")


def _samples(base: Mapping[str, Tensor]) -> dict[str, str]:
    """Samples of the tensors with the lowest hashes of their names.

    A choice by hash has most names in common with that of a model of which parts are quantised.
    """
    tensors = {name: tensor.detach() for name, tensor in base.items()}
    usable = [name for name, tensor in tensors.items() if _is_usable(tensor)]
    chosen = sorted(usable, key=lambda name: zlib.crc32(name.encode()))[:TENSORS]
    return {name: _sample(tensors[name]) for name in sorted(chosen)}


def _is_usable(tensor: Tensor) -> bool:
    """Not quantised, sharded, or without values yet."""
    ordinary = type(tensor) is Tensor and not tensor.is_meta
    return ordinary and tensor.dtype in FLOATS.values() and tensor.numel() > 0


def _sample(tensor: Tensor) -> str:
    """The dtype and some values, such as ``float32 3d4ccccd ...`` (big-endian float32)."""
    places = [(k + 1) * tensor.numel() // (VALUES + 1) for k in range(VALUES)]
    return _written(tensor, places)


def _written(tensor: Tensor, places: list[int]) -> str:
    values = tensor.reshape(-1)[torch.tensor(places, device=tensor.device)].float().tolist()
    kind = next(name for name, dtype in FLOATS.items() if dtype == tensor.dtype)
    return " ".join([kind, *(struct.pack(">f", value).hex() for value in values)])


def _vocabulary(config: PreTrainedConfig, base: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Rows and samples of the tensors with a row per token.

    The places do not depend on the number of rows: one in each of the rows 0, 1, 2, 4, 8, ...
    """
    size = getattr(text_config(config), TOKENS, None)
    found: dict[str, list[Any]] = {}
    for name, tensor in base.items():
        tensor = tensor.detach()
        if not _is_usable(tensor) or not tensor.dim() or len(tensor) != size:
            continue
        width, rows = tensor[0].numel(), [0, *(1 << k for k in range(len(tensor).bit_length()))]
        places = [row * width + row % width for row in rows if row < len(tensor)]
        found[name] = [len(tensor), _written(tensor, places)]
    return found


def _comparable(
    saved: Mapping[str, Any], here: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Samples of both by name: of tensors with other numbers of rows, of the rows of both."""
    theirs, ours = dict(saved.get("weights", {})), dict(here.get("weights", {}))
    for name, (rows, sample) in here.get("vocabulary", {}).items():
        entry = saved.get("vocabulary", {}).get(name, [rows, sample])
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], str):
            raise ValueError(f"the backbone has {entry!r} for {name}, expected rows and a sample")
        if entry[0] != rows:
            count = 1 + min(entry[1].count(" "), sample.count(" "))
            theirs[name], ours[name] = (" ".join(s.split(" ")[:count]) for s in (entry[1], sample))
    return theirs, ours


def _equal(one: Any, other: str) -> bool:
    (first, ours), (second, theirs) = _parse(other), _parse(one)
    if len(ours) != len(theirs):
        raise ValueError(f"{one!r} has {len(theirs)} values, expected {len(ours)}")
    kinds = [torch.finfo(kind).eps for kind in (first, second)]
    return torch.allclose(ours, theirs, rtol=max(kinds), atol=1e-7, equal_nan=True)


def _parse(sample: Any) -> tuple[torch.dtype, Tensor]:
    try:
        kind, *values = sample.split(" ")
        numbers = [struct.unpack(">f", bytes.fromhex(value))[0] for value in values]
        return FLOATS[kind], torch.tensor(numbers)
    except (AttributeError, KeyError, ValueError, struct.error) as error:
        raise ValueError(f"{sample!r} is not a sample of weights") from error
