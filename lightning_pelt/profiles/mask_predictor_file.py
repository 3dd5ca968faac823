"""The file of a :class:`MaskPredictor`, which belongs to one trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_pelt.attach.attachment import Attachment
from lightning_pelt.methods.xpeft.masks import masks_of
from lightning_pelt.profiles.mask_predictor import MaskPredictor
from lightning_pelt.utils.adapter_format import digest_of
from lightning_pelt.utils.files import naming_file, write_aside
from lightning_pelt.utils.json_data import parse_json

SUFFIX = ".safetensors"
FORMAT = "1"
HEADER = "lightning_pelt_mask_predictor"


def save_predictor(predictor: MaskPredictor, path: str | Path, attachment: Attachment) -> Path:
    """Write a predictor as one safetensors file, with digests of what it was trained for.

    Args:
        predictor: a trained predictor.
        path: ends in ``.safetensors``. The file is replaced if it exists.
        attachment: of the model whose profiles it was trained on.

    Raises:
        ValueError: the path has another suffix.
        OSError: the disk is full or not writable.
    """
    path = checked_path(path)
    tensors = {name: value.cpu().contiguous() for name, value in predictor.state_dict().items()}
    entry = {"format": FORMAT, "tensors": digest_of(tensors)}
    header = {HEADER: json.dumps({**entry, **belongs_to(attachment)})}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, lambda aside: save_file(tensors, aside, metadata=header))
    return path


def load_predictor(path: str | Path, attachment: Attachment) -> MaskPredictor:
    """Read a file of :func:`save_predictor`, in eval mode on the CPU.

    Args:
        path: the file.
        attachment: of the model whose masks are predicted, before its profiles are changed.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is truncated, damaged, or not a file of :func:`save_predictor`; or it
            belongs to another bank or another trained model.
    """
    path = Path(path)
    header, tensors = _read(path)
    for what, here in belongs_to(attachment).items():
        if header.get(what) != here:
            raise ValueError(
                f"{path} belongs to the {what} {header.get(what)}, and the checkpoint has {here}: "
                "use the checkpoint that the network was trained on, or train one on this "
                "checkpoint with `lightning-pelt profiles learn-instant`"
            )
    with naming_file(path):
        # Sizes are those of the tensors, so that a file cannot ask for more memory than it has.
        (rank, inputs), (hidden, mixed) = (tensors[f"{n}.weight"].shape for n in ("project", "mix"))
        sizes = {"labels": mixed // rank, "width": inputs - 1, "rank": rank, "hidden": hidden}
        predictor = MaskPredictor(tensors["start"], **sizes)
        predictor.load_state_dict(tensors)
        _check(predictor, sizes["labels"], mixed % rank, attachment)
    return predictor.eval()


def _check(predictor: MaskPredictor, labels: int, rest: int, attachment: Attachment) -> None:
    """Raise a ``ValueError`` for values or sizes that cannot predict masks of the model."""
    model = attachment.model
    if wrong := [n for n, value in predictor.state_dict().items() if not value.isfinite().all()]:
        raise ValueError(f"{wrong[0]} has values that are not finite: train the network again")
    if not predictor.unit > 0:  # summaries are divided by it
        raise ValueError(
            f"unit is {predictor.unit.item():g}, expected > 0: train the network again"
        )
    masks, classes = masks_of(model).logits[0], model.config.num_labels
    if rest or labels != classes or predictor.start.shape != masks.shape:
        raise ValueError(
            f"it predicts {tuple(predictor.start.shape)} logits from {labels} labels, the model "
            f"has {tuple(masks.shape)} and {classes}: train the network on this checkpoint"
        )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file, checked against their digest."""
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no network {path}: `lightning-pelt profiles learn-instant` writes it"
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER, "null")
            # Copies, since safetensors returns views of the file, which would change with it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
    header = parse_json(text, path)
    if not isinstance(header, dict):
        raise ValueError(
            f"{path} is a safetensors file, but not one of `lightning-pelt profiles "
            f"learn-instant`: its header has no {HEADER!r}"
        )
    if (found := header.get("format")) != FORMAT:
        raise ValueError(
            f"{path} has the format {found}, and this version reads {FORMAT}: train the network "
            "again with `lightning-pelt profiles learn-instant`, or use the version that wrote it"
        )
    if digest_of(tensors) != header.get("tensors"):
        raise ValueError(
            f"{path} is damaged: its tensors are not those that were written (their SHA-256 "
            "differs). Copy the file again, or train the network again"
        )
    return header, tensors


def checked_path(path: str | Path) -> Path:
    """The path of the file of a predictor; raises a ``ValueError`` if it has another suffix."""
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"the file of a network is named {path.name!r}, expected *{SUFFIX}")
    return path


def belongs_to(attachment: Attachment) -> dict[str, Any]:
    """SHA-256 of the bank, and of all that was trained on the base, with samples of the base."""
    model = attachment.model
    state = {n: t for n, t in model.state_dict().items() if n in attachment.attached}
    base = json.dumps(attachment.fingerprint["weights"], sort_keys=True).encode()
    sample = torch.frombuffer(bytearray(base), dtype=torch.uint8)
    return {"bank": masks_of(model).bank.digest, "model": digest_of({**state, "": sample})}
