"""Sounds of folders and tables, with labels or words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import media
import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import resample_poly

from lightning_pelt.data import LabelledAudio, TranscribedAudio, _sounds


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return media.wav2vec2(tmp_path_factory.mktemp("wav2vec2"))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> str:
    return media.whisper(tmp_path_factory.mktemp("whisper"))


def wave(path: Path, samples: np.ndarray, rate: int = media.RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def labelled(backbone: str, **options: Any) -> LabelledAudio:
    return LabelledAudio(backbone, **{"dev_share": 0, **options})


def batch(found: Any, split: str = "train") -> dict[str, torch.Tensor]:
    return found.collate()(found.examples(split)[:4])


class TestWaves:
    def test_channels_are_averaged(self, tmp_path: Path) -> None:
        stereo = np.stack([np.full(80, 0.5), np.full(80, -0.25)], axis=1)
        found = _sounds.read_wave(str(wave(tmp_path / "a.wav", stereo)), media.RATE)
        np.testing.assert_allclose(found, np.full(80, 0.125))

    @pytest.mark.parametrize(("rate", "factors"), [(16000, (1, 2)), (44100, (80, 441))])
    def test_other_rates_are_resampled(
        self, tmp_path: Path, rate: int, factors: tuple[int, int]
    ) -> None:
        tone = media.tone("low", seconds=0.1, rate=rate)
        found = _sounds.read_wave(str(wave(tmp_path / "a.wav", tone, rate)), 8000)
        np.testing.assert_allclose(found, resample_poly(tone, *factors), atol=1e-6)
        assert len(found) == 800

    def test_a_tone_keeps_its_pitch(self, tmp_path: Path) -> None:
        tone = media.tone("high", seconds=0.5, rate=44100)
        found = _sounds.read_wave(str(wave(tmp_path / "a.wav", tone, 44100)), 8000)
        peak = np.abs(np.fft.rfft(found)).argmax() * 8000 / len(found)
        assert peak == pytest.approx(media.TONES["high"], abs=2)

    @pytest.mark.parametrize("rate", [8_000, 22_050, 48_000, 44_101])
    def test_a_part_is_that_of_the_whole(self, tmp_path: Path, rate: int) -> None:
        samples = np.random.default_rng(0).uniform(-0.5, 0.5, rate)
        path = str(wave(tmp_path / "a.wav", samples, rate))
        whole, part = (_sounds.read_wave(path, media.RATE, seconds=s) for s in (None, 0.25))
        assert len(part) == media.RATE // 4
        np.testing.assert_allclose(part, whole[: len(part)], atol=1e-6)

    def test_rates_without_a_common_factor(self, tmp_path: Path) -> None:
        """SciPy's filter for the exact ratio has a million taps; the sounds are the same."""
        rate = 49_999  # prime
        samples = np.sin(np.arange(2_000) / 50)
        found = _sounds.read_wave(str(wave(tmp_path / "a.wav", samples, rate)), media.RATE)
        exact = resample_poly(samples, media.RATE, rate)
        np.testing.assert_allclose(found, exact[: len(found)], atol=2e-3)

    @pytest.mark.parametrize("rate", [1, 99, 10_000_001, 2**31 - 1])
    def test_the_rate_of_no_sound(self, tmp_path: Path, rate: int) -> None:
        path = wave(tmp_path / "a.wav", np.zeros(80))
        content = bytearray(path.read_bytes())
        content[24:28] = rate.to_bytes(4, "little")  # of the format of a WAV file
        path.write_bytes(content)
        refused = f"its rate is {rate} Hz, expected 100 to 10,000,000"
        with pytest.raises(ValueError, match=refused):
            _sounds.read_wave(str(path), media.RATE)
        with pytest.raises(ValueError, match=refused):
            _sounds.duration(str(path))

    @pytest.mark.parametrize(
        ("samples", "cause"), [([], "no samples"), ([0.0, np.nan], "NaN or infinite")]
    )
    def test_waves_without_a_sound(self, tmp_path: Path, samples: list[float], cause: str) -> None:
        path = wave(tmp_path / "a.wav", np.array(samples, np.float32))
        with pytest.raises(ValueError, match=cause):
            _sounds.read_wave(str(path), media.RATE)


