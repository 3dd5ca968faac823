"""LoRA against peft, and against weights that are changed by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification, PreTrainedModel
from zoo import HEADS, WIDTH, build, inputs, output

from lightning_pelt import Gate, LoRA, Plan, attach
from lightning_pelt.anatomy import Site, Source
from lightning_pelt.attach import Attachment
from lightning_pelt.methods import _principal
from lightning_pelt.methods._lora_factors import LoRADown, LoRAUp
from lightning_pelt.methods._principal import principal_factors
from lightning_pelt.methods.submodule import OutputRows
from lightning_pelt.testing import MethodConformance, awaken, tiny_bert, tiny_gpt2

D = WIDTH // HEADS


class TestLoRA(MethodConformance):
    method = LoRA(r=4)


class TestGatedLoRA(MethodConformance):
    compiled = ("bert", "gpt2")
    method = LoRA(r=4, gate=Gate())


def lora(model: nn.Module, method: LoRA) -> Attachment:
    attachment = attach(model, Plan.uniform(method))
    awaken(attachment)
    return attachment


def factors(attachment: Attachment, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """A (r, d_in) and B (d_out, r) by host and site, ``bert.encoder.layer.0.attention/query``."""
    modules = attachment.submodules["lora"]
    owners = {module: path for path, module in attachment.model.named_modules()}
    found, down = {}, None
    for module in modules:
        if isinstance(module, LoRADown):
            down, row = module, 0
            continue
        assert isinstance(module, LoRAUp)
        for key in module.keys:
            low = down.A[row : row + rank]
            host = owners[module].partition(".pelt.")[0]
            found[f"{host}/{key}"] = (low.detach(), getattr(module, f"B_{key}").detach())
            row += rank
    return found


# Rows of a fused projection that hold queries and values, family by family, as the modeling code
# splits it. Independent of how the anatomy finds them.


def thirds(rows: Tensor) -> tuple[Tensor, Tensor]:
    query, _, value = rows.split(WIDTH)
    return query, value


def per_head(rows: Tensor) -> tuple[Tensor, Tensor]:
    heads = rows.view(HEADS, 3, D)
    return heads[:, 0].flatten(), heads[:, 2].flatten()


def one_key(rows: Tensor) -> tuple[Tensor, Tensor]:
    query, _, value = rows.split([HEADS * D, D, D])
    return query, value


def groups(rows: Tensor) -> tuple[Tensor, Tensor]:  # per group: 2 query heads, a key, a value
    heads = rows.view(2, 4, D)
    return heads[:, :2].flatten(), heads[:, 3].flatten()


FUSED: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "gpt2": thirds,
    "modernbert": thirds,
    "gpt_bigcode": one_key,
    "gpt_neox": per_head,
    "bloom": per_head,
    "deberta": per_head,
    "phi3": thirds,
    "falcon": one_key,
    "falcon-new": groups,
    "falcon-old": per_head,
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_projection_is_a_changed_weight(name: str) -> None:
    method = LoRA(r=4, alpha=6.0)
    model, batch = build(name), inputs(name)
    changed = copy.deepcopy(model)
    updates = factors(lora(model, method), rank=4)
    assert len(updates) == 4, "query and value of two blocks"
    for host, _, site in (key.partition("/") for key in updates):
        low, up = updates[f"{host}/{site}"]
        linear = changed.get_submodule(host)
        transposed = type(linear).__name__ == "Conv1D"
        weight = linear.weight.data.T if transposed else linear.weight.data
        rows = FUSED[name](torch.arange(len(weight)))[0 if site == "query" else 1]
        weight[rows] += 1.5 * up @ low  # alpha / r = 6 / 4; a view, also of Conv1D's transpose
    with torch.no_grad():
        torch.testing.assert_close(output(model, batch), output(changed, batch), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", FUSED)
def test_delta_is_the_change_of_the_weight(name: str) -> None:
    model = build(name)
    attachment = lora(model, LoRA(r=2, alpha=6.0))
    updates = factors(attachment, rank=2)
    for module in attachment.submodules["lora"]:
        if isinstance(module, LoRAUp):
            linear = model.get_submodule(module.path)
            width = linear.weight.shape[1 if type(linear).__name__ == "Conv1D" else 0]
            expected = torch.zeros(width, WIDTH)
            for site, rows in zip(
                ("query", "value"), FUSED[name](torch.arange(width)), strict=True
            ):
                low, up = updates[f"{module.path}/{site}"]
                expected[rows] = 3.0 * up @ low
            found = torch.zeros(width, WIDTH)
            for update in module.weight_updates():
                assert update.path == module.path
                rows = torch.arange(width) if update.rows is None else update.rows
                found[rows] += update.delta.detach()
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("name", "targets", "sites"),
    [
        ("bert", ["query", "value"], ("query", "value")),
        ("bert", ["key", "output.dense"], ("key", "output", "ffn.out")),
        ("llama", ["q_proj", "v_proj", "o_proj"], ("query", "value", "output")),
        ("llama", ["gate_proj", "up_proj", "down_proj"], ("ffn.in", "ffn.out")),
        ("t5", ["q", "v"], ("query", "value")),
    ],
)
def test_equals_peft(name: str, targets: list[str], sites: tuple[str, ...], rslora: bool) -> None:
    peft = pytest.importorskip("peft")
    model, batch = build(name), inputs(name)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, use_rslora=rslora, lora_dropout=0.0
    )
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    attachment = lora(model, LoRA(r=4, alpha=6.0, rslora=rslora, sites=sites))
    updates = factors(attachment, rank=4)
    layers = dict(theirs.base_model.model.named_modules())
    adapted = {path for path, module in layers.items() if hasattr(module, "lora_A")}
    assert {key.partition("/")[0] for key in updates} == adapted
    for key, (low, up) in updates.items():
        layer = layers[key.partition("/")[0]]
        layer.lora_A["default"].weight.data.copy_(low)
        layer.lora_B["default"].weight.data.copy_(up)
    ours, other = output(model, batch), output(theirs.eval(), batch)
    torch.testing.assert_close(ours, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 4.0), (True, 8.0)])
def test_scale(rslora: bool, scale: float) -> None:
    method = LoRA(r=4, alpha=16.0, rslora=rslora)
    model = tiny_bert()
    query = model.bert.encoder.layer[1].attention.self.query
    plain = copy.deepcopy(query)
    attachment = lora(model, method)
    low, up = factors(attachment, rank=4)["bert.encoder.layer.1.attention.self.query/query"]
    seen: list[tuple[Tensor, Tensor]] = []
    query.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        model(input_ids=torch.arange(3, 11)[None])
        x, y = seen[0]
        torch.testing.assert_close(y, plain(x) + scale * x @ low.T @ up.T)


def test_gate_takes_the_place_of_the_scale() -> None:
    """Per example, y = W x + b + mean over real tokens of sigmoid(w x + b_g), times B A x."""
    model = tiny_bert()
    value = model.bert.encoder.layer[0].attention.self.value
    plain = copy.deepcopy(value)
    attachment = lora(model, LoRA(r=4, alpha=100.0, gate=Gate()))
    low, up = factors(attachment, rank=4)["bert.encoder.layer.0.attention.self.value/value"]
    weight, bias = attachment.gates["00/lora.value"].parameters()
    seen: list[tuple[Tensor, Tensor]] = []
    value.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    tokens = torch.arange(3, 19).view(2, 8)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    with torch.no_grad():
        model(input_ids=tokens, attention_mask=mask)
        x, y = seen[0]
        open_first = 1 / (1 + torch.exp(-(x[0] @ weight[0] + bias)))
        open_second = 1 / (1 + torch.exp(-(x[1, :5] @ weight[0] + bias)))
        gate = torch.stack([open_first.mean(), open_second.mean()])
        torch.testing.assert_close(y, plain(x) + gate.view(2, 1, 1) * (x @ low.T @ up.T))
        torch.testing.assert_close(attachment.gates["00/lora.value"].value, gate)


def test_starts_at_the_base() -> None:
    model = tiny_bert()
    tokens = torch.arange(3, 11)[None]
    with torch.no_grad():
        base = model(input_ids=tokens).logits
        attach(model, Plan.uniform(LoRA()))
        assert torch.equal(model(input_ids=tokens).logits, base)


def test_initial_weights() -> None:
    """A uniform in +-1 / sqrt(d_in), B zero, as in the authors' code."""
    attachment = attach(tiny_bert(), Plan.uniform(LoRA(r=16)))
    for low, up in factors(attachment, rank=16).values():
        assert not up.any()
        assert low.abs().max() <= 1 / math.sqrt(32)
        assert low.std() == pytest.approx(1 / math.sqrt(3 * 32), rel=0.1)


