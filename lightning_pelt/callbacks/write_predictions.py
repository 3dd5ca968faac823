"""``WritePredictions``: writes predictions as JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_pelt.data.base import ROW_NUMBERS
from lightning_pelt.training.ranks import data_rank, data_ranks, tensor_rank
from lightning_pelt.utils.files import write_aside


class WritePredictions(BasePredictionWriter):
    """Writes one JSON line per row, in the order of the rows, when ``predict`` ends.

    Args:
        path: of the file; by default ``predictions.jsonl`` in the folder of the run. An earlier
            file is replaced, and a message says that it was there. Each of several processes writes
            its own file, with the rank in the file name; of those with the same rows, the first
            does. ``row`` in every line is the number of the row in its file, from 0, also if a data
            module has left out rows before it.

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
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        whole = Path(self.path).expanduser() if self.path else folder / "predictions.jsonl"
        if tensor_rank(trainer):  # another process has the same rows
            return
        alone = data_ranks(trainer) == 1
        path = whole if alone else _of_rank(whole, data_rank(trainer))
        rows = [row for batch in _flat(predictions) for row in batch]
        indices = [index for batch in _flat(batch_indices) for index in batch]
        indices = indices or list(range(len(rows)))  # the rows of a stream have no numbers
        numbers = _row_numbers(trainer, indices)
        lines = (
            json.dumps({"row": number, **row}, ensure_ascii=False) + "\n"
            for number, row in zip(numbers, rows, strict=True)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        replaced = ", replacing an earlier file" if path.exists() else ""
        write_aside(path, lambda aside: aside.write_text("".join(lines), encoding="utf-8"))
        print(f"{len(rows)} predictions written to {path}{replaced}")
        _warn_of_others(whole, set() if alone else set(range(data_ranks(trainer))))


def _of_rank(path: Path, rank: int) -> Path:
    return path.with_suffix(f".{rank}{path.suffix}")


def _row_numbers(trainer: Trainer, indices: list[int]) -> list[int]:
    """The numbers of rows in their file, if a data module has left out some."""
    loader = getattr(trainer, "predict_dataloaders", None)
    numbers = getattr(getattr(loader, "dataset", None), ROW_NUMBERS, None)
    return indices if numbers is None else numbers[indices].tolist()


def _warn_of_others(path: Path, ranks: set[int]) -> None:
    """Warn of files that runs with other numbers of processes have left beside those of this run.

    Args:
        path: of the predictions of one process.
        ranks: of this run; empty for one process.
    """
    name = re.compile(rf"{re.escape(path.stem)}\.(\d+){re.escape(path.suffix)}")
    ranked = {file: name.fullmatch(file.name) for file in path.parent.iterdir()}
    others = [file for file, match in ranked.items() if match and int(match[1]) not in ranks]
    others += [path] if ranks and path.exists() else []
    if others:
        rank_zero_warn(
            f"predictions of an earlier run remain beside those of this run: "
            f"{', '.join(sorted(file.name for file in others))}"
        )


def _flat(batches: Sequence[Any]) -> Sequence[Any]:
    """The batches of all data loaders; Lightning nests the batches of several loaders."""
    nested = (
        batches and isinstance(batches[0], list) and batches[0] and isinstance(batches[0][0], list)
    )
    return [batch for loader in batches for batch in loader] if nested else batches
