"""A plan that was attached on the meta device equals one that was attached to the loaded model."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from zoo import REPRESENTATIVE, ZOO, build, inputs, output, without_values

from lightning_pelt import (
    XPEFT,
    Adapter,
    Adapters,
    BitFit,
    Compacter,
    FullFineTuning,
    Gate,
    LoRA,
    Plan,
    RandomBank,
    UniPELT,
    attach,
    detach,
    load_adapters,
    merge,
    save_adapters,
)
from lightning_pelt.anatomy import Site
from lightning_pelt.methods.base import Part, Place
from lightning_pelt.methods.gate import GateView
from lightning_pelt.methods.linear import LinearMethod, LinearUpdate
from lightning_pelt.methods.submodule import Removable
from lightning_pelt.testing import awaken, hook_counts

PLANS: dict[str, Plan] = {
    "unipelt": UniPELT(),
    "compacter": Plan.uniform(Compacter(gate=Gate())),
    "xpeft": Plan.uniform(XPEFT(bank=RandomBank(size=4), k=2, bottleneck=4, head="profile")),
    "norms": Plan.uniform(Adapter(reduction_factor=4), norms=True),
    "all": FullFineTuning(),
    "bias": Plan.uniform(BitFit()),
}


def loaded(model: PreTrainedModel, state: dict[str, Tensor], route: str) -> None:
    """Load the base in one of the ways of torch."""
    if route == "to_empty":
        model.to_empty(device="cpu")
        model.load_state_dict(state)
    elif route == "assign":
        model.load_state_dict(state, assign=True)
    else:  # files of a large model
        names = list(state)
        for part in (names[::2], names[1::2]):
            shard = {name: state[name] for name in part}
            model.load_state_dict(shard, strict=False, assign=True)


ROUTES = ("assign", "to_empty", "shards")


def pair(name: str, plan: Plan, route: str = "assign") -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model attached with weights, and on the meta device before it was loaded."""
    real, empty = build(name), without_values(name)
    state = {key: tensor.clone() for key, tensor in real.state_dict().items()}
    attach(real, plan, seed=3)
    attach(empty, plan, seed=3)
    loaded(empty, state, route)
    return real, empty


def assert_equal(real: PreTrainedModel, other: PreTrainedModel, name: str) -> None:
    ours, theirs = other.state_dict(), real.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    buffers = dict(other.named_buffers())
    assert all(torch.equal(buffers[key], value) for key, value in real.named_buffers())
    given = inputs(name)
    with torch.no_grad():
        assert torch.equal(output(other, given), output(real, given))


@pytest.mark.sample(2)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", sorted(REPRESENTATIVE))
def test_loaded_later_it_equals_one_that_was_loaded_first(name: str, route: str) -> None:
    words = ZOO[name].kind in ("encoder", "decoder", "seq2seq")
    plan = UniPELT() if words and ZOO[name].interface else Plan.uniform(LoRA())
    real, empty = pair(name, plan, route)
    assert_equal(real, empty, name)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_kind_of_method(plan: Plan) -> None:
    for route in ROUTES[:2]:
        real, empty = pair("bert", plan, route)
        ours, theirs = empty.state_dict(), real.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_what_the_record_tells_is_the_same() -> None:
    real, empty = pair("bert", Plan.uniform(LoRA(), norms=True))
    one, other = real.pelt_attachment, empty.pelt_attachment
    assert one.anatomy == other.anatomy
    assert one.fingerprint == other.fingerprint
    assert one.counts == other.counts
    assert (one.base, one.owned, one.head) == (other.base, other.owned, other.head)
    assert other.trained_base == frozenset()
    trained = {name for name, p in empty.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in real.named_parameters() if p.requires_grad}
    assert not other.awaited


def test_a_changed_base_is_noticed() -> None:
    _, empty = pair("bert", Plan.uniform(LoRA()))
    weight = empty.bert.encoder.layer[0].intermediate.dense.weight
    weight.data.add_(1)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert empty.pelt_attachment.trained_base == {name}


def test_it_trains() -> None:
    _, empty = pair("llama", Plan.uniform(LoRA()))
    empty(**inputs("llama"), labels=inputs("llama")["input_ids"]).loss.backward()
    moved = [n for n, p in empty.named_parameters() if p.grad is not None]
    assert moved
    assert all("pelt" in name for name in moved)


def test_detach_restores_trained_norms() -> None:
    _, empty = pair("bert", Plan.uniform(LoRA(), norms=True))
    before = build("bert").state_dict()
    for name, parameter in empty.named_parameters():
        if name in empty.pelt_attachment.norms:
            parameter.data.add_(1)
    detach(empty)
    after = empty.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_detached_before_it_is_loaded_it_is_as_it_was() -> None:
    model, bare = without_values("bert"), without_values("bert")
    attach(model, UniPELT())
    detach(model)
    assert hook_counts(model) == hook_counts(bare)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert all(p.requires_grad for p in model.parameters())


