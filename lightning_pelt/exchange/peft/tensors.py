"""The tensors of a file in PEFT's format, sorted by what they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lightning_pelt.attach.tensor_checks import FLOATS
from lightning_pelt.exchange.peft.names import PREFIX

PROMPT = "prompt_embeddings"
TENSORS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
HEADER = "lightning_pelt.plan"  # in the metadata of the tensors: the plan, for the way back
LORA = re.compile(r"(?P<path>.+)\.lora_(?P<which>[AB])(?:\.(?!weight$)[^.]+)?\.weight")
WORDS = re.compile(r"(?P<path>.+)\.lora_embedding_(?P<which>[AB])(?:\.[^.]+)?")
TABLE = ".base_layer.weight"  # of an extended embedding, which PEFT saves beside its LoRA
MISS = re.compile(r"(?P<path>.+)\.miss_block(?:\.[^.]+)?")
IA3 = re.compile(r"(?P<path>.+)\.ia3_l(?:\.[^.]+)?")
OTHER = re.compile(r"\.(lora|ia3|ada|vera|hada|lokr|oft|boft|hra|loha)_\w+")


@dataclass
class Contents:
    """What a file holds, by paths of modules.

    Attributes:
        lora: A (r, d_in) and B (d_out, r), by ``A`` and ``B``.
        ia3: (1, d_in) or (d_out, 1).
        miss: (r, d_out).
        prompt: (length, width); None if there is none.
        rest: of modules that were saved as a whole, by their names in the model.
        plan: the configuration of the plan of which this library wrote the file; None if it did
            not.
    """

    lora: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    ia3: dict[str, Tensor] = field(default_factory=dict)
    miss: dict[str, Tensor] = field(default_factory=dict)
    prompt: Tensor | None = None
    rest: dict[str, Tensor] = field(default_factory=dict)
    plan: Any = None


def read_tensors(folder: Path) -> tuple[Path, Contents]:
    """Read ``adapter_model.safetensors``, or ``adapter_model.bin`` without pickled objects.

    Returns:
        The path of the file, and what it holds.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: the file is truncated or damaged, or has tensors of another method, of other
            dtypes, or with NaN.
    """
    path = next((folder / name for name in (TENSORS, PICKLED) if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"there is neither {TENSORS} nor {PICKLED} in {folder}")
    given, header = _read(path)
    return path, _sorted(path, given, header)


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    try:
        if path.name == PICKLED:
            found = torch.load(path, weights_only=True, map_location="cpu")
            if not isinstance(found, dict):
                raise TypeError(f"it holds a {type(found).__name__}")
            return found, {}
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except OSError:
        raise
    except Exception as error:  # of many types for unreadable bytes, or for pickled objects
        kind = "a file of tensors" if path.name == PICKLED else "a safetensors file"
        raise ValueError(f"{path} is truncated or not {kind}: {error}") from error


def _sorted(path: Path, given: Mapping[str, Any], header: Mapping[str, str]) -> Contents:
    found = Contents(plan=_plan(header))
    for name, tensor in given.items():
        short = name.removeprefix(PREFIX)
        _refuse_value(path, short, tensor)
        if lora := LORA.fullmatch(short) or WORDS.fullmatch(short):
            found.lora.setdefault(lora["path"], {})[lora["which"]] = tensor
        elif ia3 := IA3.fullmatch(short):
            found.ia3[ia3["path"]] = tensor
        elif miss := MISS.fullmatch(short):
            found.miss[miss["path"]] = tensor
        elif short == PROMPT:
            found.prompt = tensor
        elif OTHER.search(short):
            raise ValueError(
                f"{path} holds {name}, which is no matrix A or B of a LoRA on a linear layer or an "
                "embedding, no vector of (IA)3 and no matrix of MiSS: it belongs to another "
                "method. Load it with PEFT, call merge_and_unload(), and save the merged model"
            )
        elif ".original_module." not in short:  # a copy of the base's tensor
            found.rest[re.sub(r"\.modules_to_save(\.default)?\.", ".", short)] = tensor
    for module, pair in found.lora.items():
        if len(pair) < 2:
            lacking = "B" if "A" in pair else "A"
            raise ValueError(f"{path} lacks {module}.lora_{lacking}.weight: it is incomplete")
    return found


def _refuse_value(path: Path, name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{path}: {name} is a {type(tensor).__name__}, expected a tensor")
    if (LORA.fullmatch(name) or WORDS.fullmatch(name)) and (
        tensor.dtype not in FLOATS or tensor.dim() != 2
    ):
        raise ValueError(
            f"{path}: {name} has the dtype {tensor.dtype} and the shape {tuple(tensor.shape)}, "
            "expected a matrix of floats: the file is damaged, or parts of a sharded model were "
            "saved"
        )
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ValueError(
            f"{path}: {name} contains NaN or infinity: the run that saved it had diverged. Load "
            "an earlier checkpoint"
        )


def refuse_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raise unless ``tensor`` has the shape ``expected``.

    Raises:
        ValueError: the message names the tensor.
    """
    if tuple(tensor.shape) != expected:
        raise ValueError(
            f"size mismatch: {name} is {tuple(tensor.shape)} there, and {expected} is expected "
            "here: the base has other widths than the one that it was trained on, or the rank in "
            "the configuration is another"
        )


def _plan(header: Mapping[str, str]) -> Any:
    try:
        return json.loads(header[HEADER])
    except (KeyError, ValueError):
        return None
