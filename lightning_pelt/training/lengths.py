"""Refuses rows with more tokens than the model has positions for, before they reach the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_pelt.anatomy import base_of
from lightning_pelt.anatomy.positions import position_limit
from lightning_pelt.attach import Attachment
from lightning_pelt.data import TextDataModule


def most_tokens(attachment: Attachment) -> int | None:
    """Number of tokens of a row that the model takes, beside those of prompts; None for any number.

    Example:
        >>> from lightning_pelt import Plan, Prompt, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> most_tokens(attach(tiny_bert(), Plan.uniform(Prompt(length=4))))
        28
    """
    limit = position_limit(attachment.model)
    return None if limit is None else limit - sum(m.positions for m in attachment.plan.methods)


def check_rows(trainer: Trainer, most: int | None) -> None:
    """Check the longest row of the data of a fit before its first batch.

    Args:
        trainer: its data module is checked if it is a :class:`TextDataModule`.
        most: see :func:`most_tokens`.

    Raises:
        ValueError: a row is longer than ``most``.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if most is None or not isinstance(data, TextDataModule):
        return
    for split in data.splits.keys() & {"train", "dev"}:
        rows = data.tokens(split)
        if "position_ids" in rows.column_names:  # packed: each example starts with position 0
            continue
        lengths = rows["length"][:]
        longest = data.max_length if data.pad == "max_length" else max(lengths, default=0)
        _check(longest, most, f"the longest row of {split} has")


def check_batch(batch: Mapping[str, Any], most: int | None) -> None:
    """Check a batch with ``input_ids`` (B, T).

    Packed rows may be longer than the positions reach, since each example starts with position 0.

    Raises:
        ValueError: T is larger than ``most``, or an example of packed rows has more tokens.
    """
    ids, positions = batch.get("input_ids"), batch.get("position_ids")
    if most is None or not isinstance(ids, Tensor) or ids.shape[-1] <= most:
        return
    if isinstance(positions, Tensor) and batch.get("attention_mask") is None:
        _check(int(positions.max()) + 1, most, "the examples of a packed batch have up to")
    else:
        _check(ids.shape[-1], most, "the rows of a batch have")


class LengthGuard:
    """Checks the inputs of a model in a fit with a module and data of any kind.

    The module may cut its rows, so they are checked where they reach the model.
    """

    def __init__(self) -> None:
        self._most: int | None = None
        self._handle: RemovableHandle | None = None

    def start(self, trainer: Trainer, attachment: Attachment) -> None:
        """Check the rows of the data, and from now on every input.

        Raises:
            ValueError: as :func:`check_rows`; later, as :func:`check_batch`.
        """
        self.stop()
        self._most = most_tokens(attachment)
        if self._most is not None:
            check_rows(trainer, self._most)
            model = base_of(attachment.model)
            self._handle = model.register_forward_pre_hook(
                self._check, prepend=True, with_kwargs=True
            )

    def stop(self) -> None:
        """Check no more inputs."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _check(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check_batch({"input_ids": args[0]} if args else kwargs, self._most)


def _check(length: int, most: int, subject: str) -> None:
    if length > most:
        raise ValueError(
            f"{subject} {length} tokens, and the model with its plan has positions for {most}: cut "
            f"rows to {most} tokens (max_length={most})"
        )
