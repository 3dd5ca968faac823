"""Adapter files that were damaged or made up: refused by name, and the model is as it was."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_pelt import Adapter, Gate, LoRA, Plan, Prefix, attach, load_adapters, save_adapters
from lightning_pelt.attach import find_attachment
from lightning_pelt.testing import awaken, tiny_bert
from lightning_pelt.utils.adapter_format import (
    CONFIG,
    DIGESTS,
    TENSORS,
    read_adapters,
    write_adapters,
)

PLAN = Plan.uniform(
    LoRA(r=2, gate=Gate()), Adapter(bottleneck=4), Prefix(length=3, mlp=8), norms=True
)
WORDS = "bert.embeddings.word_embeddings.weight"


def saved(folder: Path) -> Path:
    model = tiny_bert()
    awaken(attach(model, PLAN))
    return save_adapters(model, folder)


def forge(folder: Path, change: Any) -> None:
    """Write the files again after ``change(config, tensors)``, with digests that fit."""
    config, tensors = read_adapters(folder / TENSORS)
    change(config, tensors)
    write_adapters(folder, tensors, plan=config["plan"], backbone=config["backbone"])


def rewrite(folder: Path, config: Any, *, beside: bool = True) -> None:
    """Replace the configuration without touching tensors or digests."""
    text = config if isinstance(config, str) else json.dumps(config)
    save_file(load_file(folder / TENSORS), folder / TENSORS, metadata={"lightning_pelt": text})
    (folder / CONFIG).unlink(missing_ok=True)
    if beside:
        (folder / CONFIG).write_text(text)


class Untouched:
    """A model, and whether it is still as it was."""

    def __init__(self) -> None:
        self.model = tiny_bert()
        self.before = self._state()

    def _state(self) -> tuple[Any, ...]:
        named = dict(self.model.named_modules())
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in named.values()]
        flags = [parameter.requires_grad for parameter in self.model.parameters()]
        values = [tensor.clone() for tensor in self.model.state_dict().values()]
        return [*named], hooks, flags, {*self.model.__dict__}, values

    def check(self) -> None:
        *now, values = self._state()
        *then, expected = self.before
        assert now == then
        assert find_attachment(self.model) is None
        assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))

    def refuses(self, folder: Path) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as raised:
            load_adapters(self.model, folder)
        assert type(raised.value) in (ValueError, FileNotFoundError)
        assert str(folder) in str(raised.value)
        self.check()
        return str(raised.value)


@pytest.fixture(scope="module")
def target() -> Untouched:
    return Untouched()


# Tensors that do not belong into the file.


@pytest.mark.parametrize("name", [WORDS, "bert.encoder.layer.1.output.dense.weight"])
@pytest.mark.parametrize("digests", ["kept", "recomputed"])
def test_a_tensor_of_the_base_is_refused_by_name(tmp_path, target, name, digests):
    folder = saved(tmp_path)
    evil = torch.zeros_like(target.model.get_parameter(name))
    if digests == "recomputed":
        forge(folder, lambda config, tensors: tensors.update({name: evil}))
    else:
        header = {"lightning_pelt": json.dumps(read_adapters(folder / TENSORS)[0])}
        save_file(load_file(folder / TENSORS) | {name: evil}, folder / TENSORS, metadata=header)
    assert re.search(rf"replace the frozen base.*: 1 tensor: {name}", target.refuses(folder))


def test_a_tensor_of_the_base_in_a_state_dict_is_refused_by_name():
    """As in a Lightning checkpoint, where the model lies inside a module."""
    module = nn.ModuleDict({"encoder": tiny_bert()})
    attach(module, PLAN)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    before = module["encoder"].get_parameter(WORDS).detach().clone()  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match=rf"replace the frozen base.*: 1 tensor: {WORDS}"):
        module.load_state_dict({**state, f"encoder.{WORDS}": torch.zeros(100, 32)}, strict=False)
    assert torch.equal(module["encoder"].get_parameter(WORDS), before)  # type: ignore[union-attr]
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def first_ours(tensors: dict[str, Tensor]) -> str:
    return next(name for name in sorted(tensors) if name.endswith("lora_down.A"))


def with_value(value: float) -> Any:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


TENSOR_CHANGES = {
    "uint8": (lambda t: t.to(torch.uint8), "dtype torch.uint8, expected torch.float32"),
    "bool": (lambda t: t > 0, "dtype torch.bool, expected torch.float32"),
    "int64": (lambda t: t.long(), "dtype torch.int64, expected torch.float32"),
    "complex": (lambda t: t.to(torch.complex64), "dtype torch.complex64"),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), "dtype torch.float8_e4m3fn"),
    "nan": (with_value(float("nan")), "contains NaN or infinity"),
    "inf": (with_value(float("inf")), "contains NaN or infinity"),
    "shape": (lambda t: t[:1].clone(), "size mismatch"),
    "scalar": (lambda t: t.sum(), "size mismatch"),
}


@pytest.mark.parametrize(("change", "message"), TENSOR_CHANGES.values(), ids=TENSOR_CHANGES.keys())
def test_a_tensor_of_another_kind_is_refused_by_name(tmp_path, target, change, message):
    folder = saved(tmp_path)
    name = first_ours(load_file(folder / TENSORS))
    forge(folder, lambda config, tensors: tensors.update({name: change(tensors[name])}))
    error = target.refuses(folder)
    assert name in error
    assert message in error

    attached = tiny_bert()  # a checkpoint of a run goes through the same checks
    attach(attached, PLAN)
    state = {key: tensor.clone() for key, tensor in attached.state_dict().items()}
    with pytest.raises(RuntimeError, match=name):
        attached.load_state_dict({**state, name: change(state[name])})
    assert all(torch.equal(tensor, state[key]) for key, tensor in attached.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_precision_is_no_other_kind(tmp_path, dtype):
    folder = saved(tmp_path)
    name = first_ours(load_file(folder / TENSORS))
    forge(folder, lambda config, tensors: tensors.update({name: tensors[name].to(dtype)}))
    model = tiny_bert()
    load_adapters(model, folder)
    assert torch.equal(model.get_parameter(name), load_file(folder / TENSORS)[name].float())


@pytest.mark.slow
def test_a_missing_and_an_unknown_tensor_are_named(tmp_path, target):
    folder = saved(tmp_path)
    forge(folder, lambda config, tensors: tensors.pop("classifier.weight"))
    assert "lacks 1 tensor: classifier.weight" in target.refuses(folder)
    saved(tmp_path)
    forge(folder, lambda config, tensors: tensors.update(extra=torch.ones(2)))
    assert "does not have: 1 tensor: extra" in target.refuses(folder)


# Configurations.


def test_an_unknown_format_is_named(tmp_path, target):
    folder = saved(tmp_path)
    config, _ = read_adapters(folder / TENSORS)
    for version in ("3", 2, None, ["2"], {}):
        rewrite(folder, config | {"format": version})
        assert f"has the format {version!r}" in target.refuses(folder)


def test_a_plan_of_another_library_is_refused(tmp_path, target):
    folder = saved(tmp_path)
    forge(folder, lambda config, tensors: config["plan"].update(class_path="os.path.Join"))
    assert "unknown class of a configuration 'os.path.Join'" in target.refuses(folder)


def test_a_plan_that_cannot_be_attached_is_undone(tmp_path, target):
    """Its values have the right types, and torch refuses one of them while the plan is built."""
    folder = saved(tmp_path)

    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        config["plan"]["init_args"]["groups"][0]["methods"][1]["init_args"]["init_std"] = -1.0

    forge(folder, change)
    target.refuses(folder)


def test_the_two_configurations_may_not_differ(tmp_path, target):
    folder = saved(tmp_path)
    whole = json.loads((folder / CONFIG).read_text())
    other = copy.deepcopy(whole)
    other["plan"]["init_args"]["groups"][0]["methods"][0]["init_args"]["alpha"] = 99.0
    (folder / CONFIG).write_text(json.dumps(other))
    assert "differs from the configuration in adapters.safetensors" in target.refuses(folder)
    for content in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[" * 500 + b"]" * 500):
        (folder / CONFIG).write_bytes(content)
        assert CONFIG in target.refuses(folder)
    (folder / CONFIG).write_text(json.dumps(whole, indent=7))  # only the values count
    load_adapters(tiny_bert(), folder)
    (folder / CONFIG).unlink()  # the header has it all
    load_adapters(tiny_bert(), folder)


TEXTS = [
    *("", "{", "null", "[]", "7", '"x"', "9" * 5000, "[" * 100_000, '{"a":' * 50_000),
    *("[" * 500 + "]" * 500, '{"format": "1"}', '{"format": "1", "plan": {}, "backbone": {}}'),
    *('{"format": "1", "plan": 5, "backbone": {}}', '{"format": "1", "plan": {}, "backbone": 5}'),
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:12])
def test_a_configuration_that_is_none_is_refused(tmp_path, target, text):
    folder = saved(tmp_path)
    rewrite(folder, text, beside=False)
    target.refuses(folder)


JUNK = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        3.5,
        10**30,
        float("nan"),
        "",
        "x",
        "all",
        "0-3",
        [],
        [1],
        ["x"],
    ),
    *([], [1], ["x"], [[]], {}, {"a": 1}, {"class_path": "x"}, {"class_path": 5}),
    {"class_path": "lightning_pelt.LoRA", "init_args": [1]},
]
GONE = object()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield from places(value[key], (*path, key))


def replaced(config: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    config = copy.deepcopy(config)
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    if new is GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return config


def loads_equal_or_refuses(target: Untouched, folder: Path, expected: dict[str, Tensor]) -> bool:
    """Whether the file was refused; if not, the model has the tensors that were saved."""
    model = target.model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about another backbone
            attachment = load_adapters(model, folder)
    except (ValueError, FileNotFoundError) as error:
        assert type(error) in (ValueError, FileNotFoundError), repr(error)
        assert str(folder) in str(error)
        target.check()
        return True
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    attachment.detach()
    target.check()
    return False


ROUNDS = pytest.mark.parametrize("rounds", [25, pytest.param(500, marks=pytest.mark.nightly)])


@ROUNDS
@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.slow
def test_any_change_of_the_configuration_is_refused_or_harmless(tmp_path, target, version, rounds):
    """Format 1 has no digests, so that the types of every value are checked."""
    draw = random.Random(11)
    folder = saved(tmp_path)
    config, expected = read_adapters(folder / TENSORS)
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    if version == "1":
        config = {k: v for k, v in config.items() if k != DIGESTS} | {"format": "1"}
        config["backbone"].pop("weights")
    paths = list(places(config))[1:]
    refused = 0
    for _ in range(rounds):
        path, new = draw.choice(paths), draw.choice([*JUNK, GONE])
        changed = replaced(config, path, new)
        rewrite(folder, changed)
        was_refused = loads_equal_or_refuses(target, folder, expected)
        assert was_refused or version == "1" or json.dumps(changed) == json.dumps(config)
        refused += was_refused
    assert refused > rounds // 2


@ROUNDS
@pytest.mark.slow
def test_any_flipped_bit_is_refused_or_harmless(tmp_path, target, rounds):
    draw = random.Random(12)
    folder = saved(tmp_path)
    expected = {name: t.clone() for name, t in load_file(folder / TENSORS).items()}
    whole = (folder / TENSORS).read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    for number in range(rounds):
        place = draw.randrange(8 + header if number % 2 else len(whole))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        (folder / TENSORS).write_bytes(flipped)
        refused = loads_equal_or_refuses(target, folder, expected)
        assert refused or place < 8 + header


def test_a_file_cut_anywhere_is_refused(tmp_path, target):
    draw = random.Random(13)
    folder = saved(tmp_path)
    whole = (folder / TENSORS).read_bytes()
    for _ in range(30):
        (folder / TENSORS).write_bytes(whole[: draw.randrange(len(whole))])
        assert "truncated" in target.refuses(folder)


def test_a_refused_file_leaves_an_attached_model_as_it_was(tmp_path):
    folder = saved(tmp_path)
    model = tiny_bert()
    attachment = attach(model, PLAN)
    awaken(attachment, seed=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    last = max(before)
    forge(folder, lambda config, tensors: tensors.update({last: tensors[last] * torch.nan}))
    with pytest.raises(ValueError, match="NaN"):
        load_adapters(model, folder)
    assert find_attachment(model) is attachment
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
