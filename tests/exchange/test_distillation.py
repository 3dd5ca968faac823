"""A LoRA distilled from any plan: exact where the plan is one, near where it is not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, PreTrainedModel

from lightning_pelt import (
    IA3,
    XPEFT,
    Adapter,
    BitFit,
    FullFineTuning,
    Gate,
    Group,
    LoRA,
    Plan,
    Prefix,
    Prompt,
    RandomBank,
    UniPELT,
    attach,
    detach,
    load_adapters,
    merge,
    save_adapters,
)
from lightning_pelt.attach.attachment import attachment_of
from lightning_pelt.exchange.distillation import Distilled, distil_lora
from lightning_pelt.exchange.distillation.initial_update import best_pair, reduced_rank
from lightning_pelt.exchange.distillation.unlabelled_rows import joined
from lightning_pelt.testing import awaken, tiny_bert, tiny_gpt2, tiny_llama

Model = Callable[[], PreTrainedModel]
Batches = list[dict[str, Tensor]]


def rows(count: int = 4, *, size: int = 16, seed: int = 0) -> Batches:
    """Batches of random words, half of the rows padded; with labels, which are to be ignored."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(size, 8, dtype=torch.long)
    mask[::2, 5:] = 0
    return [
        {
            "input_ids": torch.randint(5, 99, (size, 8), generator=generator),
            "attention_mask": mask,
            "labels": torch.full((size,), 99),  # no such class
        }
        for _ in range(count)
    ]


def trained(build: Model, plan: Plan, std: float = 0.1) -> PreTrainedModel:
    model = build()
    awaken(attach(model, plan), std=std)
    return model


@torch.no_grad()
def logits(model: PreTrainedModel, seed: int = 7) -> Tensor:
    batch = rows(1, seed=seed)[0]
    return model.eval()(**{n: t for n, t in batch.items() if n != "labels"}).logits


# -- plans that are a LoRA ------------------------------------------------------------------------


def schedule(model: PreTrainedModel, openness: float) -> None:
    for gate in attachment_of(model).gates.values():
        gate.set_open(openness)


CONSTANT = {
    "ungated": Plan.uniform(LoRA(r=3)),
    "all sites": Plan.uniform(LoRA(r=2, sites=("query", "key", "value", "output", "ffn.*"))),
    "constant gate": Plan.uniform(LoRA(r=3, gate=Gate(learned=False))),
    "two": Plan.uniform(LoRA(r=2), LoRA(r=2, rslora=True, sites=["query"], name="second")),
    "some blocks": Plan([Group([LoRA(r=4)], blocks=[1])]),
    "norms": Plan.uniform(LoRA(r=2), norms=True),
}


@pytest.mark.parametrize("build", [tiny_bert, tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("plan", CONSTANT.values(), ids=CONSTANT)
def test_a_constant_plan_is_folded_exactly_without_rows(build: Model, plan: Plan) -> None:
    model = trained(build, plan)
    schedule(model, 0.25)
    student, report = distil_lora(model, r=4)
    assert report.exact and report.steps == 0
    torch.testing.assert_close(logits(student), logits(model), rtol=1e-4, atol=1e-4)
    bare = copy.deepcopy(model)
    detach(bare)
    assert (logits(bare) - logits(model)).abs().max() > 1e-3  # the plan did something


def test_gates_that_cannot_move_are_constant() -> None:
    """A learned gate is constant where its weight is zero, and any where it is closed."""
    model = trained(tiny_bert, Plan.uniform(LoRA(gate=Gate(shared=True)), Adapter(gate=Gate())))
    for name, gate in attachment_of(model).gates.items():
        weight, bias = gate.parameters()
        with torch.no_grad():
            weight.zero_()
            bias.fill_(0.7)
        if gate.method == Adapter.name:
            attachment_of(model).gates[name].set_open(0.0)
    student, report = distil_lora(model, r=8)
    assert report.exact
    torch.testing.assert_close(logits(student), logits(model), rtol=1e-4, atol=1e-4)


def test_an_exact_lora_equals_the_scaled_product_of_its_plan() -> None:
    model = trained(tiny_bert, Plan.uniform(LoRA(r=2, alpha=6.0, sites=["value"])))
    before = model.bert.encoder.layer[0].attention.self.value.weight.clone()
    teacher = attachment_of(model).submodules[LoRA.name]
    A, B = teacher[0].A, teacher[1].B_value
    merged = merge(distil_lora(model, r=2, sites=["value"]).model)
    after = merged.bert.encoder.layer[0].attention.self.value.weight
    torch.testing.assert_close(after - before, 3.0 * B @ A, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"r": 2}, {"r": 8, "sites": ["query"]}])
