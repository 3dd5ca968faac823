"""Fixtures: a cache of data sets for each test, and tokenizers."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase

import datasets
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


@pytest.fixture(autouse=True)
def _own_cache(_isolated: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def minilm() -> str:
    return "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def words(tmp_path: Path) -> str:
    """A tokenizer of whole words with known ids: <s> 0, </s> 1, a 2, b 3, ... z 27.

    It puts <s> before a text; padding is the end-of-text token.
    """
    ids = {token: i for i, token in enumerate(["<s>", "</s>", *ascii_lowercase])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="z"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    folder = tmp_path / "words"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=128
    ).save_pretrained(folder)
    return str(folder)
