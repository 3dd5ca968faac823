"""The quantised base of a ``PELTModule``: when it is quantised, and what its runs must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from transformers import PreTrainedModel

from lightning_pelt.attach.quantising import Quantisation, quantise
from lightning_pelt.utils.quantised import kind_of

# Names of parameters that DistributedDataParallel leaves alone.
IGNORED = "_ddp_params_and_buffers_to_ignore"
TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16}


def quantise_base(model: PreTrainedModel, kind: Quantisation, trainer: Trainer | None) -> None:
    """Quantise a loaded backbone, in the dtype that the precision of the run gives it.

    Layers of torchao keep the dtype in which they were quantised, and those of fp8 read no other.
    """
    dtype = TRUE.get(str(trainer.precision)) if trainer is not None else None
    if dtype is not None:
        whole: nn.Module = model
        whole.to(dtype)
    quantise(model, kind)


def keep_from_broadcasts(module: LightningModule) -> None:
    """Let DDP leave quantised weights out when it makes the processes equal.

    They are frozen and every process quantises the same base. DDP would join them with other
    tensors of their dtype, which tensors of torchao refuse.
    """
    quantised = [name for name, each in module.named_parameters() if kind_of(each) is not None]
    if quantised:
        known = list(getattr(module, IGNORED, ()))
        setattr(module, IGNORED, list(dict.fromkeys(known + quantised)))


def refuse_other_quantisation(
    trainer: Trainer, saved: Mapping[str, Any], kind: Quantisation | None
) -> None:
    """Raise if a fit continues on a base that is quantised otherwise.

    In validation, test and prediction, a warning of the fingerprint names the difference.

    Args:
        trainer: that loads the checkpoint.
        saved: hyperparameters of the checkpoint.
        kind: of this run.

    Raises:
        ValueError: the message names both.
    """
    then = saved.get("quantise")
    if trainer.state.fn == TrainerFn.FITTING and then != kind:
        raise ValueError(
            f"the checkpoint was trained with quantise={then!r}, and this run has "
            f"quantise={kind!r}: its base computes something else. Use quantise={then!r}, or start "
            "without the checkpoint"
        )
