"""Trained adapters as files: one per folder, ours or AdapterHub's, or a whole bank in one file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_pelt.files import write_aside

SUFFIX = ".safetensors"
FORMAT = "1"
HEADER = "lightning_pelt_bank"
OURS, CONFIG = "adapters.safetensors", "adapter_config.json"
HUB_WEIGHTS = ("adapter.safetensors", "model.safetensors", "pytorch_adapter.bin")
REMEDY = "a bank takes adapters of Pfeiffer et al.: ungated, relu, after the feed-forward layers"

Parts = dict[tuple[int, str], Tensor]  # by block and one of SHAPES


class Weights(NamedTuple):
    """One adapter in all L blocks, in the layout of a bank, float32."""

    A: Tensor  # (L, d * b)
    B: Tensor  # (L, b * d)
    a_bias: Tensor  # (L, b)
    b_bias: Tensor  # (L, d)


def read_adapter(folder: Path, *, blocks: int, width: int, bottleneck: int) -> Weights:
    """The adapter in a folder of ``save_adapters`` or of AdapterHub's ``adapters``.

    Raises:
        FileNotFoundError: the folder holds neither.
        ValueError: a damaged file, another kind of adapter, or other blocks or shapes.
    """
    if (folder / OURS).is_file():
        parts = _read_ours(folder)
    elif (folder / CONFIG).is_file():
        parts = _read_hub(folder)
    else:
        raise FileNotFoundError(
            f"there is no trained adapter in {folder}: expected {OURS}, which save_adapters "
            f"writes, or AdapterHub's {CONFIG} with its weights"
        )
    d, b = width, bottleneck
    _refuse_other_blocks(folder, {block for block, _ in parts}, blocks)
    shapes = {"down": (b, d), "down_bias": (b,), "up": (d, b), "up_bias": (d,)}
    for block in range(blocks):
        for name, shape in shapes.items():
            _refuse_other_part(folder, f"{name} of block {block}", parts.get((block, name)), shape)
    stacks = {n: torch.stack([parts[i, n].float() for i in range(blocks)]) for n in shapes}
    A, B = (stacks[name].transpose(1, 2).flatten(1) for name in ("down", "up"))
    return Weights(A, B, stacks["down_bias"], stacks["up_bias"])


def _refuse_other_blocks(folder: Path, found: set[int], blocks: int) -> None:
    if found != set(range(blocks)):
        numbers = ", ".join(map(str, sorted(found))) or "none"
        raise ValueError(
            f"{folder} has adapters in the blocks {numbers}, expected 0 to {blocks - 1}: all "
            "adapters of a bank go into every block of the model it is loaded for"
        )


def _refuse_other_part(
    folder: Path, what: str, tensor: Tensor | None, shape: tuple[int, ...]
) -> None:
    found = None if tensor is None else tuple(tensor.shape)
    if found != shape:
        raise ValueError(
            f"{folder}: {what} is {found or 'missing'}, expected {shape}: all adapters of a bank "
            "have the width of the model and one bottleneck"
        )
    if tensor is not None and not tensor.isfinite().all():
        raise ValueError(
            f"{folder}: {what} holds NaN or infinity, which would spoil every profile of the "
            "bank, chosen or not: leave this adapter out"
        )


# -- our own folders ----------------------------------------------------------------------------


def _read_ours(folder: Path) -> Parts:
    from lightning_pelt import exchange
    from lightning_pelt.methods.adapter import Adapter
    from lightning_pelt.plan import from_config

    config, tensors = exchange._read(folder / OURS)
    plan = from_config(config["plan"])
    method = plan.methods[0] if plan.methods else None
    if len(plan.methods) != 1 or not isinstance(method, Adapter) or plan.norms:
        raise ValueError(
            f"{folder} holds {plan}, expected one Adapter and nothing else, norms included: what "
            "was trained along with it would be lost. Train Plan.uniform(Adapter(), norms=False)"
        )
    found = {
        "gate": method.gate,
        "activation": method.activation,
        "sites": list(method.sites),
        "placement": "unipelt" if method.placement == "auto" else method.placement,
    }
    expected = {"gate": None, "activation": "relu", "sites": ["ffn"], "placement": "unipelt"}
    _refuse_other_settings(folder, found, expected)
    name = re.compile(rf"\.pelt\.{re.escape(method.name)}_ffn\.net\.(\w+)$")
    ours = ((key, name.search(key), tensor) for key, tensor in tensors.items())
    return _by_block(folder, ((key, match[1], t) for key, match, t in ours if match))


# -- folders of AdapterHub ----------------------------------------------------------------------

# Settings of ``adapters`` that change what an adapter computes, as ``SeqBnConfig`` has them. The
# first two have no default there; old files write them with capitals.
HUB_SETTINGS = {
    "output_adapter": True,
    "mh_adapter": False,
    "non_linearity": "relu",
    "cross_adapter": False,
    "is_parallel": False,
    "original_ln_before": True,
    "original_ln_after": True,
    "residual_before_ln": True,
    "ln_before": False,
    "ln_after": False,
    "phm_layer": False,
    "use_gating": False,
    "scaling": 1.0,
    "inv_adapter": None,
    "invertible_adapter": None,
}
HUB_KEY = re.compile(r"adapters\.[^.]+\.adapter_(down\.0|up)\.(weight|bias)$")


def _read_hub(folder: Path) -> Parts:
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["config"]
        found = {str(name).lower(): value for name, value in settings.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not the configuration of an adapter of AdapterHub: expected JSON with the "
            f"mapping 'config' ({type(error).__name__}: {error})"
        ) from error
    required = {"output_adapter": None, "mh_adapter": None, "non_linearity": None}
    _refuse_other_settings(folder, {**required, **found}, HUB_SETTINGS)
    return _by_block(folder, _hub_parts(folder, _hub_tensors(folder)))


def _hub_parts(folder: Path, tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, str, Tensor]]:
    for key, tensor in tensors.items():
        match = HUB_KEY.search(key)
        if match is None:
            raise ValueError(
                f"{folder} holds {key!r}, which is no part of adapter_down or adapter_up: {REMEDY}"
            )
        side = match[1].removesuffix(".0")
        yield key, side if match[2] == "weight" else f"{side}_bias", tensor


def _hub_tensors(folder: Path) -> dict[str, Tensor]:
    files = [folder / name for name in HUB_WEIGHTS if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(
            f"{folder} has {CONFIG} and no weights: expected one of {', '.join(HUB_WEIGHTS)}"
        )
    path = files[0]
    try:
        if path.suffix == SUFFIX:
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers of both formats raise whatever foreign bytes lead to
        raise ValueError(f"{path} is truncated or holds more than tensors: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{path} holds something else than tensors by name")
    return tensors


# -- both ---------------------------------------------------------------------------------------


def _refuse_other_settings(
    folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    differing = [
        f"{name}={found[name]!r}, expected {value!r}"
        for name, value in expected.items()
        if name in found and found[name] != value
    ]
    if differing:
        raise ValueError(f"{folder} has {'; '.join(differing)}: {REMEDY}")


def _by_block(folder: Path, parts: Iterable[tuple[str, str, Tensor]]) -> Parts:
    """Parts given as (key, name, tensor), with the first number in the key as their block."""
    found: Parts = {}
    for key, name, tensor in parts:
        number = re.search(r"\.(\d+)\.", key)
        place = (int(number[1]) if number else 0, name)
        if place in found:
            raise ValueError(
                f"{folder} has two adapters in block {place[0]}, one of them {key!r}: a bank is "
                "for models of one stack, with one adapter per block"
            )
        found[place] = tensor
    return found


# -- whole banks --------------------------------------------------------------------------------

NAMES = ("A", "B", "a_bias", "b_bias")


def fingerprint(tensors: Sequence[Tensor], width: int) -> str:
    """SHA-256 of a bank (A, B, a_bias, b_bias) of ``width``, over its values as bfloat16."""
    shapes = [list(tensor.shape) for tensor in tensors]
    digest = hashlib.sha256(json.dumps(["trained bank", FORMAT, width, shapes]).encode())
    for tensor in tensors:
        bits = tensor.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
        digest.update(bits.astype("<i2", copy=False).data)
    return digest.hexdigest()


def write_bank(path: Path, tensors: Sequence[Tensor], *, width: int, digest: str) -> Path:
    """Write (A, B, a_bias, b_bias) as bfloat16 into one file; see ``save_bank``."""
    if path.suffix != SUFFIX:
        raise ValueError(f"a bank is one safetensors file: name it *{SUFFIX}, not {path.name!r}")
    found = fingerprint(tensors, width)
    if found != digest:
        raise ValueError(
            f"these weights have the digest {found} and claim {digest}: save what "
            "TrainedBank.load gave in float32 or bfloat16, unchanged"
        )
    low = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in zip(NAMES, tensors, strict=True)
    }
    header = {HEADER: json.dumps({"format": FORMAT, "width": width, "digest": digest})}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, lambda aside: save_file(low, aside, metadata=header))
    return path


def read_bank(path: Path) -> tuple[tuple[Tensor, ...], int, str]:
    """What :func:`write_bank` wrote: (A, B, a_bias, b_bias), width and digest."""
    with _open(path) as (file, header):
        # Copies: what safetensors gives is a view of the file, and would change along with it.
        tensors = tuple(file.get_tensor(name).clone() for name in NAMES)
    found = fingerprint(tensors, header["width"])
    if found != header["digest"]:
        raise ValueError(
            f"{path} is damaged: its weights have the digest {found}, expected "
            f"{header['digest']}. Copy the file again, or make it anew with save_bank"
        )
    return tensors, header["width"], header["digest"]


def read_size(path: Path) -> int:
    """N of the bank in a file, from its header alone."""
    with _open(path) as (file, _):
        return file.get_slice("A").get_shape()[1]


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file of a bank, and its header."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no bank {path}: save_bank writes one")
    try:
        with safe_open(path, framework="pt") as file:
            yield file, _header(path, file)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _header(path: Path, file: Any) -> dict[str, Any]:
    text = (file.metadata() or {}).get(HEADER, "null")
    try:
        header = json.loads(text)
        known = (
            header is not None and header["format"] == FORMAT and {"width", "digest"} <= {*header}
        )
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(
            f"{path} is a safetensors file, but not one of save_bank: its header has no "
            f"{HEADER} of format {FORMAT}"
        )
    return header
