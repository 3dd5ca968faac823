"""Sounds with their words, in tables or data sets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from lightning_pelt.data._columns import Column, Text
from lightning_pelt.data._media_files import name_of
from lightning_pelt.data._sounds import SUFFIXES
from lightning_pelt.data.audio import AudioBatch, milliseconds, positive
from lightning_pelt.data.collator import IGNORED
from lightning_pelt.data.media import MediaDataModule
from lightning_pelt.utils.backbone import load_tokenizer, resolve_backbone
from lightning_pelt.utils.processors import load_feature_extractor


class TranscribedAudio(MediaDataModule):
    """Sounds with their words, for speech recognition with an encoder-decoder such as Whisper.

    A batch has ``input_features`` (B, features, frames) as the backbone's feature extractor makes
    them, and ``labels`` (B, T): the tokens of the words with the special tokens that the tokenizer
    puts around them, and -100 on padding. Rows to predict need no words.

    Args:
        backbone: hub id or folder whose feature extractor and tokenizer are used.
        text: name of the column of the words.
        language: of the words, for multilingual backbones ("english"); the same as in
            :class:`lightning_pelt.SpeechRecognition`.
        max_seconds: the longest sound. Longer ones are refused, since their words would remain.
        max_target_length: the most tokens of the words. Longer ones are refused.
        **places: see :class:`MediaDataModule` (file, train, dev, test, predict, dataset, ...). A
            folder of files can only be predicted.

    Raises:
        ValueError: ``max_seconds`` is not positive. A row that is too long raises in ``setup``.

    Example::

        data = TranscribedAudio("openai/whisper-tiny.en", train="train.csv", file="path")
    """

    suffixes: ClassVar[frozenset[str]] = SUFFIXES
    labelled: ClassVar[bool] = False

    def __init__(
        self,
        backbone: str,
        *,
        text: str = "text",
        language: str | None = None,
        max_seconds: float = 30.0,
        max_target_length: int = 448,
        **places: Any,
    ) -> None:
        super().__init__(backbone, **places)
        self.text = text
        self.language = language
        self.max_seconds = positive(max_seconds)
        self.max_target_length = max_target_length

    def target(self, split: str) -> Column:
        """The column of the words."""
        return Column(self.text, Text())

    def setup(self, stage: str) -> None:
        """Read the splits of ``stage``, and check that sounds and words are not too long."""
        super().setup(stage)
        for split in self.stage_splits(stage):
            self._check(split)

    def lengths(self, split: str) -> np.ndarray:
        """The duration of each sound in milliseconds."""
        return milliseconds(self.rows(split), desc=f"durations of {split}")

    def collate(self) -> SpeechBatch:
        """Decodes sounds, and gives them and their words to extractor and tokenizer."""
        return SpeechBatch(
            self.extractor, self.tokenizer, start=self._start, max_seconds=self.max_seconds
        )

    @cached_property
    def extractor(self) -> Any:
        """The feature extractor of the backbone."""
        return load_feature_extractor(self.backbone)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer; it writes the tokens of ``language`` before the words.

        Raises:
            ValueError: a language is given, and the tokenizer has none, or not that one.
        """
        tokenizer = load_tokenizer(self.backbone)
        if self.language is not None:
            choose = getattr(tokenizer, "set_prefix_tokens", None)
            if choose is None:
                raise ValueError(
                    f"language is {self.language!r}, but the tokenizer of {self.backbone!r} has no "
                    "languages: omit it"
                )
            choose(language=self.language, task="transcribe")
        return tokenizer

    @cached_property
    def _start(self) -> int | None:
        """The token from which the decoder starts; the model puts it before the labels."""
        config = AutoConfig.from_pretrained(resolve_backbone(self.backbone))
        return getattr(config, "decoder_start_token_id", None)

    def _check(self, split: str) -> None:
        rows = self.rows(split)
        longest = int(np.argmax(self.lengths(split)))
        seconds = self.lengths(split)[longest] / 1000
        name = name_of(rows[longest]["file"])
        if seconds > self.max_seconds:
            raise ValueError(
                f"{name} takes {seconds:g} seconds, and max_seconds is {self.max_seconds:g}: cut "
                "it with its words, or raise max_seconds if the backbone reads longer sounds"
            )
        if "label" not in rows.column_names:
            return
        lengths = [len(ids) for ids in self.tokenizer(rows["label"][:])["input_ids"]]
        longest = int(np.argmax(lengths))
        if lengths[longest] > self.max_target_length:
            raise ValueError(
                f"the words of {name_of(rows[longest]['file'])} are {lengths[longest]} tokens, and "
                f"max_target_length is {self.max_target_length}: cut the sound and its words"
            )


class SpeechBatch(AudioBatch):
    """A batch of sounds with their words.

    Args:
        extractor: a feature extractor of transformers.
        tokenizer: of the words.
        start: token that the model puts before the labels, and that the tokenizer may put there
            too.
        max_seconds: the longest sound.
    """

    def __init__(
        self,
        extractor: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        start: int | None,
        max_seconds: float,
    ) -> None:
        super().__init__(extractor, max_seconds=max_seconds)
        self.tokenizer = tokenizer
        self.start = start

    def targets(self, values: Sequence[Any]) -> Tensor:
        """The tokens of the words, (B, T) int64, with -100 on padding."""
        rows = [self._tokens(ids) for ids in self.tokenizer(list(values))["input_ids"]]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)

    def _tokens(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids[1:] if ids[:1] == [self.start] else ids)
