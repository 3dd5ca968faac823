"""Every mergeable method, combined, behind constant gates, and beside closed ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LukeConfig, LukeModel, PreTrainedModel
from zoo import build, inputs, output

from lightning_pelt import (
    IA3,
    XPEFT,
    Adapter,
    BitFit,
    Compacter,
    Gate,
    Group,
    LoRA,
    Plan,
    Prefix,
    RandomBank,
    UniPELT,
    attach,
    merge,
)
from lightning_pelt.attach import Attachment, find_attachment
from lightning_pelt.methods.base import Method
from lightning_pelt.testing import awaken, draw

FAMILIES = ["bert", "gpt2", "llama", "t5", "phi3", "gpt_neox"]
WITH_BIASES = ["bert", "gpt2", "gpt_neox"]
SITES = ("key", "value", "ffn.out")  # on which all three methods meet
KEY = "bert.encoder.layer.1.attention.self.key"
VALUE = "bert.encoder.layer.1.attention.self.value"
METHODS = {
    "lora": LoRA(r=2, sites=SITES),
    "ia3": IA3(),
    "bitfit": BitFit(sites=SITES),
    "every-bias": BitFit(),
}


def trained(name: str, *methods: Method, norms: bool = False) -> tuple[PreTrainedModel, Attachment]:
    """An attached model in which every submodule has an effect."""
    model = build(name)
    attachment = attach(model, Plan.uniform(*methods, norms=norms))
    awaken(attachment)
    return model.eval(), attachment


@torch.no_grad()
def run(model: PreTrainedModel, name: str = "bert") -> Tensor:
    return output(model, inputs(name))


def assert_merges(model: PreTrainedModel, name: str) -> None:
    """Merged, the model has the names of the base and the outputs of the unmerged one."""
    before = run(model, name)
    assert not torch.allclose(run(build(name), name), before, atol=1e-3)
    merge(model)
    assert find_attachment(model) is None
    assert set(model.state_dict()) == set(build(name).state_dict())
    torch.testing.assert_close(run(model, name), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_ia3_equals_unmerged(name):
    assert_merges(trained(name, IA3())[0], name)


@pytest.mark.parametrize("name", WITH_BIASES)
def test_bitfit_equals_unmerged(name):
    """Of linear layers and norms, within the blocks and outside."""
    assert_merges(trained(name, BitFit())[0], name)


@pytest.mark.parametrize("name", WITH_BIASES)
@pytest.mark.parametrize("order", [("lora", "ia3", "bitfit"), ("bitfit", "ia3", "lora")])
def test_combinations_equal_unmerged(name, order):
    assert_merges(trained(name, *(METHODS[kind] for kind in order), norms=True)[0], name)


@pytest.mark.parametrize("name", ["llama", "t5", "phi3"])
@pytest.mark.parametrize("order", [("lora", "ia3"), ("ia3", "lora")])
def test_combinations_without_biases_equal_unmerged(name, order):
    assert_merges(trained(name, *(METHODS[kind] for kind in order), norms=True)[0], name)


def parts(attachment: Attachment) -> tuple[Tensor, Tensor, Tensor]:
    """B A, l and c of the value in block 1 of BERT."""
    layer: Any = attachment.model.get_submodule(VALUE)
    host = layer.pelt
    (down,) = (m for m in host.lora_up.down.modules() if hasattr(m, "A"))
    rank = host.lora_up.rank
    place = host.lora_up.indices[0] * rank
    delta = host.lora_up.scale * host.lora_up.B_value @ down.A[place : place + rank]
    return delta.detach(), host.ia3_value.vector.detach(), host.bitfit_value.bias.detach()


def test_methods_act_in_the_order_of_the_plan():
    """By explicit formula: l * ((W + B A) x + b) + c, and W' with everything the other way."""
    weight, bias = (
        getattr(build("bert").get_submodule(VALUE), n).detach() for n in ("weight", "bias")
    )
    model, attachment = trained("bert", METHODS["lora"], METHODS["ia3"], METHODS["bitfit"])
    delta, factor, added = parts(attachment)
    layer: Any = merge(model).get_submodule(VALUE)
    torch.testing.assert_close(layer.weight.detach(), factor[:, None] * (weight + delta))
    torch.testing.assert_close(layer.bias.detach(), factor * bias + added)
    model, attachment = trained("bert", METHODS["bitfit"], METHODS["ia3"], METHODS["lora"])
    delta, factor, added = parts(attachment)
    layer = merge(model).get_submodule(VALUE)
    torch.testing.assert_close(layer.weight.detach(), factor[:, None] * weight + delta)
    torch.testing.assert_close(layer.bias.detach(), factor * (bias + added))


