"""Print and log numbers of parameters and the size of a checkpoint at the start of a fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tabulate import tabulate

from lightning_pelt.attach.names import plain
from lightning_pelt.callbacks._attached import attached_to
from lightning_pelt.callbacks._media import log_media, log_numbers
from lightning_pelt.callbacks._sinks import Table
from lightning_pelt.reports.base_bytes import bytes_of_base
from lightning_pelt.utils.text import readable_bytes

if TYPE_CHECKING:
    from lightning_pelt.attach import Attachment

TABLE = "parameters/methods"
COLUMNS = ("method", "trained", "deployed", "gates", "share")


class ParameterCount(Callback):
    """Print and log the numbers of parameters of each method when a fit starts.

    The table shows, for each method, the *trained* parameters, the *deployed* ones (of a prefix
    with an MLP only the prefix remains), those of its *gates*, and deployed weights and gates as a
    *share* of the backbone in percent. Below it are the head, the backbone, and the bytes of the
    tensors in a checkpoint. Of a quantised backbone, the line shows the bytes of its tensors before
    and after, and how it is quantised.

    Every logger gets the numbers once, as hyperparameters: ``parameters/<method>/trained``,
    ``.../deployed``, ``.../gates`` and ``.../share``; the sums over the methods as
    ``parameters/total/...``; ``parameters/head``, ``parameters/backbone``; the bytes of the frozen
    backbone, ``parameters/backbone_bytes``, and of a checkpoint, ``parameters/bytes``; and
    ``parameters/trained``, which adds gates, head and, in full fine-tuning, the backbone. With
    several attached models, each has its table, and ``parameters/<path>/...`` are its numbers. They
    also get the table ``parameters/methods``, which W&B draws as bars too.

    Parameters are counted when the plan is attached, so sharding does not change the numbers.

    Args:
        table: print the table.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_pelt import LoRA, ParameterCount, PELTModule, Plan
        >>> minilm = "sentence-transformers/all-MiniLM-L6-v2"
        >>> module = PELTModule(minilm, Plan.uniform(LoRA(r=8)), labels=["no", "yes"])
        >>> trainer = Trainer(callbacks=[ParameterCount()], logger=False)
        >>> trainer.fit(module, data)  # doctest: +SKIP
        method      trained    deployed    gates    of backbone
        --------  ---------  ----------  -------  -------------
        lora         73,728      73,728        0          0.32%
        total        73,728      73,728        0          0.32%
        <BLANKLINE>
        head 770, backbone 22,713,216 (frozen); the tensors in a checkpoint take 291.0 KiB
    """

    def __init__(self, table: bool = True) -> None:
        self.table = table

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        by_path = attached_to(pl_module, self).by_path
        logged: dict[str, float] = {}
        rows: list[list[Any]] = []
        for path, attachment in by_path.items():
            numbers = count(attachment)
            inner = f"{path}/" if len(by_path) > 1 else ""
            logged |= {n.replace("/", f"/{inner}", 1): number for n, number in numbers.items()}
            rows += [[inner + row[0], *row[1:]] for row in method_rows(attachment, numbers)]
            if self.table and trainer.is_global_zero:
                title = f"{path}\n\n" if inner else ""
                print(f"\n{title}{parameter_table(attachment, numbers)}\n", flush=True)
        log_numbers(trainer, pl_module, logged)
        if trainer.loggers:  # without one, the printed table is the only one
            log_media(trainer, TABLE, Table(COLUMNS, rows, bars=("method", "trained")))


def method_rows(attachment: Attachment, numbers: Mapping[str, float]) -> list[list[Any]]:
    """The values of ``COLUMNS`` for each method of one model."""
    return [
        [name, *(numbers[f"parameters/{name}/{kind}"] for kind in COLUMNS[1:])]
        for name in attachment.counts
    ]


def count(attachment: Attachment) -> dict[str, float]:
    """All numbers by the names that one model's are logged under. ``share`` is in percent."""
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
    numbers["parameters/backbone_bytes"] = bytes_of_base(attachment).stored
    numbers["parameters/bytes"] = owned_bytes(attachment)
    return numbers


def owned_bytes(attachment: Attachment) -> int:
    """Bytes of the tensors in a checkpoint, in their dtypes. Shared tensors count once."""
    own: dict[int, torch.Tensor] = {}
    owned = attachment.owned
    for tensors in (attachment.model.named_parameters, attachment.model.named_buffers):
        for name, tensor in tensors(remove_duplicate=False):
            if plain(name) in owned:
                own[id(tensor)] = tensor
    return sum(tensor.numel() * tensor.element_size() for tensor in own.values())


def parameter_table(attachment: Attachment, numbers: dict[str, float]) -> str:
    """The numbers as a plain table for the terminal."""
    header = ["method", "trained", "deployed", "gates", "of backbone"]
    rows = []
    for name in [*attachment.counts, "total"]:
        counted = [numbers[f"parameters/{name}/{kind}"] for kind in header[1:4]]
        share = numbers[f"parameters/{name}/share"]
        rows.append([name, *(f"{n:,.0f}" for n in counted), f"{share:.2f}%"])
    table = tabulate(rows, header, disable_numparse=True, colalign=("left", *["right"] * 4))
    base = bytes_of_base(attachment)
    return (
        f"{table}\n\nhead {attachment.head_size:,}, backbone {attachment.backbone_size:,} "
        f"({'trained' if attachment.plan.train_base else 'frozen'}"
        f"{f', {base}' if base.kinds else ''}); "
        f"the tensors in a checkpoint take {readable_bytes(numbers['parameters/bytes'])}"
    )
