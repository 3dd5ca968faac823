"""``HubPrefix``: the prefix of AdapterHub on T5 is a method like any other."""

from __future__ import annotations

import pytest
import torch
from exchange.adapterhub import FIXTURES, base, expected, output
from torch import Tensor
from transformers import PreTrainedModel, T5ForConditionalGeneration
from zoo import build

from lightning_pelt import Gate, Plan, attach, load_adapters, merge, save_adapters
from lightning_pelt.exchange.adapterhub import HubPrefix, load_adapterhub
from lightning_pelt.testing import MethodConformance, awaken, tiny_bert

LENGTH = 3


class OnT5(MethodConformance):
    """The suite on T5, whose loss needs words of the decoder."""

    def models(self):
        return {"t5": lambda: build("t5")}

    def output(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
        words = torch.tensor([[4, 9, 17, 3, 5], [6, 3, 12, 8, 7]])
        return model(**inputs, decoder_input_ids=words).logits


class TestHubPrefix(OnT5):
    method = HubPrefix(length=LENGTH, mlp=None)


class TestGatedHubPrefix(OnT5):
    method = HubPrefix(length=LENGTH, mlp=8, gate=Gate())
    compiled = ()  # the same mechanism


def relative_bias(attention, rows: int, columns: int, shift: int) -> Tensor:
    """T5's own bias of ``rows`` queries and ``columns`` keys, the queries from ``shift`` on."""
    return attention.compute_bias(rows, columns, past_seen_tokens=shift)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_the_bias_is_that_of_more_keys_in_every_block(stack: str) -> None:
    model = build("t5")
    seen: list[Tensor] = []
    attach(model, Plan.uniform(HubPrefix(length=LENGTH, mlp=None, sites=["attention"])))
    blocks = getattr(model, stack).block
    hosts = [block.layer[0].SelfAttention for block in blocks]
    for host in hosts:
        prefix = host.__dict__["pelt_prefix"]
        extended = prefix.extended_bias
        prefix.extended_bias = lambda *args, of=extended: seen.append(of(*args)) or seen[-1]
    words = torch.arange(3, 11)[None]
    with torch.no_grad():
        model(input_ids=words, decoder_input_ids=words[:, :5])
    own = 8 if stack == "encoder" else 5
    wanted = relative_bias(hosts[0], own, LENGTH + own, 0)
    assert len(seen) == len(blocks)
    for bias in seen:
        torch.testing.assert_close(bias, wanted)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_cached_generation_equals_that_without_a_cache(cache: str) -> None:
    model = base("t5", T5ForConditionalGeneration)
    load_adapterhub(model, FIXTURES / "t5" / "mam")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "decoder_start_token_id": 0}
    words = torch.tensor([[5, 9, 12, 30], [7, 3, 0, 0]])
    given = {"input_ids": words, "attention_mask": (words > 0).long()}
    scores = [
        torch.stack(
            model.generate(
                **given, **options, **more, output_scores=True, return_dict_in_generate=True
            ).scores
        )
        for more in ({"use_cache": False}, {"cache_implementation": cache})
    ]
    torch.testing.assert_close(*scores, atol=1e-5, rtol=0)


def test_it_survives_saving_and_folding(tmp_path) -> None:
    inputs, wanted = expected("t5")
    model = base("t5")
    load_adapterhub(model, FIXTURES / "t5" / "mam")
    for fold in (False, True):
        again = base("t5")
        load_adapters(again, save_adapters(model, tmp_path / str(fold), fold=fold))
        torch.testing.assert_close(output(again, inputs), wanted["mam"], atol=1e-5, rtol=0)


def test_models_without_such_positions_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="bert has no relative positions as T5 has them"):
        attach(tiny_bert(), Plan.uniform(HubPrefix()))
    with pytest.raises(ValueError, match="umt5 has no relative positions as T5 has them"):
        attach(build("umt5"), Plan.uniform(HubPrefix()))


def test_it_cannot_be_merged() -> None:
    model = build("t5")
    awaken(attach(model, Plan.uniform(HubPrefix(length=LENGTH, mlp=None))))
    with pytest.raises(ValueError, match="HubPrefix cannot be merged"):
        merge(model)
