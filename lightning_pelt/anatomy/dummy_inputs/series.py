"""Time series, and the states, actions and rewards of an agent."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from lightning_pelt.anatomy.dummy_inputs.noise import noise, ones
from lightning_pelt.anatomy.dummy_inputs.part import Part

STEPS = 5


def series(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """The arguments that hold a time series, the likeliest form first."""
    part = Part(model)
    if "past_values" in part.accepted:
        length = part.entry("context_length", default=64)
        count = part.entry("num_input_channels", "input_size", default=1)
        if "past_time_features" in part.accepted:
            yield _with_times(part, length, count)
        shapes = [(1, length, count), (1, length)]
        if "past_values_padding" in part.accepted:
            shapes.reverse()
        for shape in shapes:
            yield {"past_values": noise(*shape), **_marks(part, length)}
    elif "states" in part.accepted:
        yield _episode(part)


def _marks(part: Part, length: int) -> dict[str, Tensor]:
    """What is real of a series, and the kind of its frequency."""
    marks = {}
    if "past_values_padding" in part.accepted:
        marks["past_values_padding"] = torch.zeros(1, length, dtype=torch.long)
    if "freq" in part.accepted:
        marks["freq"] = torch.zeros(1, 1, dtype=torch.long)
    return marks


def _with_times(part: Part, length: int, count: int) -> dict[str, Tensor]:
    """The past with its lags, and the steps to predict, each with the features of its time."""
    past = length + max(part.entry("lags_sequence", default=[0]))
    future = part.entry("prediction_length", default=1)
    features = part.entry("num_time_features", default=1)
    values = (count,) if count > 1 else ()
    inputs = {
        "past_values": noise(1, past, *values),
        "past_time_features": noise(1, past, features),
        "past_observed_mask": ones(1, past, *values),
        "future_values": noise(1, future, *values),
        "future_time_features": noise(1, future, features),
    }
    if fixed := part.entry("num_static_categorical_features"):
        inputs["static_categorical_features"] = torch.zeros(1, fixed, dtype=torch.long)
    if fixed := part.entry("num_static_real_features"):
        inputs["static_real_features"] = noise(1, fixed)
    return inputs


def _episode(part: Part) -> dict[str, Tensor]:
    return {
        "states": noise(1, STEPS, part.entry("state_dim")),
        "actions": noise(1, STEPS, part.entry("act_dim")),
        "rewards": noise(1, STEPS, 1),
        "returns_to_go": noise(1, STEPS, 1),
        "timesteps": torch.arange(STEPS)[None],
        "attention_mask": ones(1, STEPS),
    }
