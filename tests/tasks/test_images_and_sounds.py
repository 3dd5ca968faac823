"""Tasks of images and sounds: tiny models learn colours, pitches and words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jiwer
import media
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lightning_pelt import Adapter, LoRA, PELTModule, Plan, UniPELT
from lightning_pelt.data import LabelledAudio, LabelledImages, TranscribedAudio
from lightning_pelt.methods.config import rebuild
from lightning_pelt.tasks import AudioClassification, ImageClassification, SpeechRecognition, Task
from lightning_pelt.tasks.base import LOWER_IS_BETTER
from lightning_pelt.utils.backbone import load_tokenizer


def fit(module: PELTModule, data: Any, epochs: int) -> tuple[Trainer, dict[str, float]]:
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return trainer, dict(trainer.test(module, data, verbose=False)[0])


@pytest.mark.slow
def test_colours_are_learned(tmp_path: Path) -> None:
    seed_everything(0)
    backbone = media.vit(tmp_path / "vit")
    train, test = media.images(tmp_path / "train"), media.images(tmp_path / "test", seed=1)
    data = LabelledImages(backbone, train=train, test=test, batch_size=8)
    module = PELTModule(backbone, UniPELT(), ImageClassification(), labels=data.labels, lr=1e-2)
    trainer, scores = fit(module, data, 6)
    assert scores["test/accuracy"] == 1
    first = trainer.predict(module, data)[0][0]
    assert first["label"] == "blue"
    assert set(first["probabilities"]) == {"blue", "red"}


@pytest.mark.slow
def test_pitches_are_learned(tmp_path: Path) -> None:
    seed_everything(0)
    backbone = media.wav2vec2(tmp_path / "wav2vec2")
    train, test = media.sounds(tmp_path / "train"), media.sounds(tmp_path / "test", seed=1)
    data = LabelledAudio(backbone, train=train, test=test, batch_size=8)
    module = PELTModule(backbone, UniPELT(), AudioClassification(), labels=data.labels, lr=1e-2)
    _, scores = fit(module, data, 15)
    assert scores["test/accuracy"] >= 0.9


@pytest.mark.slow
def test_words_are_learned(tmp_path: Path) -> None:
    seed_everything(0)
    backbone = media.whisper(tmp_path / "whisper")
    train = media.speech(tmp_path / "train", count=32)
    test = media.speech(tmp_path / "test", seed=1)
    data = TranscribedAudio(backbone, train=train, test=test, batch_size=8)
    task = SpeechRecognition(max_new_tokens=8, generate_in_validation=False)
    plan = Plan.uniform(LoRA(r=4), Adapter())
    trainer, scores = fit(PELTModule(backbone, plan, task, lr=2e-2), data, 30)
    assert scores["test/wer"] <= 0.1
    assert "val/wer" not in trainer.callback_metrics
    assert trainer.callback_metrics["test/perplexity"] < 1.5


class Heard(SpeechRecognition):
    """Hears what the test says."""

    def texts(self, model: Any, batch: Any, tokenizer: Any) -> list[str]:
        return ["Low, high high", "low"]


@pytest.mark.parametrize("normalise", [True, False])
def test_error_rates_agree_with_jiwer(tmp_path: Path, normalise: bool) -> None:
    tokenizer = load_tokenizer(media.whisper(tmp_path / "whisper"))
    labels = tokenizer(["low high", "high low"], return_tensors="pt")["input_ids"]
    task = Heard(metrics=("wer", "cer"), normalise=normalise)
    metrics = task.build_metrics()
    outputs = type("Outputs", (), {"loss": torch.tensor(0.5)})
    task.update(metrics, None, {"labels": labels}, outputs, tokenizer=tokenizer)  # type: ignore[arg-type]
    found = metrics.compute()
    targets = ["low high", "high low"]
    guesses = ["low high high" if normalise else "Low, high high", "low"]
    assert found["wer"] == pytest.approx(jiwer.wer(targets, guesses))
    assert found["cer"] == pytest.approx(jiwer.cer(targets, guesses))
    assert found["perplexity"] == pytest.approx(torch.tensor(0.5).exp())


@pytest.mark.parametrize("task", [ImageClassification(), AudioClassification()])
def test_options_are_those_of_classification(task: Task) -> None:
    assert rebuild(task.to_config()) == task
    assert (task.monitor, task.mode, task.reads_text) == ("accuracy", "max", False)


def test_fewer_errors_are_better() -> None:
    assert {"wer", "cer"} <= LOWER_IS_BETTER
    assert SpeechRecognition(metrics=("cer", "wer")).mode == "min"
    assert SpeechRecognition(generate_in_validation=False).monitor == "perplexity"
    with pytest.raises(ValueError, match="unknown metric 'were': did you mean 'wer'"):
        SpeechRecognition(metrics=("were",))
