"""Tiny backbones of images and sounds on disk, and files for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

RATE = 8000  # samples per second of the backbones
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}
TONES = {"low": 300, "high": 1500}  # Hz
WORDS = ["<pad>", "<end>", "<start>", "<unk>", *TONES]


def vit(folder: Path) -> str:
    """A ViT of two blocks, 16 wide, for images of 16 x 16 pixels."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        initializer_range=0.3,
    )
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    return _save(ViTModel, config, processor, folder)


def wav2vec2(folder: Path) -> str:
    """A wav2vec 2.0 of two blocks, 16 wide, that reads waves of 8 kHz with a mask."""
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16, 16),
        conv_kernel=(8, 8),
        conv_stride=(8, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        classifier_proj_size=16,
        mask_time_prob=0.0,
        initializer_range=0.2,
    )
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    return _save(Wav2Vec2Model, config, extractor, folder)


def whisper(folder: Path) -> str:
    """A Whisper of two and two blocks, 16 wide, for one second, with a tokenizer of whole words."""
    config = WhisperConfig(
        vocab_size=len(WORDS),
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=8,
        max_source_positions=50,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=2,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        init_std=0.3,
    )
    extractor = WhisperFeatureExtractor(
        feature_size=8, sampling_rate=RATE, chunk_length=1, hop_length=80
    )
    _save(WhisperForConditionalGeneration, config, extractor, folder)
    _words().save_pretrained(folder)
    GenerationConfig(
        decoder_start_token_id=2, eos_token_id=1, pad_token_id=0, is_multilingual=False
    ).save_pretrained(folder)
    return str(folder)


def _words() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        bos_token="<start>",
        unk_token="<unk>",
    )


def _save(kind: Any, config: Any, processor: Any, folder: Path) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        kind(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def images(folder: Path, *, count: int = 8, seed: int = 0) -> str:
    """A folder with a folder of noisy images for each colour, of different sizes."""
    draw = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shape = (*draw.integers(16, 40, 2), 3)
            pixels = np.clip(np.array(colour) + draw.normal(0, 20, shape), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return str(folder)


def tone(name: str, *, seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """A noisy sine, (samples,) fp32."""
    draw = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * TONES[name] * time + draw.uniform(0, 6))
    return (wave + draw.normal(0, 0.02, len(time))).astype(np.float32)


def sounds(folder: Path, *, count: int = 8, seed: int = 0) -> str:
    """A folder with a folder of tones for each pitch, of different lengths and rates."""
    draw = np.random.default_rng(seed)
    for name in TONES:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            rate = int(draw.choice([8000, 16000]))
            wave = tone(
                name, seconds=draw.uniform(0.3, 0.6), rate=rate, seed=int(draw.integers(1e6))
            )
            soundfile.write(folder / name / f"{i}.wav", wave, rate)
    return str(folder)


def speech(folder: Path, *, count: int = 12, seed: int = 0) -> str:
    """A CSV file of sounds of one or two tones and of their words; returns its path."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = ["file,text"]
    for i in range(count):
        words = [str(word) for word in draw.choice(list(TONES), size=2)]
        parts = [tone(word, seconds=0.4, seed=100 * i + j) for j, word in enumerate(words)]
        soundfile.write(folder / f"{i}.wav", np.concatenate(parts), RATE)
        rows.append(f"{i}.wav,{' '.join(words)}")
    (folder / "rows.csv").write_text("\n".join(rows) + "\n")
    return str(folder / "rows.csv")
