"""Masked tokens that follow from a seed, the epoch and the row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from lightning_pelt.data.bucket_sampler import BucketSampler
from lightning_pelt.data.collator import IGNORED

WORDS = "words"  # column of examples: the number of each token's word
ATTEMPTS = 100  # to draw a mask for a row; at 0.15 two tokens go without one with 1e-14


class Masking:
    """Chooses tokens and hides them, as transformers' ``DataCollatorForLanguageModeling`` does.

    Of the chosen tokens 80 % become the mask token, 10 % a random token, and 10 % stay as they are
    (Devlin et al., 2019, section 3.1). Whole words all become mask tokens. A row for which no token
    is chosen is drawn again, so that short rows are trained too; special tokens are never chosen.

    Args:
        tokenizer: with a mask token.
        probability: of each token, or word, to be chosen.
        whole_words: whether all tokens of a word are chosen together.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, probability: float, whole_words: bool
    ) -> None:
        self.whole_words = whole_words
        self.collator = DataCollatorForLanguageModeling(
            tokenizer,
            mlm_probability=probability,
            whole_word_mask=whole_words,
            mask_replace_prob=1.0 if whole_words else 0.8,
            random_replace_prob=0.0 if whole_words else 0.1,
        )
        self.special = torch.tensor(sorted(set(tokenizer.all_special_ids)))

    def __call__(
        self, ids: Sequence[int], words: Sequence[int], seed: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """The tokens of a row after masking, and its labels: -100 except for chosen tokens."""
        state = np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)
        self.collator.generator = torch.Generator().manual_seed(int(state[0]))
        inputs = torch.tensor([ids])
        options: dict[str, Tensor] = {"special_tokens_mask": torch.isin(inputs, self.special)}
        if self.whole_words:
            options["offset_mapping"] = _offsets(words)
        tries = 1 if bool(options["special_tokens_mask"].all()) else ATTEMPTS
        for _ in range(tries):
            masked, labels = self.collator.torch_mask_tokens(inputs.clone(), **options)
            if bool((labels != IGNORED).any()):
                break
        return masked[0].tolist(), labels[0].tolist()


def _offsets(words: Sequence[int]) -> Tensor:
    """Places (1, T, 2) of tokens in a text, in which only tokens of one word touch."""
    starts = torch.arange(len(words)) + torch.tensor(words)
    return torch.stack([starts, starts + 1], -1)[None]


class MaskedRows(TorchDataset):
    """Rows whose masks are drawn when they are read.

    An index is a number of a row, or an epoch and the numbers of the rows of a batch, as
    :class:`EpochSampler` gives them, which processes of a loader cannot know otherwise.

    Args:
        rows: with ``input_ids``, ``attention_mask`` and ``words``.
        masking: draws the masks.
        seed: of the masks.
        fixed: whether all epochs have the same masks.
    """

    def __init__(self, rows: Dataset, masking: Masking, *, seed: int, fixed: bool) -> None:
        self.rows, self.masking, self.seed, self.fixed = rows, masking, seed, fixed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, list[int]]) -> dict[str, Any]:
        epoch, numbers = key if isinstance(key, tuple) else (0, [key])
        columns = self.rows[list(numbers)]
        seeds = [(self.seed, 0 if self.fixed else epoch, number) for number in numbers]
        masked = [
            self.masking(ids, words, seed)
            for ids, words, seed in zip(columns["input_ids"], columns[WORDS], seeds, strict=True)
        ]
        batch = {
            "input_ids": [ids for ids, _ in masked],
            "attention_mask": columns["attention_mask"],
            "labels": [labels for _, labels in masked],
        }
        return batch if isinstance(key, tuple) else {name: v[0] for name, v in batch.items()}


class EpochSampler(BucketSampler):
    """A :class:`BucketSampler` that says with each batch which epoch it belongs to.

    Example:
        >>> list(EpochSampler([1, 1, 1], batch_size=2, shuffle=False))
        [(0, [0, 1]), (0, [2])]
    """

    def __iter__(self) -> Iterator[Any]:
        return ((self.epoch, rows) for rows in super().__iter__())
