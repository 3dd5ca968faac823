"""Gates, against numbers worked out on paper and against the whole models' invariances."""

from __future__ import annotations

import math
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask
from zoo import ZOO, build, inputs, output

from lightning_pelt import Adapter, BitFit, Gate, LoRA, Plan, Prefix, UniPELT, attach
from lightning_pelt.anatomy import MaskArgument
from lightning_pelt.attach import Attachment
from lightning_pelt.methods.gate import GateLayer
from lightning_pelt.methods.padding import Given, Padding
from lightning_pelt.testing import awaken, tiny_bert, tiny_llama

TOKENS = torch.arange(3, 19).view(2, 8)
MASK = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
ON_PAPER = {
    # Sigmoids of ln 1, ln 3, ln 1/3 and of ln 9, ln 1/9, ln 4; the last token is padding.
    "token": [[0.5, 0.75, 0.25], [0.9, 0.1, 0.8]],
    "all": [(0.5 + 0.75 + 0.25) / 3, (0.9 + 0.1 + 0.8) / 3],
    "masked": [(0.5 + 0.75 + 0.25) / 3, (0.9 + 0.1) / 2],
}


def gate_layer(pool: Any, names: tuple[str, ...] = ("a",), width: int = 2) -> GateLayer:
    layer = GateLayer(width, names, gate=Gate(), pool=pool)
    layer.padding = Padding(MaskArgument("", "attention_mask", 1))
    layer.padding.given.set(Given(None, 2))
    return layer


def logits(*rows: tuple[float, float, float]) -> Tensor:
    """Inputs (B, 3, 2) which the weight (1, -1) and the bias ln 3 turn into logs of ``rows``."""
    wanted = torch.log(torch.tensor(rows)) - math.log(3)
    return torch.stack([2 * wanted, wanted], -1)


@torch.no_grad()
@pytest.mark.parametrize("open_", [1.0, 0.5])
@pytest.mark.parametrize("pool", ON_PAPER)
def test_on_paper(pool: str, open_: float) -> None:
    layer = gate_layer(pool)
    layer.a_weight.copy_(torch.tensor([[1.0, -1.0]]))
    layer.a_bias.fill_(math.log(3))
    layer.open.fill_(open_)
    assert layer.padding is not None
    layer.padding.given.set(Given(torch.tensor([[1, 1, 1], [1, 1, 0]]), 2))
    x = logits((1, 3, 1 / 3), (9, 1 / 9, 4))
    gate = layer(x)
    expected = open_ * torch.tensor(ON_PAPER[pool])
    torch.testing.assert_close(gate, expected.view(2, -1, 1))


@torch.no_grad()
def test_a_layer_is_its_gates_side_by_side() -> None:
    several = gate_layer("masked", ("lora.query", "lora.value", "prefix"), width=4)
    x = torch.randn(2, 3, 4)
    together = several(x)
    for index, name in enumerate(("lora_query", "lora_value", "prefix")):
        single = gate_layer("masked", width=4)
        single.a_weight.copy_(getattr(several, f"{name}_weight"))
        single.a_bias.copy_(getattr(several, f"{name}_bias"))
        torch.testing.assert_close(together[..., index], single(x)[..., 0])


def test_initial_weights() -> None:
    layer = GateLayer(1000, ["a"], gate=Gate(init_std=0.1, init_bias=2.0), pool="token")
    weight, bias = layer.parameters_of(0)
    assert weight.shape == (1, 1000)
    assert float(weight.detach().std()) == pytest.approx(0.1, rel=0.1)
    assert bias.tolist() == [2.0]


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize(
    "mask", [MASK, MASK.flip(1), torch.ones_like(MASK)], ids=["right", "left", "none"]
)
@pytest.mark.parametrize("make", [tiny_bert, tiny_llama])
def test_masks_as_transformers_makes_them(make: Any, mask: Tensor, implementation: str) -> None:
    model = make()
    attachment = attach(model, UniPELT([LoRA()], gate=Gate(pool="masked")))
    model.set_attn_implementation(implementation)
    with torch.compiler.set_stance("force_eager"):
        model(input_ids=TOKENS, attention_mask=mask)
    found = attachment.gates["01/lora.query"].layer.padding.weights(8)
    assert found is None or torch.equal(found[0][..., 0].expand(2, -1), mask.float())
    assert found is not None or mask.all()


def owned(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if ".pelt." in name}