def test_the_order_is_that_of_each_block():
    """The first group has LoRA before IA3, the second one IA3 before LoRA."""
    lora, ia3 = METHODS["lora"], METHODS["ia3"]
    model = build("bert")
    plan = Plan([Group([lora, ia3], blocks="0"), Group([ia3, lora], blocks="1")])
    awaken(attach(model, plan))
    assert_merges(model, "bert")


def test_lora_reads_the_input_that_ia3_has_rescaled():
    """At ffn.out, (W + B A) diag(l), in either order of the plan."""
    for order in (("lora", "ia3"), ("ia3", "lora")):
        model, _ = trained("bert", *(METHODS[kind] for kind in order))
        path = "bert.encoder.layer.0.output.dense"
        layer: Any = model.get_submodule(path)
        weight, factor = layer.weight.detach().clone(), layer.pelt.ia3_ffn_out.vector.detach()
        up = layer.pelt.lora_up
        delta = (up.scale * up.B_ffn_out @ up.down.A).detach()
        merge(model)
        torch.testing.assert_close(layer.weight.detach(), (weight + delta) * factor)


# Gates.


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("openness", [1.0, 0.3])
def test_constant_gates_equal_unmerged(kind, openness):
    gated = copy.copy(METHODS[kind])
    object.__setattr__(gated, "gate", Gate(learned=False))
    model, attachment = trained("bert", gated)
    for gate in attachment.gates.values():
        gate.set_open(openness)
    assert_merges(model, "bert")


@pytest.mark.parametrize("name", FAMILIES[1:])
def test_constant_gates_on_other_families(name):
    constant = Gate(learned=False)
    model, attachment = trained(name, LoRA(r=2, sites=SITES, gate=constant), IA3(gate=constant))
    for number, gate in enumerate(attachment.gates.values()):
        gate.set_open((0.3, 1.0, 0.0)[number % 3])
    assert_merges(model, name)


def test_a_constant_gate_multiplies_every_part():
    """B A, l - 1 and c times the openness; the scale of LoRA is the gate."""
    constant = Gate(learned=False)
    methods = [LoRA(r=2, sites=SITES, gate=constant), IA3(gate=constant)]
    model, attachment = trained("bert", *methods, BitFit(sites=SITES, gate=constant))
    layer: Any = model.get_submodule(VALUE)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    delta, factor, added = parts(attachment)
    for gate in attachment.gates.values():
        gate.set_open(0.25)
    merge(model)
    rows = 1 + 0.25 * (factor - 1)
    torch.testing.assert_close(layer.weight.detach(), rows[:, None] * (weight + 0.25 * delta))
    torch.testing.assert_close(layer.bias.detach(), rows * bias + 0.25 * added)


def assert_is_base(model: PreTrainedModel, name: str = "bert") -> None:
    base = build(name).state_dict()
    assert model.state_dict().keys() == base.keys()
    assert all(torch.equal(tensor, base[n]) for n, tensor in model.state_dict().items())


