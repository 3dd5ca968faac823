"""A plan that is accepted runs, and one that is refused leaves nothing behind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
)
from zoo import build

from lightning_pelt import (
    IA3,
    XPEFT,
    Adapter,
    BitFit,
    Gate,
    LoRA,
    Plan,
    Prefix,
    RandomBank,
    UniPELT,
    attach,
    merge,
)
from lightning_pelt.anatomy import Site, stand_ins
from lightning_pelt.attach import trial
from lightning_pelt.methods._lora_factors import LoRAUp
from lightning_pelt.methods.base import Part, Place
from lightning_pelt.methods.gate import GateView
from lightning_pelt.methods.linear import LinearMethod, LinearUpdate
from lightning_pelt.testing import awaken, draw, hook_counts, is_ours, tiny_bert

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


@pytest.fixture(autouse=True)
def _nothing_is_known() -> None:
    """Plans that have run on an equal model before are not tried."""
    trial.RAN.forget()


@dataclass(frozen=True)
class Broken(LinearMethod):
    """A method that works for the one row on which a model is examined."""

    sites: Sequence[str] = ("ffn.in",)
    gate: Gate | None = None
    name: str = "broken"

    def build(self, place: Place) -> list[Part]:
        return [Part(s.path, self.name, BrokenUpdate(s, None)) for s in place.sites]


class BrokenUpdate(LinearUpdate):
    def __init__(self, site: Site, gate: GateView | None) -> None:
        super().__init__(site, gate)
        self.bias = nn.Parameter(torch.zeros(1, 8, site.d_out))

    def update(self, x: Tensor) -> Tensor:
        return self.bias + x.new_zeros(1, *x.shape[1:-1], self.site.d_out).expand(1, -1, -1).view(
            len(x), -1, self.site.d_out
        )


def state(model: PreTrainedModel) -> dict[str, Any]:
    return {
        "hooks": hook_counts(model),
        "modules": [name for name, _ in model.named_modules()],
        "attributes": {path: set(vars(module)) for path, module in model.named_modules()},
        "trained": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
    }


def test_what_fails_is_refused_by_the_name_of_its_site() -> None:
    model = tiny_bert()
    model.bert.encoder.layer[1].train()
    next(model.parameters()).requires_grad_(False)
    before, weights = state(model), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.0\.intermediate\.dense of Bert"):
        attach(model, Plan.uniform(Broken()))
    assert state(model) == before
    assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())
    attach(model, UniPELT())


def test_a_linear_layer_that_returns_a_tuple() -> None:
    """I-BERT's give the scale of their integers too, of which LoRA gives no multiples."""
    shape = {"vocab_size": 50, **SHAPE}
    attach(AutoModel.from_config(AutoConfig.for_model("ibert", **shape)), Plan.uniform(LoRA()))
    integers = AutoModel.from_config(AutoConfig.for_model("ibert", quant_mode=True, **shape))
    with pytest.raises(ValueError, match="no attention found in IBertModel"):
        attach(integers, Plan.uniform(LoRA()))
    assert not any(is_ours(name) for name in integers.state_dict())


def test_a_model_that_fails_on_two_rows_decides_on_one() -> None:
    model: Any = tiny_bert()

    def single(module: nn.Module, args: tuple, kwargs: dict) -> None:
        assert len(kwargs["input_ids"]) == 1, "one row at a time"

    model.bert.register_forward_pre_hook(single, with_kwargs=True)
    assert attach(model, UniPELT()).submodules
    other: Any = tiny_bert()
    other.bert.register_forward_pre_hook(single, with_kwargs=True)
    attach(other, Plan.uniform(Broken()))  # which works on one row


