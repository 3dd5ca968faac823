"""The part of a configuration that describes the words of a model."""

from __future__ import annotations

from transformers import PreTrainedConfig


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the words; ``config`` itself where several parts read words (MusicGen).

    Example:
        >>> from transformers import BertConfig
        >>> config = BertConfig()
        >>> text_config(config) is config
        True
    """
    try:
        return config.get_text_config()
    except ValueError:
        return config
