"""The file format of adapters: safetensors with a configuration in the header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from lightning_pelt.utils.files import locked, write_together
from lightning_pelt.utils.json_data import parse_json

TENSORS = "adapters.safetensors"
CONFIG = "adapter_config.json"
FORMAT = "2"
BAR_AFTER = 5  # seconds
WITHOUT_DIGESTS = "1"  # written by version 0.1
HEADER = "lightning_pelt"
REMEDY = "Copy the file again, or save the adapters again"
T = TypeVar("T")
DIGESTS = "sha256"  # in the configuration: of its other entries, and of the tensors


def write_adapters(
    folder: Path, tensors: Mapping[str, Tensor], *, plan: dict[str, Any], backbone: dict[str, Any]
) -> None:
    """Write ``adapters.safetensors``, and its configuration again as a readable JSON file.

    Args:
        folder: created if it does not exist.
        tensors: by their state-dict names.
        plan: configuration of the plan.
        backbone: what a model must share with the trained one to load the adapters.

    Raises:
        OSError: the disk is full or not writable. Existing files stay unchanged.
    """
    config: dict[str, Any] = {"format": FORMAT, "plan": plan, "backbone": backbone}
    config[DIGESTS] = {"config": _digest_of_config(config), "tensors": digest_of(tensors)}
    header = {HEADER: json.dumps(config)}
    readable = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_together(
        {
            folder / TENSORS: partial(save_file, dict(tensors), metadata=header),
            folder / CONFIG: lambda path: path.write_text(readable, encoding="utf-8"),
        }
    )


def read_adapters(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the configuration and the tensors that :func:`write_adapters` wrote.

    Call :func:`refuse_damage` before the tensors are used, and after errors that are more precise,
    such as those about unknown names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or not an adapter file, has an unknown format, its
            configuration is damaged, or it differs from the JSON file beside it.
    """
    return _read(path, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def read_description(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The configuration as :func:`read_adapters` reads it, and the names of the tensors.

    Raises:
        ValueError: as :func:`read_adapters`.
    """
    return _read(path, lambda file: list(file.keys()))


def _read(path: Path, content: Callable[[Any], T]) -> tuple[dict[str, Any], T]:
    if not path.is_file():
        message = f"there is no {path.name} in {path.parent}: save_adapters writes it"
        raise FileNotFoundError(message)
    try:
        with locked(path.parent, shared=True), safe_open(path, framework="pt") as file:
            beside = path.with_name(CONFIG)
            readable = beside.read_bytes() if beside.is_file() else None
            header = file.metadata() or {}
            found = content(file)
    except OSError:
        raise
    except Exception as error:  # safetensors and torch raise many types for unreadable bytes
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
    config = _checked_config(path, header)
    if readable is not None and parse_json(readable, beside) != config:
        raise ValueError(
            f"{beside} differs from the configuration in {path.name}, of which it is a copy: save "
            f"the adapters again, or delete {CONFIG} if you trust {path.name}"
        )
    return config, found


def refuse_damage(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Compare tensors with the digest that was written with them. Format 1 has none.

    Raises:
        ValueError: they differ.
    """
    if config["format"] == FORMAT and digest_of(tensors) != config[DIGESTS]["tensors"]:
        raise ValueError(
            f"{path} is damaged: its tensors are not those that were written (their SHA-256 "
            f"differs). {REMEDY}"
        )


def _checked_config(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    if HEADER not in header:
        raise ValueError(
            f"{path} is a safetensors file, but not one of save_adapters: its header has no "
            f"{HEADER} entry"
        )
    config = parse_json(header[HEADER], f"the configuration in {path}")
    found = config.get("format") if isinstance(config, dict) else None
    if found not in (FORMAT, WITHOUT_DIGESTS):
        raise ValueError(
            f"{path} has the format {found!r}, and this version reads {WITHOUT_DIGESTS!r} and "
            f"{FORMAT!r}: use a newer version of lightning-pelt"
        )
    if found == FORMAT:
        digests = config.get(DIGESTS)
        if not isinstance(digests, dict) or digests.get("config") != _digest_of_config(config):
            raise ValueError(
                f"{path} is damaged: its configuration is not the one that was written (its "
                f"SHA-256 differs). {REMEDY}"
            )
        if not isinstance(digests.get("tensors"), str):
            raise ValueError(f"{path} is damaged: it has no SHA-256 of the tensors. {REMEDY}")
    for part in ("plan", "backbone"):
        if not isinstance(config.get(part), dict):
            raise ValueError(
                f"the configuration in {path} has {part}={config.get(part)!r}, expected a mapping"
            )
    return config


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values of tensors. A bar shows a long one."""
    digest = hashlib.sha256()
    for name in tqdm(sorted(tensors), "hashing tensors", delay=BAR_AFTER, leave=False):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest_of_config(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration without its digests, as JSON with sorted keys."""
    rest = {key: value for key, value in config.items() if key != DIGESTS}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
