"""Predictions as JSON lines: one per row, in order, whole or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from callbacks.tiny import trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from lightning_pelt.callbacks import WritePredictions


class Echo(BoringModel):
    """Predicts the first number of each row."""

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[dict]:
        return [{"label": f"schön {dataloader_idx}", "first": row[0].item()} for row in batch]


class Stream(IterableDataset):
    """Rows without numbers."""

    def __iter__(self) -> Any:
        return iter(RandomDataset(32, 5))


def lines(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_a_line_per_row_in_order(tmp_path, capsys):
    data = RandomDataset(32, 5)
    run = trainer(tmp_path, WritePredictions())
    run.predict(Echo(), DataLoader(data, batch_size=2))
    path = tmp_path / "run" / "predictions.jsonl"  # in the logger's folder
    written = lines(path)
    assert [line["row"] for line in written] == [0, 1, 2, 3, 4]
    assert [line["first"] for line in written] == [data[i][0].item() for i in range(5)]
    assert "schön" in path.read_text(encoding="utf-8")
    assert f"5 predictions written to {path}" in capsys.readouterr().out
    assert [p.name for p in path.parent.iterdir() if "predictions" in p.name] == [path.name]


def test_another_path_and_no_logger(tmp_path):
    loader = DataLoader(RandomDataset(32, 3))
    trainer(tmp_path, WritePredictions("deep/er/out.jsonl"), logger=False).predict(Echo(), loader)
    assert len(lines("deep/er/out.jsonl")) == 3
    trainer(tmp_path, WritePredictions(), logger=False).predict(Echo(), loader)
    assert len(lines(tmp_path / "predictions.jsonl")) == 3


def test_row_numbers_are_those_of_the_data(tmp_path):
    class Backwards(SequentialSampler):
        def __iter__(self) -> Any:
            return reversed(range(len(self.data_source)))

    data = RandomDataset(32, 5)
    loader = DataLoader(data, batch_size=2, sampler=Backwards(data))
    trainer(tmp_path, WritePredictions("out.jsonl")).predict(Echo(), loader)
    written = lines("out.jsonl")
    assert [line["row"] for line in written] == [4, 3, 2, 1, 0]
    assert all(line["first"] == data[line["row"]][0].item() for line in written)


def test_several_loaders_and_streams(tmp_path):
    loaders = [DataLoader(RandomDataset(32, n), batch_size=2) for n in (3, 2)]
    trainer(tmp_path, WritePredictions("two.jsonl")).predict(Echo(), loaders)
    written = [(line["label"], line["row"]) for line in lines("two.jsonl")]
    assert written == [("schön 0", i) for i in range(3)] + [("schön 1", i) for i in range(2)]
    loader = DataLoader(Stream(), batch_size=2)
    trainer(tmp_path, WritePredictions("stream.jsonl")).predict(Echo(), loader)
    assert [line["row"] for line in lines("stream.jsonl")] == [0, 1, 2, 3, 4]


def test_a_file_for_each_process(tmp_path, capsys):
    for rank in range(2):
        run: Any = SimpleNamespace(
            log_dir=str(tmp_path), default_root_dir="", world_size=2, global_rank=rank
        )
        batches, indices = [[{"label": "a"}, {"label": "b"}]], [[rank, rank + 2]]
        module: Any = None
        WritePredictions().write_on_epoch_end(run, module, batches, indices)
    assert [line["row"] for line in lines(tmp_path / "predictions.0.jsonl")] == [0, 2]
    assert [line["row"] for line in lines(tmp_path / "predictions.1.jsonl")] == [1, 3]


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    loader = DataLoader(RandomDataset(32, 3))
    trainer(tmp_path, WritePredictions("out.jsonl"), logger=CSVLogger(tmp_path)).predict(
        Echo(), loader
    )
    before = Path("out.jsonl").read_text()
    write = Path.write_text

    def torn(path: Path, text: str, **options: Any) -> None:
        write(path, text[:20], **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", torn)
    with pytest.raises(OSError, match="No space left"):
        trainer(tmp_path, WritePredictions("out.jsonl")).predict(Echo(), loader)
    assert Path("out.jsonl").read_text() == before
    assert not list(Path().glob(".*.part"))
