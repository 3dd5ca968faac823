"""``attach(model, plan, path=...)``: the pretrained model around the attached one is frozen too."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import LlavaConfig, LlavaForConditionalGeneration

from lightning_pelt import (
    LoRA,
    PELTCallback,
    Plan,
    attach,
    detach,
    load_adapters,
    merge,
    save_adapters,
)
from lightning_pelt.callbacks.parameter_count import count
from lightning_pelt.plans import FullFineTuning
from lightning_pelt.testing import awaken, draw, hook_counts, is_ours, tiny_bert

PLAN = Plan.uniform(LoRA(r=2))
LANGUAGE, VISION = "model.language_model", "model.vision_tower"
WORDS = torch.tensor([[99, 99, 99, 99, 5, 17, 40, 9]])  # four image tokens and four words
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def llava(seed: int = 0, *, tied: bool = False) -> Any:
    vision = {**SHAPE, "image_size": 16, "patch_size": 8, "model_type": "clip_vision_model"}
    text = {**SHAPE, "vocab_size": 100, "model_type": "llama"}
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_index=99, tie_word_embeddings=tied
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return draw(LlavaForConditionalGeneration(config), seed)


def logits(model: Any) -> Tensor:
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=WORDS, pixel_values=pixels).logits


def trained(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_only_the_submodules_train() -> None:
    model = llava()
    size = sum(parameter.numel() for parameter in model.parameters())
    attachment = attach(model, PLAN, path=LANGUAGE)
    assert attachment.model is model.model.language_model
    assert trained(model)
    assert all(is_ours(name) and name.startswith(LANGUAGE) for name in trained(model))
    assert attachment.backbone_size == size
    numbers = count(attachment)
    assert numbers["parameters/backbone"] == size
    own = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert numbers["parameters/trained"] == own
    assert numbers["parameters/lora/share"] == pytest.approx(100 * own / size)


@pytest.mark.parametrize("tied", [False, True])
def test_detach_restores_everything(tied: bool) -> None:
    model = llava(tied=tied)
    model.model.multi_modal_projector.linear_1.requires_grad_(False)
    model.model.language_model.norm.weight.requires_grad_(False)
    before, expected = trained(model), logits(model)
    hooks, attributes = hook_counts(model), set(vars(model))
    attach(model, PLAN, path=LANGUAGE)
    assert trained(model) & before == set()
    detach(model)
    assert trained(model) == before
    assert hook_counts(model) == hooks
    assert set(vars(model)) == attributes
    assert torch.equal(logits(model), expected)


def test_merge_unfreezes_the_model_around() -> None:
    model = llava()
    before = trained(model)
    awaken(attach(model, PLAN, path=LANGUAGE))
    expected = logits(model)
    merge(model)
    assert trained(model) == before
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


def test_full_fine_tuning_is_of_the_model_at_the_path() -> None:
    model = llava()
    attach(model, FullFineTuning(), path=LANGUAGE)
    language = {name for name, _ in model.named_parameters() if name.startswith(LANGUAGE)}
    assert trained(model) == language


def test_the_model_itself_can_be_attached_before() -> None:
    model = llava()
    first = attach(model.model.language_model, PLAN)
    assert "lm_head.weight" in trained(model)
    assert attach(model, PLAN, path=LANGUAGE) is first
    assert all(is_ours(name) for name in trained(model))
    assert attach(model, PLAN) is first, "the attached model stands for the one around it"
    with pytest.raises(ValueError, match="the model has another plan already"):
        attach(model, Plan.uniform(LoRA(r=3)))
    detach(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


# What is new.


def test_a_new_head_of_the_outer_model_trains() -> None:
    """``tiny_bert`` classifies; its head is outside the encoder at the path."""
    model: Any = tiny_bert()
    attach(model, PLAN, path="bert")
    rest = {name for name in trained(model) if not is_ours(name)}
    assert rest == {"classifier.weight", "classifier.bias"}
    assert {name for name in model.state_dict() if not is_ours(name)} == rest


def test_the_head_of_the_outer_model_is_in_train_mode() -> None:
    model: Any = tiny_bert().eval()
    attachment = attach(model, PLAN, path="bert")
    attachment.train(base_dropout=False)
    assert model.classifier.training
    assert not model.bert.training


class Module(nn.Module):
    """A stranger's module: a vision-language model, and a classifier beside it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.backbone = llava(seed)
        torch.manual_seed(seed)
        self.classifier = nn.Linear(32, 3)


def test_what_is_beside_the_model_stays_as_it_is() -> None:
    module = Module()
    attach(module, PLAN, path=f"backbone.{LANGUAGE}")
    rest = {name for name in trained(module) if not is_ours(name)}
    assert rest == {"classifier.weight", "classifier.bias"}
    assert {name for name in module.state_dict() if not is_ours(name)} == rest
    detach(module)
    assert all(parameter.requires_grad for parameter in module.parameters())


# Two models inside one.


@pytest.mark.parametrize("first", [LANGUAGE, VISION])
def test_two_attached_models_inside_one(first: str) -> None:
    model = llava()
    model.model.vision_tower.requires_grad_(False)
    before = trained(model)
    attachments = {path: attach(model, PLAN, path=path) for path in (LANGUAGE, VISION)}
    assert all(is_ours(name) for name in trained(model))
    starts = {name.rpartition(".layers.")[0] for name in trained(model)}
    assert starts == {LANGUAGE, f"{VISION}.encoder"}
    attachments.pop(first).detach()
    assert all(is_ours(name) and not name.startswith(first) for name in trained(model))
    detach(model)
    assert trained(model) == before