@torch.no_grad()
@pytest.mark.parametrize("pool", ["auto", "all"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "vit"])
def test_gates_of_one_are_no_gates(name: str, pool: Any) -> None:
    """And LoRA's scale is one then, whatever its alpha."""
    methods = [Adapter(reduction_factor=2), Prefix(length=3, mlp=8)]
    model, batch = build(name), inputs(name)
    attachment = attach(model, UniPELT([*methods, LoRA(r=4, alpha=99.0)], Gate(pool=pool)))
    awaken(attachment)
    for gate in attachment.gates.values():
        weight, bias = gate.parameters()
        weight.zero_()
        bias.fill_(50.0)  # its sigmoid is one in fp32
    plain = build(name)
    attach(plain, Plan.uniform(*methods, LoRA(r=4, alpha=4.0)))
    ours = owned(model)
    for parameter_name, parameter in owned(plain).items():
        parameter.copy_(ours[parameter_name])
    torch.testing.assert_close(output(model, batch), output(plain, batch), rtol=0, atol=5e-6)


PER_TOKEN = re.compile(r"\.(norm|linear)(_\d+)?$")  # whatever the pool
ENCODERS = [name for name, entry in ZOO.items() if entry.kind == "encoder"]


def gated(name: str, pool: Any = "auto") -> Attachment:
    methods: list[Any] = [Adapter(reduction_factor=2), LoRA(), BitFit()]
    if ZOO[name].interface:
        methods.append(Prefix(length=3))
    attachment = attach(build(name), UniPELT(methods, gate=Gate(pool=pool)))
    awaken(attachment)
    return attachment


def change_by_padding(model: Any, batch: dict[str, Tensor]) -> float:
    longer = {name: nn.functional.pad(tensor, (0, 5)) for name, tensor in batch.items()}
    return float((output(model, longer) - output(model, batch)).abs().max())


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "implementation"),
    [(n, i) for n in ENCODERS for i in ("sdpa", "eager") if i == "eager" or ZOO[n].interface],
)
def test_padding_changes_nothing(name: str, implementation: str) -> None:
    model, batch = gated(name).model, inputs(name)
    frozen = build(name)
    for one in (model, frozen):
        one.set_attn_implementation(implementation)
    assert change_by_padding(model, batch) <= 1e-6 + change_by_padding(frozen, batch)


@torch.no_grad()
def test_padding_counts_in_the_authors_pool() -> None:
    model = gated("bert", pool="all").model
    assert change_by_padding(model, inputs("bert")) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "modernbert", "t5", "wav2vec2"])
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    model, batch = gated(name).model, inputs(name)
    alone = {key: tensor[1:] for key, tensor in batch.items()}
    torch.testing.assert_close(output(model, batch)[1:], output(model, alone), rtol=0, atol=5e-6)


# Which gates there are, and what they show.


def test_per_site_and_shared() -> None:
    apart = attach(tiny_bert(), UniPELT([LoRA()]))
    assert list(apart.gates) == ["00/lora.query", "00/lora.value", "01/lora.query", "01/lora.value"]
    assert apart.counts["lora"].gates == 4 * 33
    shared = attach(tiny_bert(), UniPELT([LoRA()], gate=Gate(shared=True)))
    assert list(shared.gates) == ["00/lora", "01/lora"]
    assert shared.counts["lora"].gates == 2 * 33


@torch.no_grad()
def test_shared_gate_closes_all_its_sites() -> None:
    model = tiny_bert()
    base = model(input_ids=TOKENS).logits
    attachment = attach(model, UniPELT([LoRA()], gate=Gate(shared=True)))
    awaken(attachment)
    for block in ("00", "01"):
        attachment.gates[f"{block}/lora"].set_open(0.0)
    assert torch.equal(model(input_ids=TOKENS).logits, base)


def test_gates_of_one_tensor_are_one_product() -> None:
    """Queries, values and prefix read the block's input; the adapter reads its own."""
    attachment = attach(tiny_bert(), UniPELT())
    layers = {view.layer for view in attachment.gates.values()}
    assert sorted(tuple(layer.names) for layer in layers) == [
        *[("adapter",)] * 2,
        *[("prefix", "lora_query", "lora_value")] * 2,
    ]


@torch.no_grad()
def test_values() -> None:
    attachment = gated("bert")
    assert all(view.value is None for view in attachment.gates.values())
    output(attachment.model, inputs("bert"))
    for view in attachment.gates.values():
        assert view.value is not None
        assert view.value.dtype == torch.float32
        pooler = (view.block, view.site) == ("outer", "bitfit.linear")  # it sees one token
        assert view.value.shape == ((2, 8) if PER_TOKEN.search(view.site) and not pooler else (2,))
        assert not view.value.requires_grad