def test_tied_weights_stay_tied() -> None:
    _, empty = pair("t5", Plan.uniform(LoRA()))
    assert empty.shared.weight is empty.lm_head.weight is empty.encoder.embed_tokens.weight


def test_a_file_of_transformers_lacks_tied_names(tmp_path: Path) -> None:
    build("t5").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    model = without_values("t5")
    assert state.keys() < model.state_dict().keys()
    attach(model, Plan.uniform(LoRA()))
    model.load_state_dict(state, assign=True)
    with torch.no_grad():
        assert torch.equal(output(model, inputs("t5")), output(build("t5"), inputs("t5")))


def test_copies_and_pickles_of_an_empty_model_are_loaded_alone() -> None:
    model = without_values("bert")
    attach(model, Plan.uniform(LoRA()))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.load_state_dict(build("bert").state_dict(), assign=True)
        assert not other.pelt_attachment.awaited
    assert model.pelt_attachment.awaited


def test_an_incomplete_file_is_told() -> None:
    model = without_values("bert")
    attach(model, Plan.uniform(LoRA()))
    state = build("bert").state_dict()
    del state["bert.encoder.layer.1.output.dense.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key.*: "bert\.encoder\.layer\.1\.output'):
        model.load_state_dict(state, assign=True)


def test_a_file_of_another_size_is_told() -> None:
    model = without_values("bert")
    attach(model, Plan.uniform(LoRA()))
    state = build("bert").state_dict()
    state["classifier.weight"] = torch.zeros(7, 32)
    with pytest.raises(RuntimeError, match=r"size mismatch: classifier\.weight is \(7, 32\) there"):
        model.load_state_dict(state, assign=True)
    assert model.pelt_attachment.awaited


@pytest.mark.filterwarnings("ignore:.*is a no-op:UserWarning")
def test_copying_onto_the_meta_device_brings_nothing() -> None:
    model = without_values("bert")
    attachment = attach(model, Plan.uniform(LoRA()))
    model.load_state_dict(build("bert").state_dict())  # without assign=True
    with pytest.raises(ValueError, match=r"no values yet, such as bert\.embeddings.*assign=True"):
        attachment.materialise()


def test_a_new_head_is_drawn_from_the_seed() -> None:
    state = {k: v for k, v in build("bert").state_dict().items() if "classifier" not in k}
    heads = []
    for seed in (0, 0, 1):
        model = without_values("bert")
        attachment = attach(model, Plan.uniform(LoRA()), seed=seed)
        with pytest.warns(UserWarning, match=r"new head \(classifier.bias.*materialise"):
            model.load_state_dict(state, assign=True, strict=False)
        attachment.materialise()
        heads.append(model.classifier.weight.detach())
        assert model.classifier.weight.requires_grad
        assert torch.equal(model.classifier.bias, torch.zeros(3))
        assert attachment.head == {"classifier.weight", "classifier.bias"}
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert 0.01 < heads[0].std() < 0.03  # initializer_range


def test_the_global_random_state_stays() -> None:
    before = torch.random.get_rng_state()
    model = without_values("bert")
    attachment = attach(model, UniPELT())
    state = {k: v for k, v in build("bert").state_dict().items() if "classifier" not in k}
    with pytest.warns(UserWarning, match="new head"):
        model.load_state_dict(state, assign=True, strict=False)
    attachment.materialise()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_other_loaders_tell_by_materialise() -> None:
    real, empty = build("llama"), without_values("llama")
    attachment = attach(empty, Plan.uniform(LoRA()), seed=3)
    for name, parameter in real.named_parameters():  # as accelerate does
        path, _, last = name.rpartition(".")
        empty.get_submodule(path)._parameters[last] = nn.Parameter(parameter.detach().clone())
    attachment.materialise("cpu")
    attach(real, Plan.uniform(LoRA()), seed=3)
    assert_equal(real, empty, "llama")
    assert attachment.fingerprint == real.pelt_attachment.fingerprint
    assert not empty.model.embed_tokens.weight.requires_grad


def test_an_ordinary_attachment_is_moved_alone() -> None:
    model = build("bert")
    attachment = attach(model, Plan.uniform(LoRA()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attachment.materialise("cpu")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_adapters_are_read_after_the_base(tmp_path: Path) -> None:
    real = build("bert")
    awaken(attach(real, Plan.uniform(LoRA())))
    save_adapters(real, tmp_path)
    empty = without_values("bert")
    attach(empty, Plan.uniform(LoRA()))
    with pytest.raises((RuntimeError, ValueError), match="load the base before the adapters"):
        load_adapters(empty, tmp_path)
    empty.load_state_dict(build("bert").state_dict(), assign=True)
    load_adapters(empty, tmp_path)
    assert_equal(real, empty, "bert")
    merge(empty)


def test_a_loaded_base_is_not_replaced() -> None:
    _, empty = pair("bert", Plan.uniform(LoRA()))
    with pytest.raises(RuntimeError, match="would replace the frozen base"):
        empty.load_state_dict(build("bert", seed=1).state_dict(), strict=False)


def test_half_precision() -> None:
    real, empty = build("bert").bfloat16(), without_values("bert").bfloat16()
    state = {name: tensor.clone() for name, tensor in real.state_dict().items()}
    for model in (real, empty):
        attach(model, Plan.uniform(LoRA()))
    empty.load_state_dict(state, assign=True)
    ours, theirs = dict(empty.named_parameters()), dict(real.named_parameters())
    assert {n: p.dtype for n, p in ours.items()} == {n: p.dtype for n, p in theirs.items()}
    assert ours["classifier.weight"].dtype == torch.float32
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@dataclass(frozen=True)
class Principal(LinearMethod):
    """A method that starts from the weights of the base."""

    sites: Sequence[str] = ("query",)
    gate: Gate | None = None
    name: str = "principal"
    read: str = "copy"

    def build(self, place: Place) -> list[Part]:
        return [Part(s.path, self.name, Shifted(s, None, self.read)) for s in place.sites]


class Shifted(LinearUpdate):
    def __init__(self, site: Site, gate: GateView | None, read: str) -> None:
        super().__init__(site, gate)
        self.read, self.bias = read, nn.Parameter(torch.zeros(site.d_out))

    def install(self, model: nn.Module) -> list[Removable]:
        values = READS[self.read](model.get_submodule(self.site.path).weight.detach())
        if self.read == "refer":
            self.bias = nn.Parameter(values)
        else:
            self.bias.data.copy_(values)
        return super().install(model)

    def update(self, x: Tensor) -> Tensor:
        return self.bias


READS: dict[str, Callable[[Tensor], Any]] = {
    "copy": lambda weight: weight.mean(1),
    "numbers": lambda weight: torch.tensor(weight.mean(1).tolist()),
    "refer": lambda weight: weight.mean(1),
}


@pytest.mark.parametrize("read", READS)
def test_a_method_that_starts_from_the_base_is_refused_by_name(read: str) -> None:
    plan, model = Plan.uniform(Principal(read=read)), without_values("bert")
    attach(build("bert"), plan)
    with pytest.raises(ValueError, match=r"Principal \('principal'\) starts from weights .* load"):
        attach(model, plan)
    assert hook_counts(model) == hook_counts(without_values("bert"))


def test_pissa_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"LoRA \('lora'\) starts from weights of the base"):
        attach(without_values("bert"), Plan.uniform(LoRA(init="pissa")))


def test_a_plan_that_does_not_run_is_refused_there_too() -> None:
    @dataclass(frozen=True)
    class Wide(LinearMethod):
        sites: Sequence[str] = ("query",)
        gate: Gate | None = None
        name: str = "wide"

        def build(self, place: Place) -> list[Part]:
            return [Part(s.path, self.name, TooWide(s, None)) for s in place.sites]

    class TooWide(LinearUpdate):
        def update(self, x: Tensor) -> Tensor:
            return x.new_zeros(len(x), 5, 7)

    with pytest.raises(ValueError, match=r"cannot be attached to .*query"):
        attach(without_values("bert"), Plan.uniform(Wide()))


def test_several_adapters_need_a_loaded_base() -> None:
    with pytest.raises(ValueError, match="meta device, where a model can have one plan"):
        Adapters(without_values("bert"))


def test_a_part_of_an_empty_model_is_refused() -> None:
    small: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    text = {"model_type": "llama", "vocab_size": 50, **small}
    vision = {"model_type": "clip_vision_model", "image_size": 8, "patch_size": 4, **small}
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=49)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    with pytest.raises(ValueError, match="inside of Llava"):
        attach(model, Plan.uniform(LoRA()), path="model.language_model")


def test_to_empty_keeps_what_has_values() -> None:
    """The weights of submodules are in no file of the base."""
    model = without_values("bert")
    attach(model, UniPELT(), seed=1)
    before = {n: t.clone() for n, t in model.state_dict().items() if "pelt" in n}
    model.to_empty(device="cpu")
    after = model.state_dict()
    assert before
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_conversions_apply_to_submodules_as_before() -> None:
    model = build("bert")
    attach(model, UniPELT(), seed=1)
    model.double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    model.to("meta").to_empty(device="cpu")
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_a_loaded_checkpoint_of_transformers_stays_as_it_is(tmp_path: Path) -> None:
    """from_pretrained builds on the meta device itself, and is no model without values."""
    build("bert").save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not attach(model, Plan.uniform(LoRA())).awaited
