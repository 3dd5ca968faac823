"""Banks of trained adapters, read from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lightning_pelt.methods.xpeft.adapter_folders import read_adapter
from lightning_pelt.methods.xpeft.bank import Bank, BankTensors, format_sizes
from lightning_pelt.methods.xpeft.bank_files import SUFFIX, fingerprint, load_bank, read_size


@dataclass(frozen=True)
class TrainedBank(Bank):
    """Trained adapters, read from files.

    A folder was written by :func:`lightning_pelt.save_adapters` for a plan of one ungated
    ``Adapter`` after the feed-forward layers, or by AdapterHub's ``adapters`` library for an
    adapter of Pfeiffer et al. (``SeqBnConfig``). One bank may combine both kinds. ``XPEFT`` with
    the placement ``auto`` applies the adapters where they were trained: AdapterHub's read the
    residual stream (the placement ``pfeiffer``) in pre-norm blocks too.

    The digest covers the weights as bfloat16, the dtype in which :func:`save_bank` stores them, so
    that all copies of a bank have the same digest in every dtype. It depends on the order of the
    folders. It is computed at every call, since files may change.

    Args:
        folders: one folder per adapter; or a single file of :func:`save_bank`, which is a complete
            bank.

    Raises:
        ValueError: there are no folders, or a file of :func:`save_bank` is not the only entry.

    Example::

        bank = TrainedBank(folders=["runs/ann/adapters", "runs/bob/adapters"])
        save_bank(bank.load(blocks=12, width=768, bottleneck=48), "bank.safetensors")
        method = XPEFT(bank=TrainedBank(folders=["bank.safetensors"]), k=1)
    """

    folders: Sequence[str]

    def __post_init__(self) -> None:
        if isinstance(self.folders, (str, Path)):
            raise ValueError(
                f"TrainedBank has folders={str(self.folders)!r}, expected a list of paths: "
                f"TrainedBank(folders=[{str(self.folders)!r}])"
            )
        object.__setattr__(self, "folders", tuple(str(folder) for folder in self.folders))
        files = [folder for folder in self.folders if folder.endswith(SUFFIX)]
        if not self.folders or (files and len(self.folders) > 1):
            found = f"the bank {files[0]!r} among other paths" if files else "no folders"
            raise ValueError(
                f"TrainedBank has {found}, expected folders of one adapter each, or a single file "
                "of save_bank"
            )

    @property
    def size(self) -> int:
        return len(self.folders) if self._file is None else read_size(self._file)

    @property
    def _file(self) -> Path | None:
        first = self.folders[0]
        return Path(first) if first.endswith(SUFFIX) else None

    def _make(self, blocks: int, width: int, bottleneck: int, dtype: torch.dtype) -> BankTensors:
        if self._file is None:
            return self._gather(blocks, width, bottleneck)
        bank = load_bank(self._file)
        found = (bank.blocks, bank.width, bank.bottleneck)
        if found != (blocks, width, bottleneck):
            raise ValueError(
                f"{self._file} is a bank of {format_sizes(*found)}, expected "
                f"{format_sizes(blocks, width, bottleneck)}: use it with its own model"
            )
        return bank

    def _gather(self, blocks: int, width: int, bottleneck: int) -> BankTensors:
        adapters = [
            read_adapter(Path(folder), blocks=blocks, width=width, bottleneck=bottleneck)
            for folder in self.folders
        ]
        placements = frozenset(adapter.placement for adapter in adapters)
        sides = zip(*(adapter.tensors for adapter in adapters), strict=True)
        A, B, a_bias, b_bias = (torch.stack(side, 1) for side in sides)
        digest = fingerprint((A, B, a_bias, b_bias), width)
        return BankTensors(A, B, a_bias, b_bias, width=width, digest=digest, placements=placements)
