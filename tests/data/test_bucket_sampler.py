from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_pelt.data.bucket_sampler import BucketSampler, ResumableLoader


def lengths(rows: int) -> list[int]:
    return np.random.default_rng(7).integers(3, 60, rows).tolist()


def seen(sampler: BucketSampler) -> list[list[int]]:
    return list(sampler)


def flat(parts: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


def test_an_epoch_holds_every_row_once_and_follows_from_seed_and_epoch() -> None:
    def epoch(number: int, seed: int = 1) -> list[list[int]]:
        sampler = BucketSampler(lengths(103), batch_size=8, shuffle=True, seed=seed)
        sampler.set_epoch(number)
        return seen(sampler)

    assert sorted(flat(epoch(0))) == list(range(103))
    assert sorted(map(len, epoch(0))) == [7, *[8] * 12]
    assert epoch(0) == epoch(0)
    assert len({str(epoch(0)), str(epoch(1)), str(epoch(0, seed=2)), str(epoch(1, seed=2))}) == 4


def test_buckets_pad_less_than_plain_shuffling() -> None:
    size = lengths(1000)

    def padded(batches: list[list[int]]) -> int:
        return sum(len(batch) * max(size[i] for i in batch) for batch in batches)

    bucketed = padded(seen(BucketSampler(size, batch_size=10, shuffle=True)))
    plain = padded(seen(BucketSampler([1] * 1000, batch_size=10, shuffle=True)))
    assert sum(size) <= bucketed < 1.15 * sum(size) < 1.5 * sum(size) < plain


@pytest.mark.parametrize("rows", [96, 97, 103, 5, 1])
@pytest.mark.parametrize("replicas", [2, 3])
def test_ranks_share_the_batches_of_one_process(rows: int, replicas: int) -> None:
    def batches(size: int, world: int, rank: int) -> list[list[int]]:
        sampler = BucketSampler(
            lengths(rows), batch_size=size, shuffle=True, num_replicas=world, rank=rank
        )
        sampler.set_epoch(3)
        assert len(seen(sampler)) == len(sampler)
        return seen(sampler)

    whole = batches(4 * replicas, 1, 0)
    shares = [batches(4, replicas, rank) for rank in range(replicas)]
    for step, expected in enumerate(whole):
        parts = [share[step] for share in shares]
        assert set(flat(parts)) == set(expected)
        assert len({len(part) for part in parts}) == 1
        if len(expected) % replicas == 0:
            assert sorted(flat(parts)) == sorted(expected)
    assert {len(share) for share in shares} == {len(whole)}


@pytest.mark.parametrize(("rows", "size", "replicas"), [(100, 8, 1), (101, 8, 2), (17, 8, 2)])
def test_evaluation_sees_every_row_once_in_as_many_steps_on_each_rank(
    rows: int, size: int, replicas: int
) -> None:
    ranks = [
        seen(
            BucketSampler(
                lengths(rows), batch_size=size, shuffle=False, num_replicas=replicas, rank=rank
            )
        )
        for rank in range(replicas)
    ]
    assert sorted(flat(map(flat, ranks))) == list(range(rows))
    assert len({len(rank) for rank in ranks}) == 1
    assert all(0 < len(batch) <= size for rank in ranks for batch in rank)


def test_evaluation_without_lengths_keeps_the_order() -> None:
    batches = seen(BucketSampler([1] * 10, batch_size=4, shuffle=False))
    assert flat(batches) == list(range(10))


def test_a_batch_of_fewer_rows_than_ranks_repeats_one() -> None:
    ranks = [
        seen(BucketSampler([5], batch_size=4, shuffle=False, num_replicas=2, rank=rank))
        for rank in range(2)
    ]
    assert ranks == [[[0]], [[0]]]


class Rows(Dataset):
    """Row i is i; a list of row numbers gives the column, as in the ``datasets`` library."""

    def __len__(self) -> int:
        return 26

    def __getitem__(self, index: int | list[int]) -> torch.Tensor:
        return torch.tensor(index)


class Numbers(LightningDataModule):
    def __init__(self, batch_size: int = 4, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers

    def train_dataloader(self) -> DataLoader:
        sampler = BucketSampler(lengths(26), batch_size=self.batch_size, shuffle=True, seed=5)
        loader = ResumableLoader(
            Rows(), sampler=sampler, batch_size=None, num_workers=self.num_workers
        )
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current
        loader.position = lambda: (self.trainer.current_epoch, batches.ready)
        return loader

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Rows(), batch_size=13)


class Recorder(LightningModule):
    """Records the rows of each training step."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.fail_at = fail_at
        self.seen: dict[int, list[int]] = {}

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.global_step == self.fail_at:
            raise RuntimeError("power cut")
        self.seen[self.global_step] = batch.tolist()
        return (self.weight * batch).mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    module: Recorder, data: Numbers, *callbacks: Callback, ckpt: str = "", **options: object
) -> dict[int, list[int]]:
    trainer = Trainer(
        **{"max_epochs": 3, **options},
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data, ckpt_path=ckpt or None)
    return module.seen


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"max_steps": 18}, {"val_check_interval": 3}])
def test_a_run_resumed_after_any_step_sees_the_batches_it_would_have_seen(
    tmp_path: Path, options: dict[str, int]
) -> None:
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(Recorder(), Numbers(), every, **options)
    steps = 7 * 3 if not options.get("max_steps") else 18
    assert sorted(whole) == list(range(steps))
    for step in range(1, steps):
        rest = fit(Recorder(), Numbers(), ckpt=str(tmp_path / f"step={step}.ckpt"), **options)
        assert rest == {i: whole[i] for i in range(step, steps)}, f"resumed after step {step}"


def test_a_checkpoint_of_an_epochs_end_resumes_with_the_next_epoch(tmp_path: Path) -> None:
    ends = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = fit(Recorder(), Numbers(), ends)
    rest = fit(Recorder(), Numbers(), ckpt=str(tmp_path / "epoch=0.ckpt"))
    assert rest == {i: whole[i] for i in range(7, 21)}


def test_a_batch_that_failed_is_taken_again(tmp_path: Path) -> None:
    whole = fit(Recorder(), Numbers())
    crash = ModelCheckpoint(tmp_path, filename="crash", save_on_exception=True)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(Recorder(fail_at=10), Numbers(), crash)
    (saved,) = tmp_path.glob("*crash*.ckpt")
    rest = fit(Recorder(), Numbers(), ckpt=str(saved))
    assert rest == {i: whole[i] for i in range(10, 21)}


@pytest.mark.parametrize("options", [{}, {"limit_val_batches": 0}])
def test_the_default_checkpoint_of_a_run_limited_by_steps(
    tmp_path: Path, options: dict[str, int]
) -> None:
    """Lightning goes through the end of the epoch once more, and counts it twice."""
    options = {"max_steps": 21, "max_epochs": -1, **options}
    ends = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    whole = fit(Recorder(), Numbers(), ends, **options)
    rest = fit(Recorder(), Numbers(), ckpt=str(tmp_path / "step=7.ckpt"), **options)
    assert rest == {i: whole[i] for i in range(7, 21)}


class Beside(Numbers):
    """Two loaders in one; the shorter one starts again within an epoch of the longer one."""

    def train_dataloader(self) -> CombinedLoader:
        other = DataLoader(range(17))
        return CombinedLoader([super().train_dataloader(), other], "max_size_cycle")


class Pairs(Recorder):
    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return super().training_step(batch[0], batch_idx)


@pytest.mark.parametrize("step", [5, 9, 16])
def test_a_loader_that_starts_again_within_an_epoch(tmp_path: Path, step: int) -> None:
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(Pairs(), Beside(), every, max_epochs=1)
    rest = fit(Pairs(), Beside(), ckpt=str(tmp_path / f"step={step}.ckpt"), max_epochs=1)
    assert len(whole) == 17
    assert rest == {i: whole[i] for i in range(step, 17)}


def test_others_may_iterate_over_the_loader_of_a_resumed_run(tmp_path: Path) -> None:
    """They get whole epochs, and the run its remaining batches."""
    counts = []

    class Counts(Callback):
        def on_train_start(self, trainer: Trainer, *args: object) -> None:
            counts.append(len(list(trainer.train_dataloader)))

        on_train_epoch_end = on_train_start

    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(Recorder(), Numbers(), every, max_epochs=1)
    checkpoint = str(tmp_path / "step=3.ckpt")
    rest = fit(Recorder(), Numbers(), Counts(), ckpt=checkpoint, max_epochs=1)
    assert rest == {i: whole[i] for i in range(3, 7)}
    assert counts == [7, 7]


@pytest.mark.slow
def test_workers_do_not_change_the_batches(tmp_path: Path) -> None:
    half = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(Recorder(), Numbers(), half)
    rest = fit(Recorder(), Numbers(num_workers=1), ckpt=str(tmp_path / "step=9.ckpt"))
    assert rest == {i: whole[i] for i in range(9, 21)}


def test_a_loader_without_a_trainer_counts_batches_from_zero_in_each_epoch() -> None:
    def loader() -> ResumableLoader:
        sampler = BucketSampler(lengths(26), batch_size=4, shuffle=True)
        return ResumableLoader(Rows(), sampler=sampler, batch_size=None)

    first, second = loader(), loader()
    batches = [batch.tolist() for batch in first]
    running = iter(first)
    for _ in range(3):
        next(running)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == {"epoch": 0, "batches": 3, "global_batch_size": 4, "rows": 26}
    assert [batch.tolist() for batch in second] == batches[3:]
    assert [batch.tolist() for batch in second] == batches
    second.sampler.set_epoch(1)
    assert second.state_dict()["batches"] == 0


def test_another_global_batch_size_warns(tmp_path: Path) -> None:
    half = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(Recorder(), Numbers(), half, max_epochs=1)
    with pytest.warns(UserWarning, match=r"global_batch_size 8, but the checkpoint had 4"):
        fit(Recorder(), Numbers(batch_size=8), ckpt=str(tmp_path / "step=2.ckpt"), max_epochs=1)
