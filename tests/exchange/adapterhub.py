"""What the tests of AdapterHub's format share: the fixtures, and models with them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

FIXTURES = Path(__file__).parent / "adapterhub_fixtures"
INPUTS = ("input_ids", "attention_mask", "decoder_input_ids", "pixel_values")
MODELS = (
    *("bert", "roberta", "xlm_roberta", "distilbert", "gpt2", "llama", "t5", "t5_gated", "bart"),
    *("deberta", "deberta_v2", "vit"),
)


def base(name: str, kind: type = AutoModel, **options: object) -> PreTrainedModel:
    """The tiny model that the adapters in ``name`` were made for."""
    return kind.from_pretrained(FIXTURES / name / "base", **options).eval()


def expected(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inputs, and the outputs of adapters 1.3.0 by kind."""
    tensors = load_file(FIXTURES / name / "expected.safetensors")
    inputs = {key: tensors.pop(key) for key in INPUTS if key in tensors}
    return inputs, tensors


def output(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).last_hidden_state