# Checkpoints.


def test_a_checkpoint_holds_the_submodules_alone() -> None:
    source, target = llava(), llava()
    awaken(attach(source, PLAN, path=LANGUAGE))
    attach(target, PLAN, path=LANGUAGE)
    state = source.state_dict()
    assert state
    assert all(is_ours(name) for name in state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target.load_state_dict(state)
    assert torch.equal(logits(target), logits(source))


def test_a_tied_vocabulary_projection_is_left_out() -> None:
    model = llava(tied=True)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    attach(model, PLAN, path=LANGUAGE)
    assert all(is_ours(name) for name in model.state_dict())
    assert not model.lm_head.weight.requires_grad


def test_what_is_unfrozen_afterwards_is_kept() -> None:
    """A projector that is trained too."""
    source, target = llava(), llava()
    for model in (source, target):
        attach(model, PLAN, path=LANGUAGE)
        model.model.multi_modal_projector.requires_grad_(True)
    with torch.no_grad():
        source.model.multi_modal_projector.linear_1.weight.mul_(2)
    state = source.state_dict()
    rest = {name for name in state if not is_ours(name)}
    assert rest == {f"model.multi_modal_projector.linear_{i}.{n}" for i in (1, 2) for n in NAMES}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target.load_state_dict(state)
    assert torch.equal(logits(target), logits(source))
    target.model.multi_modal_projector.requires_grad_(False)
    with pytest.warns(UserWarning, match="holds 4 tensors of LlavaFor.* that are frozen here"):
        target.load_state_dict(state)


NAMES = ("weight", "bias")


def test_statistics_of_the_frozen_part_are_kept() -> None:
    model = llava()
    model.model.norm = nn.BatchNorm1d(4)
    attach(model, PLAN, path=LANGUAGE)
    rest = {name for name in model.state_dict() if not is_ours(name)}
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert rest == {f"model.norm.{name}" for name in names}


def test_another_model_around_is_named() -> None:
    source, target = llava(), llava(seed=1)
    with torch.no_grad():
        for ours, theirs in zip(
            source.model.language_model.parameters(),
            target.model.language_model.parameters(),
            strict=True,
        ):
            theirs.copy_(ours)
    attach(source, PLAN, path=LANGUAGE)
    attach(target, PLAN, path=LANGUAGE)
    with pytest.warns(UserWarning, match=r"trained inside another LlavaFor.*other values"):
        target.load_state_dict(source.state_dict())


@pytest.mark.slow
def test_adapter_files(tmp_path: Path) -> None:
    source, target = Module(), Module(seed=1)
    target.backbone.load_state_dict(source.backbone.state_dict())
    awaken(attach(source, PLAN, path=f"backbone.{LANGUAGE}"))
    save_adapters(source, tmp_path)
    attach(target, PLAN, path=f"backbone.{LANGUAGE}")
    load_adapters(target, tmp_path)
    assert torch.equal(target.classifier.weight, source.classifier.weight)
    assert torch.equal(logits(target.backbone), logits(source.backbone))


def test_adapter_files_hold_the_head_of_the_outer_model(tmp_path: Path) -> None:
    source: Any = tiny_bert()
    awaken(attach(source, PLAN, path="bert"))
    with torch.no_grad():
        source.classifier.weight.mul_(2)
    with pytest.warns(UserWarning, match=r"writes the adapters"):
        source.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
    target: Any = tiny_bert()
    attach(target, PLAN, path="bert")
    load_adapters(target, tmp_path)
    assert torch.equal(target.classifier.weight, source.classifier.weight)
    ids = torch.arange(3, 9)[None]
    assert torch.equal(target(input_ids=ids).logits, source(input_ids=ids).logits)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(copied: Any) -> None:
    model = llava()
    attach(model, PLAN, path=LANGUAGE)
    other = copied(model)
    assert trained(other) == trained(model)
    assert all(is_ours(name) for name in other.state_dict())
    detach(other)
    assert all(parameter.requires_grad for parameter in other.parameters())
    assert all(is_ours(name) for name in trained(model))
    assert all(is_ours(name) for name in model.state_dict())


@pytest.mark.slow
def test_a_compiled_model_inside() -> None:
    model = llava()
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    attach(model, PLAN, path=LANGUAGE)
    assert all(is_ours(name) for name in trained(model))
    assert all(is_ours(name) for name in model.state_dict())
    detach(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


class Captions(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = llava()

    def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
        return self.model(**batch, labels=batch["input_ids"]).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


@pytest.mark.slow
def test_a_run_of_lightning(tmp_path: Path) -> None:
    module = Captions()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    batches: Any = [{"input_ids": WORDS, "pixel_values": torch.randn(1, 3, 16, 16)}] * 2
    options: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False}
    run = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[PELTCallback(PLAN, path=f"model.{LANGUAGE}")],
        **options,
    )
    run.fit(module, DataLoader(batches, batch_size=None))
    run.save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
    assert saved
    assert all(is_ours(name) for name in saved)
    again = Captions.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert torch.equal(logits(again.model.eval()), logits(module.model.eval()))
    detach(module)
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
