"""The fingerprint of a base: what it computes, and samples of its weights."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from lightning_pelt.utils.backbone import public_name

TENSORS = 64  # sampled tensors at most
VALUES = 4  # sampled values of each tensor
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
        configuration that change what the model computes; and ``weights``, the dtype and four
        values of at most 64 tensors, by name.
    """
    return {
        "name": public_name(config.name_or_path) if config.name_or_path else None,
        "revision": getattr(config, "_commit_hash", None),
        "config": _computation(config.to_dict()),
        "weights": _samples(base),
    }


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """How two fingerprints differ. Entries that only one of them has are not compared.

    Weights of two dtypes are equal if they agree up to the rounding of the coarser one.

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
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    ]
    weights = saved.get("weights", {})
    common = sorted(weights.keys() & here.get("weights", {}).keys())
    other = [name for name in common if not _equal(weights[name], here["weights"][name])]
    if other:
        count = f"{len(other)} of {len(common)} sampled tensors of the base have other values"
        found.append(f"{count}, such as {other[0]}")
    return found


def _computation(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, value in config.items():
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
    values = tensor.reshape(-1)[torch.tensor(places, device=tensor.device)].float().tolist()
    kind = next(name for name, dtype in FLOATS.items() if dtype == tensor.dtype)
    return " ".join([kind, *(struct.pack(">f", value).hex() for value in values)])


def _equal(one: Any, other: str) -> bool:
    (first, ours), (second, theirs) = _parse(other), _parse(one)
    kinds = [torch.finfo(kind).eps for kind in (first, second)]
    return torch.allclose(ours, theirs, rtol=max(kinds), atol=1e-7, equal_nan=True)


def _parse(sample: Any) -> tuple[torch.dtype, Tensor]:
    try:
        kind, *values = sample.split(" ")
        numbers = [struct.unpack(">f", bytes.fromhex(value))[0] for value in values]
        dtype = FLOATS[kind]
    except (AttributeError, KeyError, ValueError, struct.error) as error:
        raise ValueError(f"{sample!r} is not a sample of weights") from error
    if len(numbers) != VALUES:
        raise ValueError(f"{sample!r} has {len(numbers)} values, expected {VALUES}")
    return dtype, torch.tensor(numbers)