class TestLabelled:
    def test_waves_are_padded_with_a_mask(self, wav2vec2: str, tmp_path: Path) -> None:
        wave(tmp_path / "a" / "1.wav", np.ones(300))
        wave(tmp_path / "b" / "1.wav", media.tone("low", seconds=0.05))
        found = labelled(wav2vec2, train=str(tmp_path))
        made = batch(found)
        assert made["input_values"].shape == (2, 400)
        assert made["attention_mask"].sum(1).tolist() == [300, 400]
        assert made["labels"].tolist() == [0, 1]

    def test_long_sounds_are_cut(self, wav2vec2: str, tmp_path: Path) -> None:
        wave(tmp_path / "a" / "1.wav", media.tone("low", seconds=0.5))
        wave(tmp_path / "b" / "1.wav", media.tone("low", seconds=0.1))
        found = labelled(wav2vec2, train=str(tmp_path), max_seconds=0.2)
        assert batch(found)["input_values"].shape == (2, 1600)
        assert found.lengths("train").tolist() == [200, 100]

    def test_a_damaged_sound_is_named(self, wav2vec2: str, tmp_path: Path) -> None:
        path = tmp_path / "a" / "1.wav"
        path.parent.mkdir()
        path.write_bytes(b"RIFF")
        with pytest.raises(ValueError, match=r"1\.wav cannot be decoded"):
            labelled(wav2vec2, train=str(tmp_path)).lengths("train")

    def test_bad_options(self, wav2vec2: str) -> None:
        with pytest.raises(ValueError, match="max_seconds is 0, expected a positive number"):
            labelled(wav2vec2, train="x", max_seconds=0)


class TestTranscribed:
    def test_labels_are_the_words_without_the_start(self, whisper: str, tmp_path: Path) -> None:
        wave(tmp_path / "1.wav", media.tone("low", seconds=0.3))
        (tmp_path / "rows.csv").write_text("file,text\n1.wav,low high\n1.wav,low\n")
        made = batch(TranscribedAudio(whisper, train=str(tmp_path / "rows.csv"), dev_share=0))
        low, high, end = 4, 5, 1
        assert made["labels"].tolist() == [[low, high, end], [low, end, -100]]
        assert made["input_features"].shape == (2, 8, 100)

    def test_a_sound_that_is_too_long(self, whisper: str, tmp_path: Path) -> None:
        wave(tmp_path / "1.wav", media.tone("low", seconds=0.3))
        (tmp_path / "rows.csv").write_text("file,text\n1.wav,low\n")
        options = {"train": str(tmp_path / "rows.csv"), "dev_share": 0}
        with pytest.raises(ValueError, match=r"1\.wav takes 0\.3 seconds, and max_seconds is 0\.2"):
            TranscribedAudio(whisper, max_seconds=0.2, **options).setup("fit")
        with pytest.raises(ValueError, match=r"1\.wav are 3 tokens, and max_target_length is 2"):
            TranscribedAudio(whisper, max_target_length=2, **options).setup("fit")

    def test_a_language_that_the_tokenizer_lacks(self, whisper: str, tmp_path: Path) -> None:
        wave(tmp_path / "1.wav", media.tone("low", seconds=0.3))
        (tmp_path / "rows.csv").write_text("file,text\n1.wav,low\n")
        found = TranscribedAudio(
            whisper, train=str(tmp_path / "rows.csv"), language="english", dev_share=0
        )
        with pytest.raises(ValueError, match=r"'english', but the tokenizer .* has no languages"):
            found.setup("fit")

    def test_a_folder_has_no_words(self, whisper: str, tmp_path: Path) -> None:
        train = media.sounds(tmp_path / "train", count=1)
        with pytest.raises(ValueError, match="unknown column 'text'"):
            TranscribedAudio(whisper, train=train).setup("fit")
