"""Adapters against whole blocks computed by hand from the frozen modules."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import build, inputs, output

from lightning_pelt import Adapter, Gate, Plan, attach
from lightning_pelt.attach import Attachment
from lightning_pelt.plans import from_config
from lightning_pelt.testing import MethodConformance, awaken, tiny_bert, tiny_gpt2

TOKENS = torch.arange(3, 19).view(2, 8)
MASK = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])


class TestAdapter(MethodConformance):
    method = Adapter(reduction_factor=2)


class TestGatedAdapter(MethodConformance):
    compiled = ("bert", "gpt2")
    method = Adapter(reduction_factor=2, gate=Gate())


class TestParallelAdapters(MethodConformance):
    compiled = ("bert",)
    method = Adapter(
        bottleneck=12, sites=("attention", "ffn"), placement="parallel", activation="gelu"
    )


class TestPfeifferAdapters(MethodConformance):
    compiled = ("gpt2",)
    method = Adapter(bottleneck=12, sites=("attention", "ffn"), placement="pfeiffer", gate=Gate())


class TestHeAdapters(MethodConformance):
    compiled = ()  # hooks as in TestParallelAdapters
    method = Adapter(bottleneck=12, sites=("attention", "ffn"), placement="he", scale=4.0)


def adapt(model: nn.Module, method: Adapter) -> Attachment:
    attachment = attach(model, Plan.uniform(method))
    awaken(attachment)
    return attachment


def added(attachment: Attachment, number: int, h: Tensor, gate: Tensor | float = 1.0) -> Tensor:
    """g (W_up relu(W_down h + b_down) + b_up) of the adapter that was built as ``number``."""
    net: Any = attachment.submodules["adapter"][number].net
    inner = torch.clamp(h @ net.down.T + net.down_bias, min=0)
    return gate * (inner @ net.up.T + net.up_bias)


def pooled(attachment: Attachment, name: str, h: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens of sigmoid(w h + b), (B, 1, 1)."""
    weight, bias = attachment.gates[name].parameters()
    opened = 1 / (1 + torch.exp(-(h @ weight[0] + bias)))
    means = [row[real.bool()].mean() for row, real in zip(opened, mask, strict=True)]
    return torch.stack(means).view(-1, 1, 1)


class Watched:
    """The hidden states around one module in the last forward."""

    def __init__(self, module: nn.Module) -> None:
        module.register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self.input: Tensor = args[0] if args else kwargs["hidden_states"]
        self.output: Tensor = output[0] if isinstance(output, tuple) else output


def bert_block(method: Adapter) -> tuple[Attachment, Any, Watched, Watched]:
    """A run BERT: its attachment, the frozen block 1, and block and attention of the tuned one."""
    model: Any = tiny_bert()
    frozen = copy.deepcopy(model.bert.encoder.layer[1])
    attachment = adapt(model, method)
    block = Watched(model.bert.encoder.layer[1])
    attention = Watched(model.bert.encoder.layer[1].attention)
    model(input_ids=TOKENS, attention_mask=MASK)
    return attachment, frozen, block, attention


@torch.no_grad()
@pytest.mark.parametrize("placement", ["unipelt", "pfeiffer"])
@pytest.mark.parametrize("gated", [False, True])
def test_unipelt_placement(gated: bool, placement: Any) -> None:
    """u = LN(f + a), z = f + g A(u), out = LN(z + a): the authors' twice-run norm."""
    method = Adapter(reduction_factor=2, placement=placement, gate=Gate() if gated else None)
    attachment, frozen, block, attention = bert_block(method)
    a = attention.output
    f = frozen.output.dense(frozen.intermediate(a))
    u = frozen.output.LayerNorm(f + a)
    gate = pooled(attachment, "01/adapter", u, MASK) if gated else 1.0
    z = f + added(attachment, 1, u, gate)
    torch.testing.assert_close(block.output, frozen.output.LayerNorm(z + a), rtol=0, atol=1e-5)
    if gated:
        value = attachment.gates["01/adapter"].value
        torch.testing.assert_close(value, gate.flatten())


