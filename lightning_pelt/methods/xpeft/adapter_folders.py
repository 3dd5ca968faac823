"""Folders with one trained adapter, written by ``save_adapters`` or by AdapterHub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_pelt.methods.adapter import Adapter
from lightning_pelt.methods.config import rebuild
from lightning_pelt.methods.xpeft.bank import HUB
from lightning_pelt.utils.adapter_format import CONFIG, TENSORS, read_adapters, refuse_damage
from lightning_pelt.utils.adapterhub_format import (
    not_a_configuration,
    read_hub_config,
    read_hub_tensors,
)

REMEDY = "a bank takes adapters of Pfeiffer et al.: ungated, relu, after the feed-forward layers"

PLACEMENTS = ("auto", "pfeiffer", "unipelt")  # of Pfeiffer et al., in post-norm blocks at least

# One adapter by block and by "down", "down_bias", "up" or "up_bias".
AdapterTensors = dict[tuple[int, str], Tensor]


class AdapterWeights(NamedTuple):
    """One adapter for all L blocks, in the layout of a bank, in float32.

    Attributes:
        tensors: A (L, d * b), B (L, b * d), a_bias (L, b) and b_bias (L, d).
        placement: where it was trained, see :attr:`BankTensors.placements`.
    """

    tensors: tuple[Tensor, Tensor, Tensor, Tensor]
    placement: str


def read_adapter(folder: Path, *, blocks: int, width: int, bottleneck: int) -> AdapterWeights:
    """Read a folder of ``save_adapters`` or of AdapterHub's ``adapters``.

    Raises:
        FileNotFoundError: the folder contains neither.
        ValueError: a file is damaged, or the adapter has another kind, other blocks or shapes.
    """
    if (folder / TENSORS).is_file():
        tensors, placement = _read_pelt(folder)
    elif (folder / CONFIG).is_file():
        tensors, placement = _read_hub(folder), HUB
    else:
        raise FileNotFoundError(
            f"{folder} has no trained adapter: expected {TENSORS} of save_adapters, or {CONFIG} "
            "and weights of AdapterHub"
        )
    d, b = width, bottleneck
    _check_blocks(folder, {block for block, _ in tensors}, blocks)
    shapes = {"down": (b, d), "down_bias": (b,), "up": (d, b), "up_bias": (d,)}
    for block in range(blocks):
        for name, shape in shapes.items():
            _check_tensor(folder, f"{name} of block {block}", tensors.get((block, name)), shape)
    stacks = {n: torch.stack([tensors[i, n].float() for i in range(blocks)]) for n in shapes}
    A, B = (stacks[name].transpose(1, 2).flatten(1) for name in ("down", "up"))
    return AdapterWeights((A, B, stacks["down_bias"], stacks["up_bias"]), placement)


def _check_blocks(folder: Path, found: set[int], blocks: int) -> None:
    if found != set(range(blocks)):
        numbers = ", ".join(map(str, sorted(found))) or "none"
        raise ValueError(
            f"{folder} has adapters in the blocks {numbers}, expected 0 to {blocks - 1}: the "
            "adapters of a bank have weights for every block of the model"
        )


def _check_tensor(folder: Path, what: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    found = None if tensor is None else tuple(tensor.shape)
    if found != shape:
        raise ValueError(
            f"{folder}: {what} is {found or 'missing'}, expected {shape}: all adapters of a bank "
            "have the width of the model and the same bottleneck"
        )
    if tensor is not None and not tensor.is_floating_point():
        raise ValueError(f"{folder}: {what} has the dtype {tensor.dtype}, expected floats")
    if tensor is not None and not tensor.isfinite().all():
        raise ValueError(
            f"{folder}: {what} contains NaN or infinity, which would reach every profile of the "
            "bank, even those that do not select this adapter: leave this adapter out"
        )


# -- folders of save_adapters -------------------------------------------------------------------


def _read_pelt(folder: Path) -> tuple[AdapterTensors, str]:
    """The tensors and the placement of the adapter."""
    path = folder / TENSORS
    config, tensors = read_adapters(path)
    refuse_damage(path, config, tensors)
    try:
        plan = rebuild(config["plan"])
    except ValueError as error:
        raise ValueError(f"the plan in {path} cannot be read: {error}") from error
    methods: Sequence[Any] = getattr(plan, "methods", ())
    method = methods[0] if len(methods) == 1 else None
    if not isinstance(method, Adapter) or plan.norms:
        raise ValueError(
            f"{folder} contains {plan}, expected one Adapter and nothing else, not even trained "
            "norms: a bank would lose what was trained along with the adapter. Train "
            "Plan.uniform(Adapter(), norms=False)"
        )
    found = {
        "gate": method.gate,
        "activation": method.activation,
        "sites": list(method.sites),
        "placement": "unipelt" if method.placement in PLACEMENTS else method.placement,
        "scale": method.scale,
    }
    expected = {"gate": None, "activation": "relu", "sites": ["ffn"], "placement": "unipelt"}
    _check_settings(folder, found, {**expected, "scale": 1.0})
    name = re.compile(rf"\.pelt\.{re.escape(method.name)}_ffn\.net\.(\w+)$")
    matches = ((key, name.search(key), tensor) for key, tensor in tensors.items())
    by_block = _by_block(folder, ((key, match[1], t) for key, match, t in matches if match))
    return by_block, method.placement


# -- folders of AdapterHub ----------------------------------------------------------------------

# Settings of ``adapters`` that change what an adapter computes, with the values of ``SeqBnConfig``.
# The first three have no default there; old files write some of them with capitals.
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
# Families whose interface in ``adapters`` takes the residual from behind the norm.
HUB_NORMED = ("modernbert",)
HUB_KEY = re.compile(r"adapters\.[^.]+\.adapter_(down\.0|up)\.(weight|bias)$")


def _read_hub(folder: Path) -> AdapterTensors:
    path = folder / CONFIG
    whole = read_hub_config(path)
    if not isinstance(whole["config"], dict):
        raise not_a_configuration(path, f"config={whole['config']!r}")
    found = {str(name).lower(): value for name, value in whole["config"].items()}
    required = {"output_adapter": None, "mh_adapter": None, "non_linearity": None}
    _check_settings(folder, {**required, **found}, HUB_SETTINGS)
    if whole.get("model_type") in HUB_NORMED:
        raise ValueError(
            f"{folder} has an adapter of {whole['model_type']}, for which AdapterHub adds the "
            "normed input of the feed-forward instead of the residual stream. No placement does so"
        )
    return _by_block(folder, _hub_names(folder, read_hub_tensors(folder)))


def _hub_names(folder: Path, tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, str, Tensor]]:
    for key, tensor in tensors.items():
        match = HUB_KEY.search(key)
        if match is None:
            raise ValueError(
                f"{folder} contains {key!r}, expected only adapter_down and adapter_up: {REMEDY}"
            )
        side = match[1].removesuffix(".0")
        yield key, side if match[2] == "weight" else f"{side}_bias", tensor


# -- both kinds of folders ----------------------------------------------------------------------


def _check_settings(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    differing = [
        f"{name}={found[name]!r}, expected {value!r}"
        for name, value in expected.items()
        if name in found and found[name] != value
    ]
    if differing:
        raise ValueError(f"{folder} has {'; '.join(differing)}: {REMEDY}")


def _by_block(folder: Path, tensors: Iterable[tuple[str, str, Tensor]]) -> AdapterTensors:
    """Tensors given as (key, name, tensor) by block, the first number in the key, and by name."""
    found: AdapterTensors = {}
    for key, name, tensor in tensors:
        number = re.search(r"\.(\d+)\.", key)
        block = int(number[1]) if number else 0
        if (block, name) in found:
            raise ValueError(
                f"{folder} has two adapters in block {block}, one of them {key!r}: a bank is for "
                "models of one stack, with one adapter per block"
            )
        found[block, name] = tensor
    return found
