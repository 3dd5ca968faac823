"""The tokens at which a backbone stops to generate."""

from __future__ import annotations

from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from lightning_pelt.utils.backbone import resolve_backbone


def stop_tokens(backbone: str, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The end-of-text token of the tokenizer, and those of the generation configuration."""
    given = _generation_config(resolve_backbone(backbone)).eos_token_id
    ids = given if isinstance(given, list) else [given]
    return {i for i in (*ids, tokenizer.eos_token_id) if i is not None}


def _generation_config(folder: str) -> GenerationConfig:
    """The configuration that a model of the backbone has, from its files alone."""
    try:
        return GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError):
        pass
    try:
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
    except (OSError, ValueError):  # a folder with a tokenizer alone
        return GenerationConfig()