class Restless(nn.Module):
    """Counts in train mode like BatchNorm, and draws random numbers in any mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return x + 0 * torch.rand_like(x)


def test_nothing_moves() -> None:
    model: Any = tiny_bert()
    model.bert.encoder.layer[0].output.dropout = Restless()
    model.train()
    model(input_ids=torch.arange(3, 9)[None]).logits.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    seen, random = model.bert.encoder.layer[0].output.dropout.seen.clone(), torch.get_rng_state()
    attachment = attach(model, UniPELT())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model.bert.encoder.layer[0].output.dropout.seen, seen)
    assert all(module.training for module in model.modules())
    base = [p for name, p in model.named_parameters() if not is_ours(name)]
    assert all(torch.equal(p.grad, g) for p, g in zip(base, gradients, strict=True))
    assert all(p.grad is None for name, p in model.named_parameters() if is_ours(name))
    assert all(gate.value is None for gate in attachment.gates.values()), "as before a forward"


def test_a_plan_with_profiles() -> None:
    method = XPEFT(bank=RandomBank(size=4), k=1, bottleneck=4, profiles=3)
    model = tiny_bert()
    attach(model, Plan.uniform(method))
    with pytest.raises(ValueError, match="does not name the profile"):
        model(input_ids=torch.arange(3, 9)[None])


# Windows.


def swin() -> PreTrainedModel:
    options = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "window_size": 2}
    config = SwinConfig(**options, depths=[2, 2], num_heads=[2, 2], num_labels=3)
    return draw(SwinForImageClassification(config))


@torch.no_grad()
@pytest.mark.parametrize("pool", ["auto", "all", "token"])
@pytest.mark.slow
def test_gates_over_windows(pool: Any) -> None:
    """Each window has gates for itself, the feed-forward has one per image: rows stay apart."""
    model = swin()
    images = torch.randn(3, 3, 16, 16)
    base = model(pixel_values=images).logits
    attachment = attach(model, UniPELT([LoRA(), Adapter()], gate=Gate(pool=pool)))
    awaken(attachment, std=0.3)
    single = torch.cat([model(pixel_values=image[None]).logits for image in images])
    logits = model(pixel_values=images).logits
    assert (logits - base).abs().max() > 1e-3
    torch.testing.assert_close(logits, single, rtol=0, atol=1e-5)
    if pool != "token":
        adapter = next(g for name, g in attachment.gates.items() if "adapter" in name)
        lora = next(g for name, g in attachment.gates.items() if "lora" in name)
        assert lora.value is not None
        assert len(lora.value) == 3 * 16  # windows of 2 x 2 among 8 x 8 patches
        assert adapter.value is not None
        assert adapter.value.shape == (len(lora.value),) if "attn" in adapter.site else (3,)


# Layers that run twice in one forward.


def deberta_v3() -> PreTrainedModel:
    """Its queries and keys are projections of the tokens, and of 8 relative positions."""
    torch.manual_seed(0)
    options = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}
    options |= {"position_buckets": 4, "norm_rel_ebd": "layer_norm", "vocab_size": 100}
    config = AutoConfig.for_model("deberta-v2", **SHAPE, **options)
    return draw(AutoModel.from_config(config))


TOKENS = torch.arange(3, 19).view(2, 8)
QK = ("query", "key", "value")


def test_lora_on_a_projection_that_runs_twice_is_a_change_of_its_weight() -> None:
    """Two rows of four tokens: as many as the relative positions, so that shapes fit either way."""
    model = deberta_v3()
    attachment = attach(model, Plan.uniform(LoRA(sites=QK)))
    assert {s.label: s.repeated for s in attachment.anatomy.sites if s.label in QK} == {
        "query": True,
        "key": True,
        "value": False,
    }
    awaken(attachment)
    tokens = TOKENS[:, :4]
    with torch.no_grad():
        attached = model(input_ids=tokens).last_hidden_state
        merged = merge(model)(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(attached, merged, rtol=0, atol=1e-5)


def with_hook(module: nn.Module, outputs: list[Tensor], run: Callable[[], Any]) -> None:
    handle = module.register_forward_hook(lambda module, args, output: outputs.append(output))
    run()
    handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("method", [LoRA(sites=QK), BitFit(sites=QK), IA3(sites=("key",))])
@pytest.mark.parametrize("pool", ["masked", "token"])
def test_gates_on_a_projection_that_runs_twice(method: Any, pool: Any) -> None:
    """They scale the projections of the tokens; those of the positions stay as they are."""
    model: Any = deberta_v3()
    key = model.encoder.layer[0].attention.self.key_proj
    before: list[Tensor] = []
    with_hook(key, before, lambda: model(input_ids=TOKENS))
    attachment = attach(model, UniPELT([method], gate=Gate(pool=pool)))
    awaken(attachment, std=0.3)
    late: list[Tensor] = []
    with_hook(key, late, lambda: model(input_ids=TOKENS))
    assert len(late) == len(before) == 2
    assert not torch.allclose(late[0], before[0], atol=1e-3)
    assert torch.equal(late[1], before[1])


# Models that need other inputs than a few words, an image or a short sound.


def llava() -> PreTrainedModel:
    """Its words must contain as many image tokens as the picture has patches."""
    vision = {**SHAPE, "image_size": 16, "patch_size": 4, "model_type": "clip_vision_model"}
    text = {**SHAPE, "vocab_size": 100, "model_type": "llama"}
    return draw(
        LlavaForConditionalGeneration(
            LlavaConfig(text_config=text, vision_config=vision, image_token_index=99)
        )
    )


def picture_and_words(rows: int = 2) -> dict[str, Tensor]:
    words = torch.arange(3, 9).expand(rows, -1)
    ids = torch.cat([torch.full((rows, 16), 99), words], 1)
    return {"input_ids": ids, "pixel_values": torch.randn(rows, 3, 16, 16)}


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2])
def test_example_inputs(rows: int) -> None:
    model = llava()
    given = picture_and_words(rows)
    attachment = attach(model, UniPELT(), example_inputs=given)
    assert [(s.name, s.causal) for s in attachment.anatomy.stacks] == [
        ("vision", False),
        ("text", True),
    ]
    awaken(attachment)
    changed = {**given, "input_ids": given["input_ids"].clone()}
    changed["input_ids"][:, -1] = 50
    one, other = model(**given).logits, model(**changed).logits
    torch.testing.assert_close(one[:, :-1], other[:, :-1], rtol=0, atol=1e-6)


def test_example_inputs_that_fail() -> None:
    with pytest.raises(ValueError, match="failed on the example inputs with IndexError"):
        attach(tiny_bert(), UniPELT(), example_inputs={"input_ids": torch.full((1, 3), 1000)})


def test_sites_do_not_depend_on_the_example() -> None:
    usual = attach(build("bart"), UniPELT()).anatomy
    batch = {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :6]}
    batch["attention_mask"] = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    assert attach(build("bart"), UniPELT(), example_inputs=batch).anatomy == usual


def test_large_matrices_of_submodules_have_their_values_after_the_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = UniPELT([Adapter(bottleneck=16), Prefix(length=2, mlp=8), LoRA()])
    states = []
    for large in (1 << 40, 1):
        trial.RAN.forget()
        monkeypatch.setattr(stand_ins, "LARGE", large)
        model = tiny_bert()
        attachment = attach(model, plan)
        states.append(model.state_dict())
        kept = [m for s in attachment.all_submodules for m in s.modules() if hasattr(m, "kept")]
        assert len(kept) > 4
        assert all(module.kept._found is None for module in kept)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_plan_whose_functions_have_changed_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attach(tiny_bert(), Plan.uniform(LoRA()))

    def fails(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(LoRAUp, "forward", fails)
    with pytest.raises(ValueError, match="cannot be attached"):
        attach(tiny_bert(), Plan.uniform(LoRA()))
