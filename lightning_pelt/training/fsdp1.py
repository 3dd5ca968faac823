"""FSDP1: what Lightning's ``FSDPStrategy`` needs to save a model that is trained in part."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import FSDPStrategy, Strategy
from torch import nn
from torch.optim import Optimizer

from lightning_pelt.attach.attachment import find_attachments
from lightning_pelt.attach.state_dict_hooks import DropOutside
from lightning_pelt.training.param_groups import start_from_zero
from lightning_pelt.utils.same_kind import same_kind

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def prepare_fsdp1(trainer: Trainer) -> None:
    """Let an ``FSDPStrategy`` save without the frozen base; nothing is done to other strategies.

    The base is dropped once the units are collected. A parameter that no step has changed yet, such
    as that of a held method, gets the zeros from which Adam would start: FSDP1 saves a unit only if
    each of its trainable parameters has a state.
    """
    strategy = trainer.strategy
    if same_kind(strategy, FSDPStrategy) and not isinstance(_owner(strategy), _Setup):
        strategy.setup = _Setup(strategy).setup  # type: ignore[method-assign, arg-type]
        logging.getLogger("torch.distributed.fsdp._state_dict_utils").addFilter(_is_expected)


class _Setup:
    """Sets a strategy up, and then the hooks of the wrapper that it has made."""

    def __init__(self, strategy: FSDPStrategy) -> None:
        self.strategy, self.original = strategy, strategy.setup

    def setup(self, trainer: Trainer) -> None:
        self.original(trainer)
        outer = self.strategy.model
        assert isinstance(outer, nn.Module)
        for attachment in find_attachments(outer).values():
            DropOutside(outer, attachment.model)
        for optimizer in self.strategy.optimizers:
            optimizer.register_state_dict_post_hook(_fill)


def _owner(strategy: Strategy) -> object:
    return getattr(strategy.setup, "__self__", None)


def _fill(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    for group, packed in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for number, parameter in zip(packed["params"], group["params"], strict=True):
            if parameter.numel():  # of which this process has a part
                start_from_zero(saved["state"], number, parameter)


def _is_expected(record: logging.LogRecord) -> bool:
    """False for a warning that torch gives for every tensor of the base in a checkpoint of shards.

    A tensor of the plan that is missing is an error of the attachment's hooks.
    """
    return not str(record.msg).startswith("Did not find param with FQN")
