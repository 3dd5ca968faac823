"""Windows of texts that are longer than a model takes: where they begin, and whose a token is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


def spans(count: int, size: int, stride: int) -> list[Span]:
    """The windows of ``count`` tokens, as transformers' tokenizers divide what overflows.

    Args:
        count: number of tokens; 0 gives one empty window.
        size: maximum number of tokens of a window.
        stride: number of tokens that a window shares with the one before it, less than ``size``.

    Returns:
        First token and end of each window.

    Example:
        >>> spans(10, 5, 2)
        [(0, 5), (3, 8), (6, 10)]
    """
    windows = [(0, min(size, count))]
    while windows[-1][1] < count:
        start = windows[-1][0] + size - stride
        windows.append((start, min(start + size, count)))
    return windows


def owners(windows: Sequence[Span], count: int) -> np.ndarray:
    """Of each token, the window where it has the most context; (count,) int64.

    The context of a token is the smaller of the numbers of tokens to its left and to its right in
    the window, as in the SQuAD predictions of BERT (Devlin et al., 2019). Of equal windows it is
    the first.

    Example:
        >>> owners([(0, 5), (3, 8)], 8).tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    best, owner = np.full(count, -1), np.zeros(count, dtype=np.int64)
    for window, (start, end) in enumerate(windows):
        tokens = np.arange(start, end)
        context = np.minimum(tokens - start, end - 1 - tokens)
        more = context > best[start:end]
        best[start:end][more] = context[more]
        owner[start:end][more] = window
    return owner


def cut(tokens: Mapping[str, Sequence[Any]], content: Span, window: Span) -> dict[str, list[Any]]:
    """One window of tokenized text: all tokens around ``content``, and ``window`` of its tokens.

    Args:
        tokens: one value per token by name, such as ``input_ids``.
        content: the first token and the end of the text that is divided.
        window: first token and end, counted from the beginning of ``content``.
    """
    first, end = content
    inside = slice(first + window[0], first + window[1])
    return {
        name: [*values[:first], *values[inside], *values[end:]] for name, values in tokens.items()
    }


def check_fast(tokenizer: PreTrainedTokenizerBase, backbone: str, need: str) -> None:
    """Check that a tokenizer knows the characters of its tokens.

    Raises:
        ValueError: it is written in Python, without the library ``tokenizers``.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer of {backbone!r}, {type(tokenizer).__name__}, is not a fast one, and "
            f"only fast tokenizers know which characters a token stands for, which {need} needs: "
            "use a backbone whose folder has a tokenizer.json"
        )
