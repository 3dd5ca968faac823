"""A trained model with its store of profiles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from profiles.serving.cases import PEOPLE, TEXTS
from small import LABELS, bert

from lightning_pelt import XPEFT, PELTModule, Plan, ProfileServer, ProfileStore, RandomBank
from lightning_pelt.data import ProfileDataModule
from lightning_pelt.profiles import read_profile
from lightning_pelt.profiles.serving.loading import load_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoint and store of a fit of two steps."""
    folder = tmp_path_factory.mktemp("http")
    rows = [
        {"text": text, "label": LABELS[i % 3], "profile": name}
        for i, text in enumerate(TEXTS)
        for name in PEOPLE
    ]
    table = folder / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    method = XPEFT(
        bank=RandomBank(size=20), k=5, scale=8.0, bottleneck=4, profiles=5, head="profile"
    )
    module = PELTModule(bert(folder / "bert"), Plan.uniform(method), labels=LABELS, lr=0.1)
    data = ProfileDataModule(
        str(folder / "bert"), train=str(table), labels=LABELS, max_length=16, dev_share=0
    )
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(folder / "fit.ckpt")
    with ProfileStore(folder / "profiles.db") as store:
        store.put_many((name, read_profile(module, n)) for n, name in enumerate(PEOPLE))
    return folder / "fit.ckpt", folder / "profiles.db"


@pytest.fixture(scope="module")
def in_process(trained: tuple[Path, Path]) -> Iterator[ProfileServer]:
    """The model and the store, without HTTP."""
    with ProfileStore(trained[1]) as store:
        yield ProfileServer(load_model(trained[0]), store)


@pytest.fixture
def metrics_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the metrics of a test are; later tests are not told."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    return str(folder)
