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
from lightning.pytorch.strategies import DDPStrategy
from small import WORDS, bert
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from lightning_pelt.callbacks import WritePredictions
from lightning_pelt.data.profile_data import ProfileDataModule


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
            log_dir=str(tmp_path),
            default_root_dir="",
            world_size=2,
            global_rank=rank,
            strategy=DDPStrategy(),
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


def test_an_earlier_file_is_replaced_and_not_silently(tmp_path, capsys):
    for rows in (3, 2):
        loader = DataLoader(RandomDataset(32, rows))
        trainer(tmp_path, WritePredictions("out.jsonl")).predict(Echo(), loader)
    first, second = capsys.readouterr().out.strip().splitlines()
    assert first == "3 predictions written to out.jsonl"
    assert second == "2 predictions written to out.jsonl, replacing an earlier file"
    assert len(lines("out.jsonl")) == 2


@pytest.mark.parametrize(
    ("world", "others"),
    [(1, ["out.0.jsonl", "out.1.jsonl", "out.2.jsonl"]), (2, ["out.2.jsonl", "out.jsonl"])],
)
def test_files_of_a_run_with_other_processes_are_named(tmp_path, world, others):
    for name in ("out.jsonl", "out.0.jsonl", "out.1.jsonl", "out.2.jsonl", "out.x.jsonl"):
        (tmp_path / name).write_text("old")
    run: Any = SimpleNamespace(
        log_dir=str(tmp_path),
        default_root_dir="",
        world_size=world,
        global_rank=0,
        strategy=DDPStrategy(),
    )
    module: Any = None
    with pytest.warns(UserWarning, match=f"beside those of this run: {', '.join(others)}$"):
        WritePredictions(str(tmp_path / "out.jsonl")).write_on_epoch_end(
            run, module, [[{"label": "a"}]], [[0]]
        )


def word_files(folder: Path) -> dict[str, str]:
    """Files of words with labels and profiles; the third and the sixth profile are not in train."""
    rows = [{"text": word, "label": "a", "profile": f"p{i % 3}"} for i, word in enumerate(WORDS)]
    files = {"train": [row for row in rows if row["profile"] != "p2"], "predict": rows}
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    return {name: str(folder / f"{name}.jsonl") for name in files}


class Words(BoringModel):
    """Predicts the word of each row."""

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict]:
        return [{"word": WORDS[row[0] - 3]} for row in batch["input_ids"]]


@pytest.mark.parametrize("whole", [True, False])
def test_rows_that_a_data_module_leaves_out_keep_their_numbers(tmp_path, whole):
    data = ProfileDataModule(
        bert(tmp_path / "bert"), **word_files(tmp_path), max_length=32, batch_size=2, dev_share=0,
        unseen="drop", only="p0", limit_eval=3,
    )  # fmt: skip
    run = trainer(tmp_path, WritePredictions("out.jsonl"))
    run.predict(Words(), data if whole else data.predict_dataloader())
    written = lines("out.jsonl")
    assert len(written) == 3
    assert all(line["word"] == WORDS[line["row"]] and line["row"] % 3 == 0 for line in written)


@pytest.mark.slow
def test_two_processes_keep_the_numbers_of_the_file(tmp_path):
    data = ProfileDataModule(
        bert(tmp_path / "bert"), **word_files(tmp_path), max_length=32, batch_size=2, dev_share=0,
        unseen="drop",
    )  # fmt: skip
    run = trainer(tmp_path, WritePredictions("out.jsonl"), devices=2, strategy="ddp_fork")
    run.predict(Words(), data, return_predictions=False)
    written = [line for rank in range(2) for line in lines(f"out.{rank}.jsonl")]
    assert sorted(line["row"] for line in written) == [i for i in range(len(WORDS)) if i % 3 < 2]
    assert all(line["word"] == WORDS[line["row"]] for line in written)
