"""All that training changes, and all that came from no file, is saved, restored and detached."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from lightning_pelt import HeadOnly, LoRA, Plan, attach, load_adapters, merge, save_adapters
from lightning_pelt.testing import is_ours, tiny_bert

TOKENS = torch.arange(3, 19).view(2, 8)
PLAN = Plan.uniform(LoRA(r=2))
WIDTH = 16


def small_config(**options: Any) -> BertConfig:
    return BertConfig(
        vocab_size=30,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
        num_labels=3,
        **options,
    )


def saved(folder: Path, kind: Any, config: Any) -> str:
    """A pretrained folder of another class than the one that is loaded from it."""
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    return str(folder)


def load(kind: Any, folder: str, seed: int, **options: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    return kind.from_pretrained(folder, **options).eval()


def logits(model: nn.Module, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(**(inputs or {"input_ids": TOKENS})).logits


def trained(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad and not is_ours(n)}


def train(model: nn.Module, steps: int = 2, weight_decay: float = 0.0) -> None:
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=0.05, weight_decay=weight_decay)
    for _ in range(steps):
        model(input_ids=TOKENS).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


# -- what came from no file ------------------------------------------------------------------------


def masked_lm(folder: Path) -> str:
    return saved(folder, BertForMaskedLM, small_config())


@pytest.mark.parametrize(
    ("before", "kind", "config", "new"),
    [
        (
            BertForMaskedLM,
            BertForSequenceClassification,
            small_config(),
            {"bert.pooler.dense", "classifier"},
        ),
        (
            BertForMaskedLM,
            BertForPreTraining,
            small_config(),
            {"bert.pooler.dense", "cls.seq_relationship"},
        ),
        (
            GPT2LMHeadModel,
            GPT2DoubleHeadsModel,
            GPT2Config(vocab_size=30, n_positions=16, n_embd=WIDTH, n_layer=2, n_head=2),
            {"multiple_choice_head.summary"},
        ),
    ],
    ids=["pooler", "pooler and second head", "second head beside a vocabulary"],
)
def test_parts_that_the_file_lacks_are_head(tmp_path, before, kind, config, new):
    folder = saved(tmp_path / "base", before, config)
    model = load(kind, folder, seed=1)
    attachment = attach(model, PLAN)
    names = {f"{path}.{leaf}" for path in new for leaf in ("weight", "bias")}
    assert trained(model) == names == attachment.head
    assert names <= model.state_dict().keys()
    again = load(kind, folder, seed=2)
    load_adapters(again, save_adapters(model, tmp_path / "adapters"))
    for name in names:
        assert torch.equal(again.get_parameter(name), model.get_parameter(name))


def test_a_complete_model_has_only_its_head(tmp_path):
    """A classifier that was trained before is trained again; its pooler is pretrained."""
    folder = saved(tmp_path, BertForSequenceClassification, small_config())
    model = load(BertForSequenceClassification, folder, seed=1)
    attach(model, PLAN)
    assert trained(model) == {"classifier.weight", "classifier.bias"}


def test_a_new_part_that_is_not_named_as_head_is_saved_frozen(tmp_path):
    folder = masked_lm(tmp_path / "base")
    model = load(AutoModelForSequenceClassification, folder, seed=1, num_labels=3)
    attach(model, PLAN, head=["classifier"])
    assert trained(model) == {"classifier.weight", "classifier.bias"}
    assert "bert.pooler.dense.weight" in model.state_dict()


@pytest.mark.parametrize("how", ["named as head", "missing in the file"])
def test_a_head_inside_the_base_loads_where_it_is_base(tmp_path, how):
    """The target has the part from elsewhere, or nobody named it: its values are replaced."""
    folder = masked_lm(tmp_path / "base")
    if how == "named as head":
        source, target = tiny_bert(), tiny_bert()
        attach(source, PLAN, head=["bert.pooler", "classifier"])
        train(source)
    else:
        source = load(AutoModelForSequenceClassification, folder, seed=1, num_labels=3)
        target = BertForSequenceClassification(source.config).eval()
        target.load_state_dict({**target.state_dict(), **source.state_dict()})
        nn.init.ones_(target.get_parameter("bert.pooler.dense.weight"))
        attach(source, PLAN)
    before = target.get_parameter("bert.pooler.dense.weight").detach().clone()
    with pytest.warns(UserWarning, match=r"Loading replaces 2 tensors: bert\.pooler\.dense\.bias"):
        attachment = load_adapters(target, save_adapters(source, tmp_path / "adapters"))
    assert torch.equal(logits(target), logits(source))
    attachment.detach()
    assert torch.equal(target.get_parameter("bert.pooler.dense.weight"), before)


def test_a_part_that_was_replaced_before_attaching(tmp_path):
    folder = masked_lm(tmp_path / "base")
    model: Any = load(AutoModelForSequenceClassification, folder, seed=1, num_labels=3)
    model.bert.embeddings.LayerNorm = nn.LayerNorm(WIDTH)
    attach(model, PLAN)
    assert "bert.embeddings.LayerNorm.weight" in trained(model) & model.state_dict().keys()


def test_a_converted_projection_is_no_new_part(tmp_path):
    """Quantisation after loading replaces linear layers by others, which carry no mark."""
    folder = saved(tmp_path, BertForSequenceClassification, small_config())
    model: Any = load(BertForSequenceClassification, folder, seed=1)
    for layer in model.bert.encoder.layer:
        converted = nn.Linear(WIDTH, WIDTH)
        converted.load_state_dict(layer.attention.self.key.state_dict())
        layer.attention.self.key = converted
    attach(model, PLAN)
    assert trained(model) == {"classifier.weight", "classifier.bias"}


def test_half_precision_does_not_hide_what_is_new(tmp_path):
    folder = masked_lm(tmp_path / "base")
    model = load(AutoModelForSequenceClassification, folder, seed=1, num_labels=3).bfloat16()
    attach(model, PLAN)
    assert "bert.pooler.dense.weight" in trained(model)


# -- rows of new tokens ----------------------------------------------------------------------------


def test_rows_of_new_tokens_are_saved_and_said_to_be_frozen(tmp_path):
    folder = saved(tmp_path / "base", BertForSequenceClassification, small_config())
    models = []
    for seed in (1, 2):
        model = load(BertForSequenceClassification, folder, seed=seed)
        model.resize_token_embeddings(36)
        models.append(model)
    source, target = models
    tokens = torch.arange(28, 36).view(2, 4)
    with pytest.warns(
        UserWarning, match=r"word_embeddings\.weight has 6 rows of new tokens.*head="
    ):
        attach(source, PLAN)
    assert not torch.equal(logits(target, input_ids=tokens), logits(source, input_ids=tokens))
    with pytest.warns(UserWarning, match="6 rows of new tokens"):
        load_adapters(target, save_adapters(source, tmp_path / "adapters"))
    assert torch.equal(logits(target, input_ids=tokens), logits(source, input_ids=tokens))


def test_rows_of_new_tokens_are_trained_if_named(tmp_path):
    folder = saved(tmp_path, BertForSequenceClassification, small_config())
    model = load(BertForSequenceClassification, folder, seed=1)
    model.resize_token_embeddings(36)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        attach(model, PLAN, head=["classifier", "bert.embeddings.word_embeddings"])
    name = "bert.embeddings.word_embeddings.weight"
    assert name in trained(model) & model.state_dict().keys()


def test_fewer_tokens_are_no_new_rows(tmp_path):
    folder = saved(tmp_path, BertForSequenceClassification, small_config())
    model = load(BertForSequenceClassification, folder, seed=1)
    model.resize_token_embeddings(20)
    attach(model, PLAN)
    assert "bert.embeddings.word_embeddings.weight" not in model.state_dict()


# -- what is unfrozen or added later ---------------------------------------------------------------


def unfreeze_norms(model: nn.Module) -> set[str]:
    names = {n for n, _ in model.named_parameters() if "LayerNorm" in n}
    for name in names:
        model.get_parameter(name).requires_grad_(True)
    return names


@pytest.mark.parametrize("frozen_again", [False, True])
def test_norms_that_are_unfrozen_later(tmp_path, frozen_again):
    model = tiny_bert()
    attach(model, PLAN)
    names = unfreeze_norms(model)
    train(model)
    if frozen_again:
        model.requires_grad_(False)
    target = tiny_bert()
    expected = logits(target)
    folder = save_adapters(model, tmp_path)
    with pytest.warns(UserWarning, match=rf"Loading replaces {len(names)} tensors: .*LayerNorm"):
        attachment = load_adapters(target, folder)
    assert torch.equal(logits(target), logits(model))
    again = tiny_bert()
    with pytest.warns(UserWarning, match="Loading replaces"):  # saved again, it is still complete
        load_adapters(again, save_adapters(target, tmp_path / "again"))
    assert torch.equal(logits(again), logits(model))
    attachment.detach()
    assert not torch.equal(logits(target), expected)  # the head has stayed
    before = dict(tiny_bert().named_parameters())
    assert all(torch.equal(target.get_parameter(name), before[name]) for name in names)


def test_a_frozen_base_is_never_marked():
    model = tiny_bert()
    attachment = attach(model, PLAN)
    train(model, weight_decay=0.1)
    model.half().float()  # rounded, which is not training
    assert model.state_dict().keys() == attachment.owned


def test_detaching_tells_what_it_cannot_restore():
    model = tiny_bert()
    attachment = attach(model, PLAN)
    unfreeze_norms(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        attach(other := tiny_bert(), PLAN)
        unfreeze_norms(other)
        other.__dict__["pelt_attachment"].detach()  # unfrozen, but not trained
    train(model)
    with pytest.warns(UserWarning, match=r"tensors of the base have changed.*LayerNorm"):
        attachment.detach()


def test_modules_that_are_added_later(tmp_path):
    source, target = tiny_bert(), tiny_bert()
    attachment = attach(source, PLAN)
    source.add_module("late", nn.Linear(4, 4))
    assert {"late.weight", "late.bias"} <= source.state_dict().keys()
    assert {"late.weight", "late.bias"} <= attachment.owned
    folder = save_adapters(source, tmp_path)
    with pytest.raises(ValueError, match=r"does not have: 2 tensors: late\.bias, late\.weight"):
        load_adapters(target, folder)
    attach(target, PLAN)
    target.add_module("late", nn.Linear(4, 4))
    load_adapters(target, folder)
    assert torch.equal(target.get_parameter("late.weight"), source.get_parameter("late.weight"))
    state = {n: t for n, t in source.state_dict().items() if n != "late.bias"}
    with pytest.raises(RuntimeError, match=r"It lacks 1 tensor: late\.bias"):
        target.load_state_dict(state, strict=False)


def test_tokens_that_are_added_later(tmp_path):
    source, target = tiny_bert(), tiny_bert()
    attach(source, PLAN)
    source.resize_token_embeddings(110)
    folder = save_adapters(source, tmp_path)
    with pytest.raises(
        ValueError, match=r"word_embeddings\.weight is \(110, 32\) there and \(100,"
    ):
        load_adapters(target, folder)
    attach(target, PLAN)
    target.resize_token_embeddings(110)
    with pytest.warns(UserWarning, match="Loading replaces 1 tensor: .*word_embeddings"):
        load_adapters(target, folder)
    tokens = torch.arange(102, 110).view(2, 4)
    assert torch.equal(logits(target, input_ids=tokens), logits(source, input_ids=tokens))


# -- statistics that move --------------------------------------------------------------------------


class WithStatistics(nn.Module):
    """A batch norm in front of what it replaces, and a counter that nothing else knows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.norm = inner, nn.BatchNorm1d(32)
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.inner(self.norm(x.transpose(1, 2)).transpose(1, 2))