@torch.no_grad()
def test_values_per_token_in_a_decoder() -> None:
    attachment = gated("llama")
    output(attachment.model, inputs("llama"))
    assert {tuple(view.value.shape) for view in attachment.gates.values()} == {(2, 8)}
    attachment.model(input_ids=TOKENS[:, :1])
    assert {tuple(view.value.shape) for view in attachment.gates.values()} == {(2, 1)}


@torch.no_grad()
def test_values_in_an_encoder_decoder() -> None:
    attachment = attach(build("bart"), UniPELT([LoRA(), Adapter()]))
    output(attachment.model, inputs("bart"))
    shapes = {name: tuple(view.value.shape) for name, view in attachment.gates.items()}
    assert shapes["encoder.00/lora.query"] == shapes["encoder.00/adapter"] == (2,)
    assert shapes["decoder.01/lora.query"] == shapes["decoder.01/lora.cross_query"] == (2, 7)
    assert shapes["decoder.01/lora.cross_value"] == (2, 8), "it reads the encoder's tokens"


@torch.no_grad()
def test_openness() -> None:
    model = tiny_bert()
    attachment = attach(model, UniPELT([LoRA()]))
    gate = attachment.gates["00/lora.query"]
    model(input_ids=TOKENS)
    whole = gate.value
    gate.set_open(0.25)
    model(input_ids=TOKENS)
    assert gate.open == 0.25
    torch.testing.assert_close(gate.value, 0.25 * whole)
    assert attachment.gates["00/lora.value"].open == 1.0


@pytest.mark.parametrize("openness", [-0.1, 1.1, math.nan])
def test_openness_lies_between_zero_and_one(openness: float) -> None:
    gate = attach(tiny_bert(), UniPELT([LoRA()])).gates["00/lora.query"]
    with pytest.raises(ValueError, match=rf"00/lora.query: openness is {openness}.*\[0, 1\]"):
        gate.set_open(openness)
    assert gate.open == 1.0


@torch.no_grad()
def test_unlearned_gates() -> None:
    """No weights; open they are an ungated model, half open they scale it."""
    plain = tiny_bert()
    awaken(attach(plain, Plan.uniform(LoRA(r=4, alpha=4.0))))
    model = tiny_bert()
    attachment = attach(model, UniPELT([LoRA(r=4)], gate=Gate(learned=False)))
    awaken(attachment)
    expected = plain(input_ids=TOKENS).logits
    assert torch.equal(model(input_ids=TOKENS).logits, expected)
    assert attachment.counts["lora"].gates == 0
    for gate in attachment.gates.values():
        assert gate.parameters() == []
        gate.set_open(0.5)
    half = tiny_bert()
    awaken(attach(half, Plan.uniform(LoRA(r=4, alpha=2.0))))
    expected = half(input_ids=TOKENS).logits
    torch.testing.assert_close(model(input_ids=TOKENS).logits, expected)
    assert attachment.gates["00/lora.query"].value == 0.5


@torch.no_grad()
@pytest.mark.parametrize("learned", [True, False])
def test_gates_are_computed_in_fp32(learned: bool) -> None:
    model = tiny_bert()
    attachment = attach(model, UniPELT([LoRA()], gate=Gate(learned=learned)))
    model.bfloat16()  # ours too, as in Lightning's bf16-true
    assert model(input_ids=TOKENS).logits.dtype == torch.bfloat16
    assert attachment.gates["00/lora.query"].value.dtype == torch.float32


# Pools that somebody asked for where they are not the default.


def masked_means(x: Tensor, gate: Any, mask: Tensor) -> Tensor:
    weight, bias = gate.parameters()
    opened = torch.sigmoid(x @ weight[0] + bias)
    return (opened * mask).sum(1) / mask.sum(1)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_masked_pool_over_the_encoder_tokens(implementation: str) -> None:
    """Values of cross-attention come from the encoder, so its padding counts for their gate."""
    model: Any = build("bart")
    model.set_attn_implementation(implementation)
    attachment = attach(model, UniPELT([LoRA()], gate=Gate(pool="masked")))
    batch = inputs("bart")
    states = model.model.encoder(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).last_hidden_state
    output(model, batch)
    gate = attachment.gates["decoder.00/lora.cross_value"]
    assert batch["attention_mask"].sum() < 16
    expected = masked_means(states, gate, batch["attention_mask"])
    torch.testing.assert_close(gate.value, expected)