def test_dropout_only_in_training() -> None:
    model, tokens = tiny_bert(), torch.arange(3, 11)[None]
    plain = tiny_bert()
    lora(plain, LoRA(r=4))
    lora(model, LoRA(r=4, dropout=0.5))
    with torch.no_grad():
        without = plain(input_ids=tokens).logits
        assert torch.equal(model(input_ids=tokens).logits, without)
        model.train()
        first, second = (model(input_ids=tokens).logits for _ in range(2))
        assert not torch.equal(first, second)
        assert not torch.equal(first, without)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA(r=0), "rank r=0"),
        (lambda: LoRA(dropout=1.0), r"dropout=1\.0"),
    ],
)
def test_bad_values(make: Callable[[], LoRA], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("site", ["ffn", "attention", "norm"])
def test_needs_a_linear_layer(site: str) -> None:
    with pytest.raises(ValueError, match=rf"'{site}' is not one: use query"):
        attach(tiny_bert(), Plan.uniform(LoRA(sites=(site,))))


def test_unknown_site() -> None:
    with pytest.raises(ValueError, match=r"'quary': did you mean '.*query'"):
        attach(tiny_bert(), Plan.uniform(LoRA(sites=("quary",))))


def test_places_in_a_fused_projection_move_with_the_model() -> None:
    """Otherwise every forward on a GPU would copy them there; checkpoints do without them."""
    model = build("gpt2")
    attachment = lora(model, LoRA())
    modules = [module for up in attachment.submodules["lora"] for module in up.modules()]
    places = [module for module in modules if isinstance(module, OutputRows)]
    assert places
    assert not any("rows" in name for name in model.state_dict())
    model.to("meta")
    assert {place.rows.device.type for place in places} == {"meta"}


class TestPiSSA(MethodConformance):
    compiled = ("bert",)
    method = LoRA(r=4, init="pissa")


class TestGatedPiSSA(MethodConformance):
    compiled = ("gpt2",)
    method = LoRA(r=4, init="pissa", gate=Gate())

    def models(self) -> dict[str, Callable[[], PreTrainedModel]]:
        return {"gpt2": tiny_gpt2}  # fused, causal and transposed


def up_projections(attachment: Attachment) -> list[LoRAUp]:
    return [module for module in attachment.submodules["lora"] if isinstance(module, LoRAUp)]


@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_starts_and_computes_as_in_peft(rslora: bool) -> None:
    """PEFT takes the principal part from the weights of the base; here it is subtracted."""
    peft = pytest.importorskip("peft")
    model, batch = build("bert"), inputs("bert")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["query", "value"],
        use_rslora=rslora,
        init_lora_weights="pissa",
    )
    theirs = peft.get_peft_model(copy.deepcopy(model), config).eval()
    layers = dict(theirs.base_model.model.named_modules())
    method = LoRA(r=4, alpha=6.0, rslora=rslora, init="pissa")
    before = output(model, batch).detach()
    attachment = attach(model, Plan.uniform(method))
    assert torch.equal(output(model, batch), before), "the start is exactly the base"
    for key, (A, B) in factors(attachment, rank=4).items():
        layer = layers[key.partition("/")[0]]
        there = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.testing.assert_close(B @ A, there[1] @ there[0], rtol=0, atol=1e-5)
    awaken(attachment)
    for key, (A, B) in factors(attachment, rank=4).items():
        layer = layers[key.partition("/")[0]]
        layer.lora_A["default"].weight.data.copy_(A)
        layer.lora_B["default"].weight.data.copy_(B)
    ours, other = output(model, batch), output(theirs, batch)
    assert (ours - before).abs().max() > 1e-2
    torch.testing.assert_close(ours, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_pissa_starts_from_the_rows_of_each_site_of_a_fused_projection(name: str) -> None:
    model = build(name)
    attachment = attach(model, Plan.uniform(LoRA(r=3, alpha=6.0, init="pissa")))
    for (host, _, site), (A, B) in (
        (key.partition("/"), pair) for key, pair in factors(attachment, rank=3).items()
    ):
        linear = model.get_submodule(host)
        weight = linear.weight.T if type(linear).__name__ == "Conv1D" else linear.weight
        rows = FUSED[name](torch.arange(len(weight)))[0 if site == "query" else 1]
        left, sizes, right = torch.linalg.svd(weight[rows])
        expected = left[:, :3] * sizes[:3] @ right[:3]
        torch.testing.assert_close(2.0 * B @ A, expected, rtol=0, atol=1e-5)


def test_randomised_decomposition_finds_the_principal_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(80, 60, bias=False)
    left = torch.linalg.qr(torch.randn(60, 60, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(80, 60, generator=generator)).Q
    linear.weight.data = left * (0.8 ** torch.arange(60)) @ right.T
    site = Site("attention.query", "encoder", 0, "query", 80, 60, Source("query", 0, 80))
    exact = principal_factors(linear, site, 5)
    monkeypatch.setattr(_principal, "EXACT", 8)
    A, B = principal_factors(linear, site, 5)
    assert A.shape == (5, 80)
    torch.testing.assert_close(B @ A, exact[1] @ exact[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(B.norm(dim=0), A.norm(dim=1))


def test_pissa_in_half_precision_starts_exactly_and_keeps_small_changes() -> None:
    """A change below the precision of the principal part, 2^-9, has its whole effect."""
    model = tiny_bert().bfloat16()
    value = model.bert.encoder.layer[0].attention.self.value
    method = LoRA(r=4, alpha=4.0, init="pissa", sites=["value"])
    attachment = attach(model, Plan.uniform(method))
    (module, _) = up_projections(attachment)
    seen: list[tuple[Tensor, Tensor]] = []
    value.register_forward_hook(lambda layer, args, output: seen.append((args[0], output)))
    batch = {"input_ids": torch.arange(3, 11)[None]}
    with torch.no_grad():
        model(**batch)
        x, start = seen[-1]
        assert torch.equal(start, nn.functional.linear(x, value.weight, value.bias))
        A, B = module.down.A, module.B_value
        change = 2.0**-12 * B
        B.add_(change)
        found = module(torch.zeros_like(start), x)
        expected = (x.float() @ A.T @ change.T).bfloat16()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=1e-6)


def test_pissa_does_not_decay_and_is_merged_and_saved() -> None:
    assert LoRA().weight_decay
    assert not LoRA(init="pissa").weight_decay
    model, fresh = tiny_bert(), tiny_bert()
    attachment = lora(model, LoRA(r=4, init="pissa"))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert sum("A0" in name or "B0" in name for name in state) == 6
    other = attach(fresh, Plan.uniform(LoRA(r=4, init="pissa")), seed=5)
    with torch.no_grad():
        for module in up_projections(other):  # as if a decomposition gave another principal part
            for key in module.keys:
                getattr(module, f"B0_{key}").mul_(2)
    fresh.load_state_dict(state)
    batch = {"input_ids": torch.arange(3, 11)[None]}
    assert torch.equal(fresh(**batch).logits, model(**batch).logits)
    assert attachment.counts["lora"].trained == 4 * 4 * 64


@pytest.mark.parametrize("bad", ["PiSSA", "pisa"])
def test_unknown_init_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="init of LoRA"):
        LoRA(init=bad)  # type: ignore[arg-type]


def test_pissa_refuses_a_rank_beyond_the_weight_and_quantised_weights() -> None:
    model = tiny_bert()
    with pytest.raises(ValueError, match=r"r=33.*query.*32 singular values: use r=32 or less"):
        attach(model, Plan.uniform(LoRA(r=33, init="pissa")))
    value = model.bert.encoder.layer[1].attention.self.value
    value.weight = nn.Parameter(value.weight.data.to(torch.int8), requires_grad=False)
    site = Site("attention.value", "encoder", 1, "layer.1.value", 32, 32, Source("x", 0, 32))
    with pytest.raises(ValueError, match=r"those of layer.1.value \(Linear\) are quantised"):
        principal_factors(value, site, 4)


def test_pissa_refuses_the_meta_device() -> None:
    config = tiny_bert().config
    with torch.device("meta"):
        model = BertForSequenceClassification(config)
    with pytest.raises(ValueError, match=r"LoRA \('lora'\) starts from weights of the base"):
        attach(model, Plan.uniform(LoRA(init="pissa")))


def test_rank_stabilised_sizes_keep_alpha() -> None:
    """Kalajdzievski, 2023: alpha is chosen once, and the scale follows the rank."""
    assert LoRA(rslora=True, alpha=16.0).sized(64).scale == 2.0
    assert LoRA(alpha=5.0).sized(64).scale == LoRA().scale
