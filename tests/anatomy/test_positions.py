"""A limit of positions is the largest number of tokens with which the model runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import bert
from transformers import PreTrainedModel
from zoo import ZOO

from lightning_pelt.anatomy.positions import backbone_position_limit, position_limit

WITH_TABLE = [
    *("bert", "roberta", "roformer", "mpnet", "distilbert"),
    *("gpt2", "gptj", "opt", "bart", "marian"),
]
WITHOUT = ["deberta-v2", "modernbert", "llama", "bloom", "xglm", "t5"]


def runs(model: PreTrainedModel, kind: str, tokens: int) -> bool:
    ids = torch.full((1, tokens), 5)
    decoder = {"decoder_input_ids": ids} if kind == "seq2seq" else {}
    try:
        with torch.no_grad():
            model(input_ids=ids, **decoder)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", WITH_TABLE)
@pytest.mark.parametrize("task", [True, False])
def test_a_model_takes_as_many_tokens_as_its_limit_and_no_more(name: str, task: bool) -> None:
    model, kind = ZOO[name].build(task), ZOO[name].kind
    limit = position_limit(model)
    assert limit is not None
    assert runs(model, kind, limit)
    assert not runs(model, kind, limit + 1)


@pytest.mark.parametrize("name", WITHOUT)
def test_a_model_without_a_table_has_no_limit(name: str) -> None:
    model, kind = ZOO[name].build(), ZOO[name].kind
    assert position_limit(model) is None
    assert runs(model, kind, 100)


def test_a_backbone_is_judged_by_its_configuration(tmp_path: Path) -> None:
    folder = Path(bert(tmp_path / "bert"))
    (folder / "model.safetensors").unlink()
    assert backbone_position_limit(str(folder)) == 32
    (folder / "config.json").unlink()
    assert backbone_position_limit(str(folder)) is None