@torch.no_grad()
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("pool", ["masked", "all"])
def test_pool_where_tokens_are_flattened(pool: Any, padded: bool) -> None:
    """OPT's feed-forward sees (B T, d)."""
    model: Any = build("opt")
    attachment = attach(model, UniPELT([LoRA(sites=("ffn.in",))], gate=Gate(pool=pool)))
    seen: list[Tensor] = []
    model.model.decoder.layers[1].fc1.register_forward_hook(
        lambda module, args, output: seen.append(args[0])
    )
    batch = inputs("opt", padded=padded)
    output(model, batch)
    gate = attachment.gates["01/lora"]
    ones = torch.ones(2, 8)
    mask = batch["attention_mask"] if padded and pool == "masked" else ones
    expected = masked_means(seen[0].view(2, 8, -1), gate, mask)
    torch.testing.assert_close(gate.value, expected)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["masked", "all"])
@pytest.mark.parametrize("name", ["deepseek_v3", "gpt2", "bloom", "vit", "wav2vec2", "whisper"])
def test_pooling_works_everywhere(name: str, pool: Any) -> None:
    attachment = gated(name, pool=pool)
    output(attachment.model, inputs(name))
    for view in attachment.gates.values():
        if not PER_TOKEN.search(view.site):
            assert view.value.shape == (2,), view.name


@torch.no_grad()
@pytest.mark.parametrize("padded", [True, False])
def test_pooled_gates_in_cached_decoding(padded: bool) -> None:
    """They see one token at a time, and say so in the documentation; but they do work."""
    model = gated("gpt2", pool="masked").model
    batch = inputs("gpt2", padded=False)
    if padded:
        batch["attention_mask"] = MASK.flip(1)
    words = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert words.shape == (2, 11)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["masked", "token"])
@pytest.mark.parametrize("padded", [True, False])
def test_gates_with_a_cache_of_fixed_length(pool: Any, padded: bool) -> None:
    """Its masks have columns for tokens to come, which are no padding."""
    model = gated("gpt2", pool=pool).model
    batch = inputs("gpt2", padded=False)
    if padded:
        batch["attention_mask"] = MASK.flip(1)
    model.generation_config.disable_compile = True
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    found = [
        model.generate(
            **batch, **options, return_dict_in_generate=True, cache_implementation=cache
        ).logits
        for cache in ("dynamic", "static")
    ]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-4)


SEEN = MASK.bool()[:, None, None]
USERS_MASKS = {
    "keys": SEEN,
    "pairs": (SEEN & SEEN.mT).expand(-1, 1, -1, -1),
    "heads": SEEN.expand(-1, 4, 8, -1),
    **{
        f"added {low:.0e}": torch.where(SEEN, 0.0, low)
        for low in (-1e9, -1e4, torch.finfo(torch.float32).min, -math.inf)
    },
    "added to every pair": torch.where(SEEN, 0.0, -1e4).expand(-1, 4, 8, -1).contiguous(),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", USERS_MASKS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_masks_as_users_make_them(kind: str, implementation: str) -> None:
    model = tiny_bert()
    attachment = attach(model, UniPELT(gate=Gate(pool="masked")))
    awaken(attachment, std=0.3)
    model.set_attn_implementation(implementation)
    expected = model(input_ids=TOKENS, attention_mask=MASK).logits
    gates = {name: gate.value for name, gate in attachment.gates.items()}
    mask = USERS_MASKS[kind]
    if implementation == "eager" and mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, -1e9)  # eager attention adds any mask
    found = model(input_ids=TOKENS, attention_mask=mask).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    for name, gate in attachment.gates.items():
        torch.testing.assert_close(gate.value, gates[name], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_mask_that_cannot_be_read_is_refused() -> None:
    model = tiny_bert()
    attach(model, Plan.uniform(LoRA(gate=Gate())))
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"2 x 8 tokens.*\(2, 1, 1, 9\).*pool='token'"):
        model(input_ids=TOKENS, attention_mask=mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "mask"}, "'mask': did you mean 'masked'"),
        ({"init_std": -1.0}, r"init_std is -1\.0"),
    ],
)
def test_bad_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gate(**options)


def test_the_mask_of_a_batch_is_not_pickled() -> None:
    padding = Padding(MaskArgument("", "attention_mask", 1))
    blocks = create_block_mask(lambda b, h, q, k: k <= 1, 1, None, 3, 3, device="cpu")
    padding.given.set(Given(blocks, 1))  # of a function that pickle could not find
    assert pickle.loads(pickle.dumps(padding)).given.peek() is None
