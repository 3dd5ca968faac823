"""Say at the start of a fit what is trained, what will be deployed, and what it weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_pelt.callbacks._reading import aligned, attachment_of
from lightning_pelt.ownership import plain

if TYPE_CHECKING:
    from lightning_pelt.attach import Attachment


class ParameterCount(Callback):
    """Print and log the numbers of parameters of each method.

    Per method: what is *trained*, what is *deployed* (a prefix's shared MLP folded into the prefix
    it computes), its *gates*, and the *share* of the backbone that the deployed weights and gates
    add, in percent. Then the head, the backbone, and the bytes that a checkpoint's own tensors
    take. Every logger gets the numbers once, as hyperparameters: ``parameters/<method>/trained``,
    ``.../deployed``, ``.../gates``, ``.../share``, ``parameters/head``, ``parameters/backbone``,
    ``parameters/bytes``, the sums over the methods under ``parameters/total/...`` and, with gates,
    head and (in full fine-tuning) the backbone, ``parameters/trained``.

    The counts were taken when the plan was attached, so that sharding does not change them.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        attachment = attachment_of(pl_module, self)
        numbers = count(attachment)
        if trainer.is_global_zero:
            print(f"\n{tabulate(attachment, numbers)}\n", flush=True)
        for logger in trainer.loggers:
            logger.log_hyperparams(numbers)


def count(attachment: Attachment) -> dict[str, float]:
    """All numbers by the names they are logged under; ``share`` in percent, the rest whole."""
    numbers: dict[str, float] = {}
    kinds = ("trained", "deployed", "gates")
    backbone = attachment.backbone_size
    for method, counted in attachment.counts.items():
        numbers |= {f"parameters/{method}/{kind}": getattr(counted, kind) for kind in kinds}
    for kind in kinds:
        numbers[f"parameters/total/{kind}"] = sum(
            getattr(counted, kind) for counted in attachment.counts.values()
        )
    for name in [*attachment.counts, "total"]:
        kept = numbers[f"parameters/{name}/deployed"] + numbers[f"parameters/{name}/gates"]
        numbers[f"parameters/{name}/share"] = 100 * kept / backbone if backbone else 0.0
    numbers["parameters/trained"] = (
        numbers["parameters/total/trained"]
        + numbers["parameters/total/gates"]
        + attachment.head_size
        + (backbone if attachment.plan.train_base else 0)
    )
    numbers["parameters/head"] = attachment.head_size
    numbers["parameters/backbone"] = backbone
    numbers["parameters/bytes"] = owned_bytes(attachment)
    return numbers


def owned_bytes(attachment: Attachment) -> int:
    """The bytes of the tensors that a checkpoint keeps, in their dtypes, shared ones once."""
    own: dict[int, torch.Tensor] = {}
    for tensors in (attachment.model.named_parameters, attachment.model.named_buffers):
        for name, tensor in tensors(remove_duplicate=False):
            if plain(name) in attachment.owned:
                own[id(tensor)] = tensor
    return sum(tensor.numel() * tensor.element_size() for tensor in own.values())


def tabulate(attachment: Attachment, numbers: dict[str, float]) -> str:
    """The numbers as a plain table for the terminal."""
    header = ["method", "trained", "deployed", "gates", "of backbone"]
    rows = [header]
    for name in [*attachment.counts, "total"]:
        counted = [numbers[f"parameters/{name}/{kind}"] for kind in header[1:4]]
        share = numbers[f"parameters/{name}/share"]
        rows.append([name, *(f"{n:,.0f}" for n in counted), f"{share:.2f}%"])
    return (
        f"{aligned(rows)}\n\nhead {attachment.head_size:,}, backbone {attachment.backbone_size:,} "
        f"({'trained' if attachment.plan.train_base else 'frozen'}); "
        f"a checkpoint's own tensors take {readable_bytes(numbers['parameters/bytes'])}"
    )


def readable_bytes(size: float) -> str:
    """``5242880`` as ``5.0 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
