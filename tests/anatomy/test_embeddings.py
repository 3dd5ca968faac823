"""Where word embeddings and the projection onto the words are found."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import ZOO, build

from lightning_pelt.anatomy import examine
from lightning_pelt.anatomy.embeddings import embedding_scale

WORDS = {
    "bert": ["bert.embeddings.word_embeddings"],
    "gpt2": ["transformer.wte", "lm_head"],
    "llama": ["model.embed_tokens", "lm_head"],
    "t5": ["encoder.embed_tokens", "decoder.embed_tokens", "lm_head"],
    "vit": [],
    "clip": [],
}


@pytest.mark.parametrize("name", WORDS)
def test_finds_the_modules_that_run(name: str) -> None:
    assert [site.path for site in examine(build(name)).embeddings] == WORDS[name]


def test_tells_tied_projections_apart() -> None:
    roles = {name: examine(build(name)).embeddings[-1].role for name in ("gpt2", "llama")}
    assert roles == {"gpt2": "vocabulary.tied", "llama": "vocabulary"}


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].kind in ("encoder", "decoder")])
def test_scale_is_what_a_module_multiplies_its_rows_by(name: str) -> None:
    table = build(name).get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        pytest.skip("a family without a table of words")
    ids = torch.tensor([3, 5])
    with torch.no_grad():
        torch.testing.assert_close(table(ids), embedding_scale(table) * table.weight[ids])
