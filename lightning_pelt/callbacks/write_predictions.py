"""``WritePredictions``: writes predictions as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from lightning_pelt.utils.files import write_aside


class WritePredictions(BasePredictionWriter):
    """Writes one JSON line per row, in the order of the rows, when ``predict`` ends.

    Args:
        path: of the file; by default ``predictions.jsonl`` in the folder of the run. Each of
            several processes writes its own file, with the rank in the file name. ``row`` in every
            line is the number of the row.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_pelt import WritePredictions
        >>> trainer = Trainer(callbacks=[WritePredictions("answers.jsonl")], logger=False)
        >>> rows = trainer.predict(module, data)  # doctest: +SKIP
        600 predictions written to answers.jsonl
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="epoch")
        self.path = path

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        path = Path(
            self.path or Path(trainer.log_dir or trainer.default_root_dir) / "predictions.jsonl"
        )
        if trainer.world_size > 1:
            path = path.with_suffix(f".{trainer.global_rank}{path.suffix}")
        rows = [row for batch in _flat(predictions) for row in batch]
        numbers = [number for batch in _flat(batch_indices) for number in batch]
        numbers = numbers or list(range(len(rows)))  # the rows of a stream have no numbers
        lines = (
            json.dumps({"row": number, **row}, ensure_ascii=False) + "\n"
            for number, row in zip(numbers, rows, strict=True)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, lambda aside: aside.write_text("".join(lines), encoding="utf-8"))
        print(f"{len(rows)} predictions written to {path}")


def _flat(batches: Sequence[Any]) -> Sequence[Any]:
    """The batches of all data loaders; Lightning nests the batches of several loaders."""
    nested = (
        batches and isinstance(batches[0], list) and batches[0] and isinstance(batches[0][0], list)
    )
    return [batch for loader in batches for batch in loader] if nested else batches