@torch.no_grad()
def test_unipelt_placement_after_attention() -> None:
    method = Adapter(reduction_factor=2, sites=("attention",), placement="unipelt")
    attachment, frozen, block, attention = bert_block(method)
    watched = Watched(frozen.attention.self)
    frozen.attention(block.input, ((1 - MASK) * -1e30)[:, None, None])
    f = frozen.attention.output.dense(watched.output)
    norm = frozen.attention.output.LayerNorm
    z = f + added(attachment, 1, norm(f + block.input))
    torch.testing.assert_close(attention.output, norm(z + block.input), rtol=0, atol=1e-5)


@torch.no_grad()
def test_sequential_in_a_post_norm_block() -> None:
    method = Adapter(reduction_factor=2, placement="sequential")
    attachment, frozen, block, attention = bert_block(method)
    a = attention.output
    f = frozen.output.dense(frozen.intermediate(a))
    expected = frozen.output.LayerNorm(f + added(attachment, 1, f) + a)
    torch.testing.assert_close(block.output, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("placement", ["parallel", "he"])
def test_parallel_in_a_post_norm_block(placement: Any) -> None:
    method = Adapter(reduction_factor=2, placement=placement, gate=Gate())
    attachment, frozen, block, attention = bert_block(method)
    a = attention.output
    f = frozen.output.dense(frozen.intermediate(a))
    gate = pooled(attachment, "01/adapter", a, MASK)
    expected = frozen.output.LayerNorm(f + added(attachment, 1, a, gate) + a)
    torch.testing.assert_close(block.output, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("placement", ["sequential", "parallel", "pfeiffer", "he"])
def test_pre_norm_block(placement: Any) -> None:
    """GPT-2, x + f + A(h), with h = f, LN(x), f + x or x."""
    model: Any = tiny_gpt2()
    frozen = copy.deepcopy(model.transformer.h[0])
    attachment = adapt(model, Adapter(reduction_factor=2, placement=placement))
    block, middle = Watched(model.transformer.h[0]), Watched(model.transformer.h[0].ln_2)
    model(input_ids=TOKENS)
    x = middle.input
    h = frozen.ln_2(x)
    f = frozen.mlp(h)
    reads = {"sequential": f, "parallel": h, "pfeiffer": f + x, "he": x}
    expected = x + f + added(attachment, 0, reads[placement])
    torch.testing.assert_close(block.output, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_gate_per_token() -> None:
    model: Any = tiny_gpt2()
    frozen = copy.deepcopy(model.transformer.h[0])
    attachment = adapt(model, Adapter(reduction_factor=2, gate=Gate()))
    block, middle = Watched(model.transformer.h[0]), Watched(model.transformer.h[0].ln_2)
    model(input_ids=TOKENS)
    f = frozen.mlp(frozen.ln_2(middle.input))
    weight, bias = attachment.gates["00/adapter"].parameters()
    gate = 1 / (1 + torch.exp(-(f @ weight[0] + bias)))
    expected = middle.input + f + added(attachment, 0, f, gate[..., None])
    torch.testing.assert_close(block.output, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(attachment.gates["00/adapter"].value, gate)


@pytest.mark.parametrize(
    ("name", "activation"),
    [("relu", F.relu), ("gelu", F.gelu), ("silu", F.silu), ("tanh", torch.tanh)],
)
@torch.no_grad()
def test_activations(name: str, activation: Any) -> None:
    method = Adapter(reduction_factor=2, placement="sequential", activation=name)
    attachment, frozen, block, attention = bert_block(method)
    a = attention.output
    f = frozen.output.dense(frozen.intermediate(a))
    net: Any = attachment.submodules["adapter"][1].net
    z = f + activation(f @ net.down.T + net.down_bias) @ net.up.T + net.up_bias
    expected = frozen.output.LayerNorm(z + a)
    torch.testing.assert_close(block.output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "width"),
    [(Adapter(reduction_factor=2), 16), (Adapter(), 2), (Adapter(bottleneck=5), 5)],
)
def test_bottleneck_width(method: Adapter, width: int) -> None:
    count = attach(tiny_bert(), Plan.uniform(method)).counts["adapter"]
    assert count.trained == count.deployed == 2 * (2 * 32 * width + width + 32)


@torch.no_grad()
def test_initial_weights() -> None:
    """N(0, 0.02) for both projections, zero biases, as in the authors' code."""
    attachment = attach(tiny_bert(), Plan.uniform(Adapter(bottleneck=64)))
    for module in attachment.submodules["adapter"]:
        net: Any = module.net
        for weight in (net.down, net.up):
            assert weight.std() == pytest.approx(0.02, rel=0.1)
            assert weight.mean() == pytest.approx(0, abs=0.002)
        assert not net.down_bias.any()
        assert not net.up_bias.any()


@torch.no_grad()
@pytest.mark.parametrize(("name", "same"), [("bert", "unipelt"), ("gpt2", "sequential")])
def test_auto_is_the_blocks_own_placement(name: str, same: Any) -> None:
    logits = []
    for placement in ("auto", same):
        model = build(name)
        adapt(model, Adapter(reduction_factor=2, placement=placement))
        logits.append(model(input_ids=TOKENS).logits)
    assert torch.equal(*logits)


class Sublayer(NamedTuple):
    """Paths in block 0: what reads a, what returns f, what is given f + a, and a post-norm."""

    site: str
    reads: str
    returns: str
    then: str
    norm: str | None = None


SUBLAYERS = {
    "llama": [
        Sublayer("attention", "input_layernorm", "self_attn.o_proj", "post_attention_layernorm"),
        Sublayer("ffn", "post_attention_layernorm", "mlp.down_proj", ""),
    ],
    "gpt2": [
        Sublayer("attention", "ln_1", "attn.c_proj", "ln_2"),
        Sublayer("ffn", "ln_2", "mlp.c_proj", ""),
    ],
    "t5": [
        Sublayer(
            "attention", "layer.0.layer_norm", "layer.0.SelfAttention.o", "layer.1.layer_norm"
        ),
        Sublayer(
            "cross_attention",
            "layer.1.layer_norm",
            "layer.1.EncDecAttention.o",
            "layer.2.layer_norm",
        ),
        Sublayer("ffn", "layer.2.layer_norm", "layer.2.DenseReluDense.wo", ""),
    ],
    "mbart": [Sublayer("ffn", "final_layer_norm", "fc2", "")],
    "bert": [
        Sublayer(
            "attention",
            "attention.self",
            "attention.output.dense",
            "attention.output.LayerNorm",
            "attention.output.LayerNorm",
        ),
        Sublayer("ffn", "intermediate", "output.dense", "output.LayerNorm", "output.LayerNorm"),
    ],
    "bart": [
        Sublayer("ffn", "fc1", "fc2", "final_layer_norm", "final_layer_norm"),
    ],
}
BLOCKS = {
    "llama": "model.layers.0",
    "gpt2": "transformer.h.0",
    "t5": "decoder.block.0",
    "mbart": "model.decoder.layers.0",
    "bert": "bert.encoder.layer.0",
    "bart": "model.decoder.layers.0",
}
CASES = [(name, sublayer) for name, found in SUBLAYERS.items() for sublayer in found]


def in_adapterhub(f: Tensor, a: Tensor, norm: Any, kind: str, adapter: Any) -> Tensor:
    """What ``adapters`` 1.3 gives to the sum: ``seq_bn`` with original_ln_before, or ``par_bn``."""
    if kind == "par_bn":
        return f + 4 * adapter(a)
    return f + adapter(norm(f + a) if norm else f + a)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "placement", "scale"), [("seq_bn", "pfeiffer", 1.0), ("par_bn", "he", 4.0)]
)
@pytest.mark.parametrize(("name", "sublayer"), CASES, ids=[f"{n}-{s.site}" for n, s in CASES])
def test_placements_of_adapterhub(
    name: str, sublayer: Sublayer, kind: str, placement: Any, scale: float
) -> None:
    """The block continues with what AdapterHub adds to a, in pre-norm and post-norm blocks."""
    model = build(name)
    block = model.get_submodule(BLOCKS[name])
    norm = sublayer.norm and copy.deepcopy(block.get_submodule(sublayer.norm))
    f, a = (
        Watched(block.get_submodule(sublayer.returns)),
        Watched(block.get_submodule(sublayer.reads)),
    )
    then = Watched(block.get_submodule(sublayer.then))
    method = Adapter(reduction_factor=2, sites=[sublayer.site], placement=placement, scale=scale)
    attachment = adapt(model, method)
    stack = attachment.anatomy.stacks[-1].name
    number = [s.stack for s in attachment.plan.place(attachment.anatomy)[0].sites].index(stack)
    output(model, inputs(name))
    seen = then.output if sublayer.then == "" else then.input
    z = in_adapterhub(f.output, a.input, norm, kind, lambda h: added(attachment, number, h))
    torch.testing.assert_close(seen, z + a.input, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("placement", ["pfeiffer", "he"])
def test_parallel_residuals(placement: Any) -> None:
    """GPT-NeoX, x + attention + f + A(h), with h = f + x or x."""
    model: Any = build("gpt_neox")
    layer = model.gpt_neox.layers[0]
    attention, f = Watched(layer.attention.dense), Watched(layer.mlp.dense_4h_to_h)
    x, block = Watched(layer.post_attention_layernorm), Watched(layer)
    attachment = adapt(model, Adapter(reduction_factor=2, placement=placement))
    model(input_ids=TOKENS)
    h = x.input if placement == "he" else f.output + x.input
    expected = x.input + attention.output + f.output + added(attachment, 0, h)
    torch.testing.assert_close(block.output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("placement", ["pfeiffer", "he"])
@pytest.mark.parametrize("name", ["gemma2", "olmo2", "dinov2"])
def test_blocks_that_change_the_output_before_the_sum_are_refused(
    name: str, placement: Any
) -> None:
    message = (
        rf"'{placement}' needs blocks .* {name} does not do so after ffn in block 0 .*parallel"
    )
    with pytest.raises(ValueError, match=message):
        attach(build(name), Plan.uniform(Adapter(placement=placement)))


def test_a_plan_of_an_older_version_has_no_scale() -> None:
    config = Plan.uniform(Adapter()).to_config()
    del config["init_args"]["groups"][0]["methods"][0]["init_args"]["scale"]
    assert from_config(config) == Plan.uniform(Adapter(scale=1.0))


def test_unipelt_placement_needs_a_norm_after_the_sum() -> None:
    with pytest.raises(ValueError, match="gpt2 has no such norm: use placement='sequential'"):
        attach(tiny_gpt2(), Plan.uniform(Adapter(placement="unipelt")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "rellu"}, "'rellu': did you mean 'relu'"),
        ({"placement": "paralel"}, "'paralel': did you mean 'parallel'"),
        ({"scale": 0.0}, "scale=0.0, expected a positive number"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"bottleneck": 0}, "bottleneck=0"),
        ({"reduction_factor": 0}, "reduction_factor=0"),
    ],
)
def test_bad_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adapter(**options)


@pytest.mark.parametrize("site", ["fnn", "query", "ffn.in"])
def test_bad_site(site: str) -> None:
    with pytest.raises(ValueError, match=f"{site!r}.*must be one of: ffn, attention, cross_atten"):
        attach(tiny_bert(), Plan.uniform(Adapter(sites=(site,))))


def test_site_that_the_model_lacks() -> None:
    with pytest.raises(ValueError, match="'cross_attention': did you mean 'attention'"):
        attach(tiny_bert(), Plan.uniform(Adapter(sites=("cross_attention",))))