def with_statistics() -> Any:
    model: Any = tiny_bert()
    layer = model.bert.encoder.layer[1].intermediate
    layer.dense = WithStatistics(layer.dense)
    return model.eval()


def run_in_training(model: Any) -> None:
    model.train()
    model(input_ids=TOKENS)
    model.eval()


PLACE = "bert.encoder.layer.1.intermediate.dense"
STATISTICS = {
    f"{PLACE}.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
}


def test_statistics_are_saved_restored_and_detached(tmp_path):
    source, target = with_statistics(), with_statistics()
    before = logits(source)
    attachment = attach(source, HeadOnly())
    assert source.state_dict().keys() >= STATISTICS
    run_in_training(source)
    assert (logits(source) - before).abs().max() > 1e-4
    with pytest.warns(UserWarning, match=rf"replaces 1 tensor: {PLACE}\.calls"):
        load_adapters(target, save_adapters(source, tmp_path))
    assert torch.equal(logits(target), logits(source))
    assert torch.equal(target.get_buffer(f"{PLACE}.calls"), torch.ones(3))
    with pytest.warns(UserWarning, match=rf"have changed.*{PLACE}\.calls.*cannot restore"):
        attachment.detach()
    assert torch.equal(logits(source), before)


def test_merging_keeps_the_statistics_of_training():
    model = with_statistics()
    attach(model, PLAN)
    run_in_training(model)
    expected = logits(model)
    torch.testing.assert_close(logits(merge(model)), expected)


