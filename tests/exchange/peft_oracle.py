"""PEFT as the oracle: an adapter of ours in its model, and an adapter that it trained."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from zoo import ZOO, build, inputs, output

from lightning_pelt import Plan, attach
from lightning_pelt.attach import Attachment
from lightning_pelt.testing import awaken

peft: Any = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")

EXACT = {"atol": 1e-6, "rtol": 1e-6}
SEQ_CLS = {"encoder": "SEQ_CLS", "decoder": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}


def attached(name: str, plan: Plan, **options: Any) -> Attachment:
    """A model of the zoo with a plan, with an effect of every weight, the head's too."""
    attachment = attach(build(name), plan, **options)
    awaken(attachment, std=0.1)
    with torch.no_grad():
        for parameter in attachment.parameter_groups().get("head", []):
            parameter.add_(0.1 * torch.randn_like(parameter))
    attachment.model.eval()
    return attachment


@torch.no_grad()
def run(model: PreTrainedModel, name: str) -> Tensor:
    """The output on the inputs of a family."""
    given = inputs(name)
    if next(model.parameters()).dtype == torch.float64:
        given = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    return output(model, given)


def in_peft(folder: Path, fresh: PreTrainedModel) -> PreTrainedModel:
    """A fresh base with the adapter of a folder, loaded by PEFT without any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        model = peft.PeftModel.from_pretrained(fresh, str(folder)).eval()
    return model.get_base_model()


def trained_by_peft(name: str, config: Any, folder: Path) -> Tensor:
    """Save an adapter of PEFT on a family, and return what it computes."""
    config.task_type = SEQ_CLS.get(ZOO[name].kind)
    model = peft.get_peft_model(build(name), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(str(folder))
    return run(model.get_base_model(), name)