def test_a_constant_plan_that_does_not_fit_needs_rows(options: dict) -> None:
    model = trained(tiny_bert, Plan.uniform(LoRA(r=4)))
    with pytest.raises(ValueError, match=r"rank r=\d at these sites cannot hold the plan exactly"):
        distil_lora(model, **options)
    student, report = distil_lora(model, rows(), epochs=1, **options)
    assert not report.exact and report.last is not None and report.last.hidden_error < 1
    assert attachment_of(student).plan.methods[0].r == options["r"]


def test_a_gate_that_reads_its_input_needs_rows() -> None:
    model = trained(tiny_bert, UniPELT())
    with pytest.raises(ValueError, match="give batches of unlabelled rows"):
        distil_lora(model)


# -- plans that are learned -----------------------------------------------------------------------

LEARNED = {
    "unipelt": UniPELT(),
    "adapters": Plan.uniform(Adapter(bottleneck=4, sites=["attention", "ffn"])),
    "parallel": Plan.uniform(Adapter(bottleneck=4, placement="parallel")),
    "prefix": Plan.uniform(Prefix(length=3, mlp=None)),
    "biases": Plan.uniform(BitFit(sites=["*attention.*", "ffn.*"]), IA3()),  # not the pooler's
    "one profile": Plan.uniform(XPEFT(bank=RandomBank(size=4), k=2, bottleneck=4)),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("plan", LEARNED.values(), ids=LEARNED)
def test_a_distilled_lora_comes_nearer_to_its_plan(build: Model, plan: Plan) -> None:
    model = trained(build, plan)
    student, report = distil_lora(model, rows(12), r=8, epochs=10)
    assert report.first is not None and report.last is not None
    assert report.last.hidden_error < min(0.75, 1.1 * report.first.hidden_error)
    bare = copy.deepcopy(model)
    detach(bare)
    wanted = logits(model)
    assert (logits(student) - wanted).norm() < 0.8 * (logits(bare) - wanted).norm()


def test_the_error_is_a_share_of_what_the_plan_changes() -> None:
    """``hidden_error`` against its formula, with hidden states that transformers returns."""
    model = trained(tiny_bert, Plan.uniform(Adapter(bottleneck=4)))
    batches = rows(2)
    student, report = distil_lora(model, batches, r=4, epochs=0)
    bare = copy.deepcopy(model)
    detach(bare)
    held_out = {n: t for n, t in batches[1].items() if n != "labels"}
    real = held_out["attention_mask"].bool()

    @torch.no_grad()
    def states(of: PreTrainedModel) -> list[Tensor]:
        found = of(**held_out, output_hidden_states=True).hidden_states[1:]
        return [state[real] for state in found]

    triples = list(zip(states(student), states(model), states(bare), strict=True))
    shares = [(s - t).square().sum() / (b - t).square().sum() for s, t, b in triples]
    expected = torch.stack(shares).mean().sqrt()
    assert report.last is not None
    assert report.last.hidden_error == pytest.approx(float(expected), rel=1e-4)
    assert report.last.rows == 16 and report.first == report.last


def test_reduced_rank_regression_is_the_best_of_its_rank() -> None:
    """Against a search: gradient steps from it do not lower the error."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator) * torch.tensor([4.0, 2, 1, 1, 0.5, 0.3])
    y = x @ torch.randn(6, 5, generator=generator) + 0.1 * torch.randn(200, 5, generator=generator)
    A, B = reduced_rank(x, y, 2)
    best = (y - x @ A.T @ B.T).square().mean()
    parts = [part.clone(memory_format=torch.contiguous_format).requires_grad_() for part in (A, B)]
    optimizer = torch.optim.LBFGS(parts, max_iter=100)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (y - x @ parts[0].T @ parts[1].T).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert A.shape == (2, 6) and B.shape == (5, 2)
    assert float(best) <= float(loss().detach()) * 1.02


def test_the_best_pair_is_the_truncated_decomposition() -> None:
    delta = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    A, B = best_pair(delta, 2)
    left, sizes, right = torch.linalg.svd(delta, full_matrices=False)
    torch.testing.assert_close(B @ A, left[:, :2] * sizes[:2] @ right[:2], rtol=1e-3, atol=1e-4)
    A, B = best_pair(delta, 9)  # more than the rank: the rest is zero
    torch.testing.assert_close(B @ A, delta, rtol=1e-4, atol=1e-5)
    assert A.shape == (9, 4) and not A[4:].any()


def test_batches_are_joined_up_to_a_number_of_words() -> None:
    """Shorter rows are padded on the right with masked words; other inputs are left out."""
    sizes = [(2, 3), (2, 5), (2, 4)]
    batches = [
        {"input_ids": torch.full(size, 7), "attention_mask": torch.ones(size).long()}
        for size in sizes
    ]
    whole = joined(batches, 30)
    assert whole["input_ids"].shape == (6, 5)
    assert torch.equal(whole["input_ids"] == 7, whole["attention_mask"].bool())
    assert sorted(whole["attention_mask"].sum(1).tolist()) == [3, 3, 4, 4, 5, 5]
    assert len(joined(batches, 1)["input_ids"]) == 2  # at least one batch
    images = [{"pixel_values": torch.ones(2, 3, 4, 4)}, {"pixel_values": torch.ones(2, 3, 8, 8)}]
    assert len(joined(images, 99)["pixel_values"]) == 2


# -- what a caller sees ---------------------------------------------------------------------------


@pytest.fixture
def unipelt() -> PreTrainedModel:
    return trained(tiny_bert, UniPELT())


def test_the_given_model_and_the_random_state_do_not_change(unipelt: PreTrainedModel) -> None:
    unipelt.train()
    unipelt.bert.encoder.layer[0].eval()
    state = {name: tensor.clone() for name, tensor in unipelt.state_dict().items()}
    modes = [module.training for module in unipelt.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unipelt.modules()]
    random = torch.get_rng_state()
    student = distil_lora(unipelt, rows(2), r=2, epochs=1).model
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [module.training for module in unipelt.modules()]
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unipelt.modules()]
    after = unipelt.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in state.items())
    assert all(p.grad is None for p in [*unipelt.parameters(), *student.parameters()])
    assert not {p.data_ptr() for p in student.parameters()} & {
        p.data_ptr() for p in unipelt.parameters()
    }


@pytest.mark.slow
def test_equal_seeds_give_equal_loras_and_shuffled_loaders_too(unipelt: PreTrainedModel) -> None:
    def once(seed: int) -> Tensor:
        data = DataLoader(rows(1, size=12)[0]["input_ids"], 4, shuffle=True, collate_fn=_collate)
        return logits(distil_lora(unipelt, data, r=2, epochs=1, seed=seed).model)

    first, second, other = once(3), once(3), once(4)
    assert torch.equal(first, second) and not torch.equal(first, other)


def _collate(words: list[Tensor]) -> dict[str, Tensor]:
    return {"input_ids": torch.stack(words)}


@pytest.mark.slow
def test_a_generator_is_read_once(unipelt: PreTrainedModel) -> None:
    def stream() -> Iterator[dict[str, Tensor]]:
        yield from rows(3)

    listed = distil_lora(unipelt, rows(3), r=2, epochs=2)
    streamed = distil_lora(unipelt, stream(), r=2, epochs=2)
    assert streamed.report.steps == 4  # two epochs of two batches; one is held out
    assert streamed.report == listed.report


@pytest.mark.slow
def test_padding_does_not_count(unipelt: PreTrainedModel) -> None:
    batches = rows(2)
    other = [{n: t.clone() for n, t in batch.items()} for batch in batches]
    for batch in other:
        batch["input_ids"][batch["attention_mask"] == 0] = 3
    one, two = (distil_lora(unipelt, data, r=2, epochs=1) for data in (batches, other))
    torch.testing.assert_close(logits(one.model), logits(two.model), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_student_is_saved_loaded_and_merged(unipelt: PreTrainedModel, tmp_path) -> None:  # type: ignore[no-untyped-def]
    student, _ = distil_lora(unipelt, rows(2), r=2, epochs=1)
    save_adapters(student, tmp_path / "lora")
    other = tiny_bert()
    load_adapters(other, tmp_path / "lora")
    wanted = logits(student)
    torch.testing.assert_close(logits(other), wanted)
    torch.testing.assert_close(logits(merge(student)), wanted, rtol=1e-4, atol=1e-4)


def test_head_and_norms_are_those_of_the_plan() -> None:
    model = trained(tiny_bert, Plan.uniform(Adapter(bottleneck=4), norms=True))
    with torch.no_grad():
        model.classifier.weight.add_(1.0)
    student, _ = distil_lora(model, rows(2), r=2, epochs=1)
    assert torch.equal(student.classifier.weight, model.classifier.weight)
    attachment = attachment_of(student)
    assert attachment.norms == attachment_of(model).norms
    for name in attachment.norms:
        assert torch.equal(student.get_parameter(name), model.get_parameter(name))
    detach(student)  # restores the norms of the base
    assert torch.equal(student.bert.embeddings.LayerNorm.bias,
                       tiny_bert().bert.embeddings.LayerNorm.bias)  # fmt: skip


@pytest.mark.slow
def test_a_named_head_stays_the_head() -> None:
    model = tiny_bert()
    attach(model, UniPELT(), head=["classifier", "bert.pooler"])
    student, _ = distil_lora(model, rows(2), r=2, epochs=0)
    assert attachment_of(student).head == attachment_of(model).head


def test_a_model_without_logits_is_matched_by_its_hidden_states() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                        intermediate_size=64)  # fmt: skip
    model = BertModel(config)
    awaken(attach(model, Plan.uniform(Adapter(bottleneck=4))))
    _, report = distil_lora(model, rows(3), r=4, epochs=1)
    assert report.last is not None and report.last.predictions is None
    assert report.last.hidden_error < 1


@pytest.mark.slow
def test_a_half_precision_base_is_distilled() -> None:
    model = tiny_bert().to(torch.bfloat16)
    awaken(attach(model, Plan.uniform(Adapter(bottleneck=4))))
    student, report = distil_lora(model, rows(4), r=4, epochs=1)
    assert report.last is not None and report.last.hidden_error < 1
    assert student.bert.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
    assert {p.dtype for p in attachment_of(student).parameters_of(LoRA.name)} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "bart", "albert", "vit", "deberta-v2"])
def test_other_families_are_distilled(family: str) -> None:
    """Encoder-decoders with labels alone, blocks that run twice, images, DeBERTa's positions."""
    from zoo import ZOO, build, inputs

    model = build(family)
    awaken(attach(model, Plan.uniform(Adapter(bottleneck=4))))
    batch = inputs(family)
    if ZOO[family].kind == "seq2seq":
        labels = batch.pop("decoder_input_ids")
        batch["labels"] = labels.masked_fill(labels == 0, -100)
    _, report = distil_lora(model, [batch] * 3, r=4, epochs=2)
    assert report.last is not None and report.last.hidden_error < 0.9


@pytest.mark.slow
def test_a_prompt_in_front_of_the_tokens_is_left_out() -> None:
    model = trained(tiny_bert, Plan.uniform(Prompt(length=3)))
    _, report = distil_lora(model, rows(6), r=4, epochs=2)
    assert report.last is not None and report.last.hidden_error < 1


class Around(torch.nn.Module):
    """A module that holds a model, as a LightningModule does."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.inner = model


@pytest.mark.slow
def test_a_module_around_the_model_is_given(unipelt: PreTrainedModel) -> None:
    alone, around = (
        distil_lora(module, rows(2), r=2, epochs=0) for module in (unipelt, Around(unipelt))
    )
    assert alone.report == around.report and isinstance(around.model, PreTrainedModel)


@pytest.mark.slow
def test_a_lora_is_distilled_again() -> None:
    """A distilled LoRA is a LoRA: folding it again is exact."""
    model = trained(tiny_bert, Plan.uniform(Adapter(bottleneck=4)))
    first = distil_lora(model, rows(2), r=2, epochs=0).model
    second, report = distil_lora(first, r=2)
    assert report.exact
    torch.testing.assert_close(logits(second), logits(first), rtol=1e-4, atol=1e-4)


# -- refusals -------------------------------------------------------------------------------------


def test_several_profiles_are_refused_by_name() -> None:
    model = tiny_bert()
    bank = RandomBank(size=4)
    attach(model, Plan.uniform(XPEFT(bank=bank, k=2, bottleneck=4, profiles=3)))
    with pytest.raises(ValueError, match="'xpeft' has several profiles"):
        distil_lora(model, rows(2))


def test_a_trained_base_is_refused() -> None:
    model = tiny_bert()
    attach(model, FullFineTuning())
    with pytest.raises(ValueError, match="base of the model is trained as well"):
        distil_lora(model, rows(2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r": 0}, "r is 0, expected a whole number from 1 on"),
        ({"epochs": -1}, "epochs is -1"),
        ({"lr": 0.0}, "lr is 0.0, expected a positive number"),
        ({"sites": ["qery"]}, "did you mean 'query'"),
    ],
)
def test_options_out_of_range(unipelt: PreTrainedModel, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        distil_lora(unipelt, rows(2), **options)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.ones(2, 3), "a batch is a Tensor, expected a mapping"),
        ({"text": ["a"]}, "a batch holds text, and BertForSequenceClassification reads"),
    ],
)
def test_batches_that_are_none(unipelt: PreTrainedModel, batch: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        distil_lora(unipelt, [batch])


def test_nothing_attached() -> None:
    with pytest.raises(ValueError, match="nothing is attached"):
        distil_lora(tiny_bert(), rows(2))


def test_training_that_diverges_is_refused(unipelt: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="the distillation diverged"):
        distil_lora(unipelt, rows(4), r=2, epochs=40, lr=1e30)


def test_the_result_has_names(unipelt: PreTrainedModel) -> None:
    result = distil_lora(unipelt, rows(2), r=2, epochs=0)
    assert isinstance(result, Distilled)
    assert result.model is result[0] and result.report is result[1]