def test_buffers_of_the_head_are_saved(tmp_path):
    def with_head() -> Any:
        model: Any = tiny_bert()
        model.classifier = nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, 3))
        model.classifier[1].register_buffer("scale", torch.ones(3))
        return model.eval()

    source, target = with_head(), with_head()
    attach(source, HeadOnly())
    run_in_training(source)
    with torch.no_grad():
        source.classifier[1].scale.add_(1)
    load_adapters(target, save_adapters(source, tmp_path))
    assert torch.equal(logits(target), logits(source))
    assert torch.equal(target.classifier[1].scale, source.classifier[1].scale)


# -- modules that override state_dict --------------------------------------------------------------


class Secretive(nn.Linear):
    """A quantised layer whose state dict names its own tensors and no children."""

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", **_: Any) -> Any:
        destination = {} if destination is None else destination
        destination[f"{prefix}packed"] = self.weight.detach()
        return destination


def test_what_a_state_dict_leaves_out_is_refused():
    model: Any = tiny_bert()
    attention = model.bert.encoder.layer[1].attention.self
    attention.value = Secretive(32, 32)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(
        ValueError,
        match=r"value \(Secretive\) overrides state_dict\. It leaves out 1 tensor: .*value\.pelt",
    ):
        attach(model, PLAN)
    assert "pelt_attachment" not in model.__dict__
    assert not any(is_ours(name) for name, _ in model.named_modules())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    attach(model, Plan.uniform(LoRA(r=2, sites=("key",))))  # other sites are fine
