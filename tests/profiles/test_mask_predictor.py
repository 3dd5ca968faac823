"""The network that predicts a new user's masks: its evidence, its training and its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from profiles.training import People
from safetensors.torch import load_file, save_file
from small import LABELS, bert
from torch.nn import functional as F

from lightning_pelt import XPEFT, PELTModule, Plan, RandomBank
from lightning_pelt.methods.xpeft.masks import masks_of, profiles_of
from lightning_pelt.profiles import read_profile
from lightning_pelt.profiles.evidence import evidence, mean_logits, selected
from lightning_pelt.profiles.mask_predictor import MaskPredictor
from lightning_pelt.profiles.mask_predictor_file import (
    FORMAT,
    HEADER,
    belongs_to,
    load_predictor,
    save_predictor,
)
from lightning_pelt.profiles.mask_predictor_training import (
    Episodes,
    batches,
    learn,
    predict_logits,
    usable_users,
)
from lightning_pelt.tasks import Regression
from lightning_pelt.utils.adapter_format import digest_of

SHORT = Episodes(steps=3, users=2, rows=2, rank=2, hidden=3)


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    return bert(tmp_path / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def model_on(backbone: str, **options: Any) -> PELTModule:
    """Three profiles whose masks differ."""
    given = {"bank": RandomBank(size=12), "k": 4, "scale": 8.0, "bottleneck": 4, "profiles": 3}
    module = PELTModule(
        backbone, Plan.uniform(XPEFT(**{**given, "init_std": 1.0, **options})), labels=LABELS
    )
    module.configure_model()
    return module.eval()


@pytest.fixture
def module(backbone: str) -> PELTModule:
    return model_on(backbone)


@pytest.fixture
def people(backbone: str) -> People:
    return People(backbone)


def learned(module: PELTModule, people: People, episodes: Episodes = SHORT) -> MaskPredictor:
    return learn(module, people.examples("train"), people.collate(), episodes)


# -- evidence ---------------------------------------------------------------------------------


def test_the_summary_is_the_gradient_of_a_linear_head(module: PELTModule, people: People) -> None:
    """Of the mean loss, by autograd, at the scores of the model."""
    rows = list(batches(module, people.examples("train"), people.collate()))
    seen = evidence(module.model, rows, mean_logits(module))
    (batch,) = rows
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    masks = selected(module.model, mean_logits(module)[None], torch.zeros(20, dtype=torch.long))
    with torch.no_grad(), profiles_of(module.model, masks):
        out = module.model(**inputs, output_hidden_states=True)
    mask = inputs["attention_mask"].bool()
    hidden = torch.stack([h[m].mean(0) for h, m in zip(out.hidden_states[-1], mask, strict=True)])
    hidden = torch.cat([hidden, torch.ones(20, 1)], 1)
    head = torch.zeros(3, 17, requires_grad=True)
    F.cross_entropy(out.logits + hidden @ head.T, batch["labels"]).backward()
    torch.testing.assert_close(seen.summary(), -head.grad)


@pytest.mark.parametrize("own", [{}, {"norm": "profile", "head": "profile"}, {"norm": None}])
def test_masks_from_logits_are_those_of_a_profile_with_them(
    backbone: str, own: dict[str, Any]
) -> None:
    module = model_on(backbone, **own)
    masks = masks_of(module)
    with torch.no_grad():
        for other in masks.logits[1:]:
            other.copy_(masks.logits[0])
    tokens, rows = torch.tensor([[3, 4, 1], [5, 6, 1]]), torch.tensor([0, 0])
    with profiles_of(module, selected(module, mean_logits(module)[None], rows)):
        found = module(input_ids=tokens).logits
    torch.testing.assert_close(found, module(input_ids=tokens, profile=rows).logits)


# -- training ---------------------------------------------------------------------------------


def test_a_predicted_mask_selects_k_of_n(module: PELTModule, people: People) -> None:
    predictor = learned(module, people)
    logits = predict_logits(predictor, module, people.examples("dev"), people.collate())
    masks = masks_of(module).from_logits(logits)
    assert ((masks != 0).sum(-1) == 4).all()
    assert masks.shape == (2, 2, 12)


def test_training_changes_the_network_and_not_the_model(module: PELTModule, people: People) -> None:
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    trained = {name for name, p in module.model.named_parameters() if p.requires_grad}
    first, after = (learned(module, people, replace(SHORT, steps=n)) for n in (0, 3))
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert {name for name, p in module.model.named_parameters() if p.requires_grad} == trained
    for name, weight in first.named_parameters():
        assert not torch.equal(weight, after.get_parameter(name)), name
    assert torch.equal(after.start, mean_logits(module))


def test_the_same_seed_gives_the_same_network(module: PELTModule, people: People) -> None:
    one, same, other = (learned(module, people, replace(SHORT, seed=n)) for n in (1, 1, 2))
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert not torch.equal(one.mix.weight, other.mix.weight)


def test_rows_to_predict_are_not_summarised() -> None:
    users = {0: range(10), 4: range(10, 13), 7: range(13, 15)}
    labels, random = torch.arange(15) % 4, torch.Generator().manual_seed(0)
    for mixed in (0.0, 1.0):
        for _ in range(50):
            for query, support in Episodes(rows=4, mixed=mixed).draw(users, labels, random):
                rows = {*query.tolist(), *support.tolist()}
                assert len(rows) == len(query) + len(support)
                assert len(query) and len(support)
                if mixed:
                    assert len({*labels[[*rows]].tolist()}) <= 3
                else:
                    assert any(rows <= {*own} for own in users.values())


def test_summaries_of_existing_users_do_not_saturate() -> None:
    predictor = MaskPredictor(torch.zeros(2, 2, 8), labels=3, width=16)
    summaries = 50 * torch.randn(5, 3, 17)
    predictor.scale_to(summaries)
    inner = predictor.mix(predictor.project(summaries / predictor.unit).flatten(1))
    torch.testing.assert_close(inner.square().mean(), torch.ones(()))


@pytest.mark.slow
def test_the_network_learns_what_distinguishes_users(backbone: str) -> None:
    """Users who name the same texts by opposite labels: its loss on a new one falls."""
    module = model_on(backbone, profiles=6, init_std=0.01)
    people = Opposites(backbone, batch_size=8)
    settings = Episodes(steps=150, users=4, rows=8, lr=1e-2, dropout=0.0)
    examples, collate = people.examples("train"), people.collate()
    predictor = learn(module, examples, collate, settings)
    new = people.examples("dev")
    batch = collate(new[:])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    mean = loss_of(module, predictor.start, inputs)
    predicted = loss_of(module, predict_logits(predictor, module, new, collate), inputs)
    assert predicted < mean - 0.05


class Opposites(People):
    """Of each text, even users take one label and odd users another."""

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        found = super().encode(rows, split)
        users = [i % 6 for i in range(len(rows["number"]))] if split == "train" else [1] * 8
        return {**found, "profile": users, "labels": [2 * (user % 2) for user in users]}


@torch.no_grad()
def loss_of(module: PELTModule, logits: torch.Tensor, inputs: dict[str, Any]) -> float:
    rows = torch.zeros(len(inputs["labels"]), dtype=torch.long)
    with profiles_of(module.model, selected(module.model, logits[None], rows)):
        return module.task.step(module.model, inputs)[0].item()


def test_one_user_is_not_enough(people: People) -> None:
    rows = people.examples("train").filter(lambda row: row["profile"] == 0)
    with pytest.raises(ValueError, match="two training rows or more is 1, expected"):
        usable_users(rows)


def test_other_tasks_are_refused(module: PELTModule, people: People) -> None:
    module.task = Regression()
    with pytest.raises(ValueError, match="the task is Regression"):
        learned(module, people)


# -- files ------------------------------------------------------------------------------------


@pytest.fixture
def saved(module: PELTModule, people: People, tmp_path: Path) -> tuple[MaskPredictor, Path]:
    predictor = learned(module, people, replace(SHORT, steps=0))
    return predictor, save_predictor(predictor, tmp_path / "net.safetensors", module.attachment)


def test_a_file_gives_the_same_predictions(
    module: PELTModule, saved: tuple[MaskPredictor, Path]
) -> None:
    predictor, path = saved
    summaries = torch.randn(2, 3, 17)
    found = load_predictor(path, module.attachment)
    assert torch.equal(found(summaries), predictor(summaries))


def test_a_network_of_another_bank_or_model_is_refused(
    module: PELTModule, backbone: str, saved: tuple[MaskPredictor, Path]
) -> None:
    other = model_on(backbone, bank=RandomBank(size=12, seed=1))
    with pytest.raises(ValueError, match=r"net\.safetensors belongs to the bank .* checkpoint has"):
        load_predictor(saved[1], other.attachment)
    with torch.no_grad():
        module.model.classifier.bias.add_(1)
    with pytest.raises(ValueError, match=r"belongs to the model .*learn-instant"):
        load_predictor(saved[1], module.attachment)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("unit", lambda t: t * torch.nan, r"net\.safetensors: unit has values that are not finite"),
        ("unit", lambda t: t * 0, "unit is 0, expected > 0"),
        ("project.weight", lambda t: t[:1], r"from 6 labels, the model has .* and 3"),
        ("start", lambda t: t[:1], r"net\.safetensors: .*size mismatch for difference"),
    ],
)
def test_a_file_that_cannot_predict_masks_of_the_model_is_refused(
    module: PELTModule,
    saved: tuple[MaskPredictor, Path],
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    message: str,
) -> None:
    """Although its digest is right."""
    path, tensors = saved[1], load_file(saved[1])
    tensors[name] = change(tensors[name]).clone()
    entry = {"format": FORMAT, "tensors": digest_of(tensors), **belongs_to(module.attachment)}
    save_file(tensors, path, metadata={HEADER: json.dumps(entry)})
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_predictor(path, module.attachment)


def test_a_damaged_or_foreign_file_is_refused(
    module: PELTModule, saved: tuple[MaskPredictor, Path]
) -> None:
    path = saved[1]
    tensors = load_file(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its tensors"):
        load_predictor(path, module.attachment)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is truncated or not a safetensors file"):
        load_predictor(path, module.attachment)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="but not one of `lightning-pelt profiles learn-instant`"):
        load_predictor(path, module.attachment)
    header = {HEADER: json.dumps({"format": "2", "tensors": digest_of(tensors)})}
    save_file(tensors, path, metadata=header)
    with pytest.raises(ValueError, match="has the format 2, and this version reads 1: train"):
        load_predictor(path, module.attachment)
    with pytest.raises(FileNotFoundError, match="there is no network"):
        load_predictor(path.with_name("none.safetensors"), module.attachment)
    with pytest.raises(ValueError, match=r"is named 'net\.pt', expected \*\.safetensors"):
        save_predictor(saved[0], path.with_suffix(".pt"), module.attachment)


def test_a_profile_is_read_from_predicted_logits(module: PELTModule, people: People) -> None:
    logits = predict_logits(
        learned(module, people), module, people.examples("dev"), people.collate()
    )
    with torch.no_grad():
        masks_of(module).logits[0].copy_(logits)
    top = logits.topk(4, -1).indices
    profile = torch.from_numpy(read_profile(module).masks)
    assert profile.gather(-1, top).all() and (profile.sum(-1) == 4).all()