@pytest.mark.parametrize("gate", [Gate(learned=False), Gate()], ids=["constant", "learned"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_closed_gates_merge_to_exactly_nothing(name, gate):
    """Also a learned gate, and also a bias of a layer that has none."""
    model, attachment = trained(name, LoRA(r=2, gate=gate), IA3(gate=gate), BitFit(gate=gate))
    for view in attachment.gates.values():
        view.set_open(0.0)
    before = run(model, name)
    assert_is_base(merge(model), name)
    assert torch.equal(run(model, name), before)


def test_what_a_schedule_has_closed_is_left_out():
    """UniPELT with everything but a part of LoRA closed, as a schedule that prunes leaves it."""
    methods = [LoRA(r=2), Adapter(bottleneck=4, gate=Gate()), Prefix(length=2, gate=Gate())]
    model, attachment = trained("bert", *methods)
    with pytest.raises(ValueError, match=r"Adapter cannot be .*not closed: 00/adapter, 01/adapter"):
        merge(model)
    for gate in attachment.gates.values():
        gate.set_open(0.0)
    assert_merges(model, "bert")


def test_an_open_gate_among_closed_ones_is_refused():
    model, attachment = trained("bert", LoRA(r=2, gate=Gate()))
    *closed, last = attachment.gates.values()
    for gate in closed:
        gate.set_open(0.0)
    with pytest.raises(ValueError, match="'lora' is gated"):
        merge(model)
    last.set_open(0.0)
    assert_is_base(merge(model))


def test_openness_loaded_from_a_state_is_merged():
    gated = LoRA(r=2, gate=Gate(learned=False))
    model, attachment = trained("bert", gated)
    for gate in attachment.gates.values():
        gate.set_open(0.3)
    before, other = run(model), build("bert")
    attach(other, Plan.uniform(gated, norms=False))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(run(merge(other)), before, rtol=1e-5, atol=1e-5)


def test_a_copy_is_merged_alone():
    model, _ = trained("bert", METHODS["lora"], METHODS["ia3"], METHODS["bitfit"])
    before, copied = run(model), copy.deepcopy(model)
    merge(copied)
    assert torch.equal(run(model), before)
    torch.testing.assert_close(run(copied), before, rtol=1e-5, atol=1e-5)


def test_a_merged_model_takes_another_plan():
    model, _ = trained("bert", IA3(), BitFit())
    merge(model)
    base = run(model)
    attachment = attach(model, Plan.uniform(IA3()))
    assert torch.equal(run(model), base)
    awaken(attachment)
    before = run(model)
    torch.testing.assert_close(run(merge(model)), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    """Rounded once per layer; trained norms return to the dtype of the base."""
    model = build("bert").to(dtype)
    methods = [METHODS["lora"], METHODS["ia3"], METHODS["bitfit"]]
    awaken(attach(model, Plan.uniform(*methods, norms=True)))
    before = run(model)
    after = run(merge(model))
    assert {parameter.dtype for parameter in model.bert.parameters()} == {dtype}
    scale = before.abs().max()
    assert ((after - before).abs() <= 8 * max(torch.finfo(dtype).eps, 1e-6) * scale).all()


def test_repeated_projections():
    """DeBERTa-v3 projects tokens and positions with one layer; a gate acts on the tokens alone."""
    assert_merges(trained("deberta-v2", LoRA(r=2), IA3(), BitFit())[0], "deberta-v2")
    model, attachment = trained("deberta-v2", LoRA(r=2, gate=Gate(learned=False)))
    before = run(model, "deberta-v2")
    with pytest.raises(ValueError, match=r"query_proj runs on several .* 'lora'.* gate=None"):
        merge(model)
    assert torch.equal(run(model, "deberta-v2"), before)
    for gate in attachment.gates.values():
        gate.set_open(0.0)
    merge(model)
    assert_is_base(model, "deberta-v2")


def tiny_luke() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = LukeConfig(
        vocab_size=60, entity_vocab_size=20, entity_emb_size=16, num_hidden_layers=2, **sizes
    )
    return draw(LukeModel(config))


@torch.no_grad()
@pytest.mark.parametrize("gated", [False, True], ids=["ungated", "gated"])
def test_layers_that_read_words_and_entities(gated):
    """LUKE's keys and values run on both; a gate acts on the words alone."""
    words, entities = torch.arange(3, 11)[None], torch.tensor([[3, 4]])
    spans = torch.tensor([[[0, 1, -1], [2, 3, -1]]])
    given = {"input_ids": words, "entity_ids": entities, "entity_position_ids": spans}

    def states(model: PreTrainedModel) -> Tensor:
        result = model(**given)
        return torch.cat([result.last_hidden_state, result.entity_last_hidden_state], 1)

    model, gate = tiny_luke(), Gate(learned=False) if gated else None
    awaken(attach(model, Plan.uniform(LoRA(r=2, gate=gate), IA3(gate=gate), BitFit(gate=gate))))
    before = states(model)
    try:
        merge(model)
    except ValueError as error:
        assert gated
        assert "runs on several tensors" in str(error)
    torch.testing.assert_close(states(model), before, rtol=1e-5, atol=1e-5)


# What is refused.


def assert_refused(model: PreTrainedModel, message: str, name: str = "bert") -> None:
    before = run(model, name)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        merge(model)
    assert torch.equal(run(model, name), before)
    assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items())
    assert find_attachment(model) is not None


@pytest.mark.parametrize(
    "method",
    [
        Compacter(n=2, bottleneck=4),
        Adapter(bottleneck=4),
        Prefix(length=2),
        XPEFT(bank=RandomBank(size=4), k=2, bottleneck=4),
        XPEFT(bank=RandomBank(size=4), k=2, bottleneck=4, gate=Gate(learned=False)),
    ],
    ids=lambda method: type(method).__name__,
)
def test_methods_that_are_no_change_of_weights_are_refused(method):
    name = type(method).__name__
    assert_refused(trained("bert", LoRA(r=2), method)[0], f"^{name} cannot be merged into the weig")


def test_heads_of_profiles_are_refused_although_their_gates_are_closed():
    method = XPEFT(bank=RandomBank(size=4), k=2, bottleneck=4, head="profile", gate=Gate())
    model, attachment = trained("bert", method)
    for gate in attachment.gates.values():
        gate.set_open(0.0)
    assert_refused(model, "XPEFT cannot be merged")


@pytest.mark.parametrize(
    ("name", "method", "layer"),
    [
        ("llama", BitFit(sites=["value"]), r"layers\.0\.self_attn\.v_proj \(Linear\)"),
        ("phi3", BitFit(sites=["ffn.out"]), r"layers\.0\.mlp\.down_proj \(Linear\)"),
        ("t5", BitFit(sites=["norm"]), r"layer_norm \(T5LayerNorm\)"),
        ("llama", BitFit(sites=["norm"]), r"\(LlamaRMSNorm\)"),
    ],
    ids=["linear", "fused", "t5-norm", "rms-norm"],
)
def test_a_bias_that_no_file_could_hold_is_refused(name, method, layer):
    """``from_pretrained`` builds the layer without one, and would drop it."""
    model, _ = trained(name, method)
    assert_refused(model, rf"{layer} has no bias, and .*ForC.*would drop", name)


def test_an_untrained_bias_needs_none():
    model = build("llama")
    attach(model, Plan.uniform(BitFit(), norms=False))
    assert_is_base(merge(model), "llama")


def share_bias(model: nn.Module) -> None:
    model.get_submodule(KEY).bias = model.get_submodule(VALUE).bias  # type: ignore[assignment]


def share_memory(model: nn.Module) -> None:
    value: Any = model.get_submodule(VALUE)
    model.get_submodule(KEY).weight = nn.Parameter(value.weight.data)


@pytest.mark.parametrize(
    ("change", "method", "what"),
    [(share_bias, BitFit(sites=["value"]), "bias"), (share_memory, IA3(), "weight")],
    ids=["bias", "views-of-one-memory"],
)
def test_what_another_layer_shares_is_refused(change, method, what):
    model = build("bert")
    change(model)
    awaken(attach(model, Plan.uniform(method)))
    path = KEY if isinstance(method, IA3) else VALUE
    assert_refused(model, rf"the {what} of {path} is also that of .*\.{what}.*Untie them")


class Doubled(nn.Linear):
    """Adds to its output what is not in its weight, as layers of other libraries do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.sum(-1, keepdim=True)


class FixedBias(nn.Linear):
    """Computes without its bias."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class CopyingNorm(nn.LayerNorm):
    """Computes with a copy of its bias."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("copy", self.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - self.bias + self.copy


@pytest.mark.parametrize(
    ("kind", "path", "method"),
    [
        (Doubled, VALUE, IA3()),
        (FixedBias, VALUE, BitFit(sites=["value"])),
        (CopyingNorm, "bert.encoder.layer.1.output.LayerNorm", BitFit(sites=["norm"])),
    ],
    ids=["another-term", "unused-bias", "norm"],
)
def test_layers_that_do_not_follow_their_own_tensors_are_refused(kind, path, method):
    model = build("bert")
    old: Any = model.get_submodule(path)
    new = kind(*((32, 32) if kind is not CopyingNorm else (32,)))
    new.load_state_dict(old.state_dict(), strict=False)
    model.set_submodule(path, new)
    awaken(attach(model, Plan.uniform(method, norms=False)))
    assert_refused(model, rf"{path} \({kind.__name__}\) does not compute with its .* alone")


def test_a_term_beside_the_weight_does_not_hinder_an_added_update():
    """W x + f(x) + B A x is (W + B A) x + f(x)."""
    model = build("bert")
    old: Any = model.get_submodule(VALUE)
    new = Doubled(32, 32)
    new.load_state_dict(old.state_dict())
    model.set_submodule(VALUE, new)
    awaken(attach(model, Plan.uniform(LoRA(r=2), BitFit(sites=["value"]))))
    before = run(model)
    torch.testing.assert_close(run(merge(model)), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [IA3(), BitFit()], ids=["ia3", "bitfit"])
def test_nan_is_refused(method):
    model, attachment = trained("bert", method)
    with torch.no_grad():
        attachment.parameters_of(method.name)[-1].view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match="contains NaN or infinity"):
        merge(model)


def test_a_trial_moves_no_statistics_and_no_mode():
    model = build("bert")
    path = "bert.encoder.layer.1.output.LayerNorm"
    awaken(attach(model, Plan.uniform(BitFit(sites=["norm"]), norms=False)))
    model.train()
    merge(model)
    assert model.get_submodule(path).training


def test_unipelt_without_its_gates_closed_is_refused():
    model = build("bert")
    attach(model, UniPELT())
    with pytest.raises(ValueError, match="cannot be merged"):
        merge(model)


def test_one_of_two_groups_without_a_gate_is_refused():
    """Both are called adapter, and the gates of the other one are closed."""
    groups = [
        Group([Adapter(bottleneck=4)], blocks="0"),
        Group([Adapter(bottleneck=4, gate=Gate())], blocks="1"),
    ]
    model = build("bert")
    attachment = attach(model, Plan(groups))
    awaken(attachment)
    for gate in attachment.gates.values():
        gate.set_open(0.0)
    assert_refused(model, "Adapter cannot be merged")


def test_several_attached_models_are_merged_one_by_one():
    module = nn.ModuleDict({"teacher": build("bert"), "student": build("bert")})
    for model in module.values():
        awaken(attach(model, Plan.uniform(LoRA(r=2))))
    with pytest.raises(ValueError, match=r"2 attached models \(teacher, student\): merge each"):
        merge(module)
    for model in module.values():
        assert_merges(model, "bert")
