"""What a module trains beside its model comes back with the adapters, or is named."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from lightning_pelt import LoRA, Plan, attach, load_adapters, save_adapters
from lightning_pelt.testing import tiny_bert

PLAN = Plan.uniform(LoRA(r=2))


class Classifier(nn.Module):
    """A stranger's module: a model, a head with statistics, a frozen table and a temperature."""

    def __init__(self, seed: int, width: int = 4) -> None:
        super().__init__()
        self.model = tiny_bert()
        torch.manual_seed(seed)
        self.head = nn.Sequential(nn.Linear(32, width), nn.BatchNorm1d(width))
        self.table = nn.Embedding(3, 3).requires_grad_(False)
        self.temperature = nn.Parameter(torch.full((1,), float(seed)))


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: t for name, t in named if name.startswith(("head.", "temperature"))}


def test_a_head_of_the_module_comes_back(tmp_path):
    source, target = Classifier(1), Classifier(2)
    attach(source, PLAN)
    source.head(torch.randn(8, 32))  # moves the statistics
    folder = save_adapters(source, tmp_path)
    table = target.table.weight.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_adapters(target, folder)
    assert len(tensors(target)) == 8
    for name, tensor in tensors(target).items():
        assert torch.equal(tensor, tensors(source)[name]), name
    assert torch.equal(target.table.weight, table)


def test_the_model_alone_takes_its_part_and_names_the_rest(tmp_path):
    source, target = Classifier(1), tiny_bert()
    attach(source, PLAN)
    folder = save_adapters(source, tmp_path)
    with pytest.warns(
        UserWarning, match=r"also holds head\.0\.bias, .*give load_adapters that mod"
    ):
        load_adapters(target, folder)
    state = source.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items())


def test_a_head_that_the_file_lacks_is_named(tmp_path):
    source, target = Classifier(1), Classifier(2)
    attach(source, PLAN)
    folder = save_adapters(source.model, tmp_path)
    with pytest.warns(UserWarning, match=r"head\.0\.bias, .* of Classifier stay as they are"):
        load_adapters(target, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda module: delattr(module, "temperature"), "the module lacks temperature"),
        (lambda module: module.add_module("more", nn.Linear(2, 2)), r"the file lacks more\.bias"),
        (lambda module: module.__setattr__("head", nn.Linear(32, 4)), r"the file lacks head\.bias"),
        (
            lambda module: module.head.__setitem__(0, nn.Linear(32, 5)),
            r"head\.0\.bias is \(4,\) there and \(5,\) here",
        ),
    ],
)
def test_another_module_is_refused_and_left_alone(tmp_path, change: Any, message: str):
    source, target = Classifier(1), Classifier(2)
    attach(source, PLAN)
    folder = save_adapters(source, tmp_path)
    change(target)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_adapters(target, folder)
    after = target.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_several_attached_models_are_refused(tmp_path):
    towers = nn.ModuleDict({"text": tiny_bert(), "image": tiny_bert()})
    for path in towers:
        attach(towers, PLAN, path=path)
    with pytest.raises(ValueError, match=r"2 attached models \(text, image\).*module\.text"):
        save_adapters(towers, tmp_path)
    save_adapters(towers["text"], tmp_path)


def test_another_trainable_model_is_named(tmp_path):
    towers = nn.ModuleDict({"student": tiny_bert(), "teacher": tiny_bert()})
    attach(towers, PLAN, path="student")
    with pytest.warns(UserWarning, match=r"teacher \(Bert.*trainable and has no plan"):
        save_adapters(towers, tmp_path)
    towers["teacher"].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        save_adapters(towers, tmp_path)
    towers["head"] = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"trains head\.bias, head\.weight beside 2 models"):
        save_adapters(towers, tmp_path)
