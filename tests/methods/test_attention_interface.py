"""The wrapped attention interface: every way in which transformers calls it, and when it is there.

What a prefix does inside the attention is in test_prefix_attention.
"""

from __future__ import annotations

import ast
import copy
import gc
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

from lightning_pelt import LoRA, Plan, Prefix, attach
from lightning_pelt.methods import _attention_interface
from lightning_pelt.testing import awaken, tiny_bert, tiny_gpt2

MODELS = Path(transformers.__file__).parent / "models"
TRANSFORMERS_OWN = AttentionInterface.get_interface  # no prefix exists when files are collected
TOKENS = torch.arange(3, 19).view(2, 8)
LENGTH = 2
NAMES = ("module", "query", "key", "value", "attention_mask")


def own() -> bool:
    return AttentionInterface.get_interface is TRANSFORMERS_OWN


@pytest.fixture
def _unwrapped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No prefix before and after; models of other tests may still await their collection."""
    monkeypatch.setattr(AttentionInterface, "get_interface", TRANSFORMERS_OWN)
    monkeypatch.setattr(_attention_interface, "_in_use", set())
    yield
    gc.collect()
    assert own()


alone = pytest.mark.usefixtures("_unwrapped")


# -- every convention of a call -------------------------------------------------------------------


class Convention(NamedTuple):
    """How an attention function is called: number of positional arguments, names of the others."""

    positional: int
    names: tuple[str, ...]


LOOK_UP = re.compile(r"(\w+)(?:: \w+)? = ALL_ATTENTION_FUNCTIONS\.get_interface\(")


@pytest.fixture(scope="module")
def conventions() -> dict[Convention, str]:
    """Those of all modeling files, and where each is found first. Reading them takes seconds."""
    found: dict[Convention, str] = {}
    for path in sorted(MODELS.glob("*/modeling_*.py")):
        source = path.read_text(encoding="utf-8")
        names = LOOK_UP.findall(source)
        assert len(names) == source.count("get_interface("), path
        for name in set(names):
            starts = [match.start() for match in re.finditer(rf"\b{name}\(", source)]
            assert starts, f"{path} calls {name} elsewhere"
            for start in starts:
                call = call_at(source, start)
                keywords = tuple(keyword.arg for keyword in call.keywords if keyword.arg)
                where = f"{path.name}:{source.count(chr(10), 0, start) + 1}"
                found.setdefault(Convention(len(call.args), keywords), where)
    return found


def call_at(source: str, start: int) -> ast.Call:
    """The call that begins at ``start``."""
    end = start
    while True:
        end = source.index(")", end) + 1
        try:
            call = ast.parse(source[start:end], mode="eval").body
        except SyntaxError:
            continue
        assert isinstance(call, ast.Call)
        return call


class FixedPrefix(nn.Module):
    """A prefix without a gate, or with one."""

    closed = False
    shown = torch.tensor(True)

    def __init__(self, gate: Tensor | None = None) -> None:
        super().__init__()
        self.key, self.value = torch.randn(1, 2, LENGTH, 8), torch.randn(1, 2, LENGTH, 8)
        self.gate = gate

    def forward(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return self.key, self.value

    def gate_for(self, query: Tensor) -> Tensor | None:
        return self.gate

    def extended_bias(self, bias: Tensor, length: int) -> Tensor:
        return nn.functional.pad(bias, (length, 0))


class Host(nn.Module):
    is_causal = False


def prefixed_host(gate: Tensor | None = None) -> tuple[Host, FixedPrefix, Any]:
    host, prefix = Host(), FixedPrefix(gate)
    return host, prefix, _attention_interface.put(prefix, host, "")


def arguments(host: nn.Module, convention: Convention) -> tuple[tuple, dict[str, Any]]:
    """Arguments of a call: tensors where they matter, and an object for every other name."""
    query, key, value = torch.randn(3, 2, 2, 3, 8)
    mask = torch.tensor([[True, False, True], [True, True, True]])[:, None, None]
    ordered = (host, query, key, value, mask)
    values = dict(zip(NAMES, ordered, strict=True))
    values |= {"scaling": 0.3, "dropout": 0.0, "is_causal": False}
    values |= {"position_bias": torch.randn(1, 2, 3, 3)}
    names = {name: values.get(name) for name in convention.names}
    return ordered[: convention.positional], names


def received(*args: Any, **kwargs: Any) -> tuple[tuple, dict[str, Any]]:
    return args, kwargs


def look_up(function: Callable, name: str = "eager") -> Callable:
    return AttentionInterface().get_interface(name, function)


@pytest.mark.slow
def test_the_conventions_are_those_of_transformers(conventions: dict[Convention, str]) -> None:
    assert sum(1 for c in conventions if "attention_mask" in c.names) > 10
    assert {c.positional for c in conventions} >= {1, 4, 5}
    assert len(conventions) > 35


@pytest.mark.slow
def test_without_a_prefix_the_function_gets_what_it_is_given(
    conventions: dict[Convention, str], subtests: pytest.Subtests
) -> None:
    for convention, where in conventions.items():
        with subtests.test(where):
            _, _, put = prefixed_host()
            args, kwargs = arguments(Host(), convention)
            got, named = look_up(received)(*args, **kwargs)
            assert len(got) == len(args) and all(a is b for a, b in zip(got, args, strict=True))
            assert list(named) == list(kwargs) and all(
                named[name] is kwargs[name] for name in kwargs
            )
            put.remove()


@pytest.mark.slow
def test_with_a_prefix_only_keys_and_masks_grow(
    conventions: dict[Convention, str], subtests: pytest.Subtests
) -> None:
    for convention, where in conventions.items():
        with subtests.test(where):
            host, prefix, put = prefixed_host()
            args, kwargs = arguments(host, convention)
            given = dict(zip(NAMES, args, strict=False)) | kwargs
            (module, query, key, value, mask), named = look_up(received)(*args, **dict(kwargs))
            assert module is host and query is given["query"]
            for grown, name in ((key, "key"), (value, "value")):
                assert torch.equal(grown[:, :, LENGTH:], given[name])
                assert torch.equal(grown[:1, :, :LENGTH], getattr(prefix, name))
            if given.get("attention_mask") is None:
                assert mask is None
            else:
                assert mask[..., :LENGTH].all() and torch.equal(
                    mask[..., LENGTH:], given["attention_mask"]
                )
            bias = named.pop("position_bias", None)
            assert bias is None or torch.equal(bias[..., LENGTH:], kwargs.pop("position_bias"))
            rest = {name: value for name, value in kwargs.items() if name not in NAMES}
            rest.pop("position_bias", None)
            assert all(named[name] is value for name, value in rest.items()) and set(named) == set(
                rest
            )
            put.remove()


@pytest.mark.slow
def test_equals_the_plain_function_on_longer_tensors(
    conventions: dict[Convention, str], subtests: pytest.Subtests
) -> None:
    """SDPA, called in the same way, on keys, values and a mask with the prefix in them."""
    for convention, where in conventions.items():
        with subtests.test(where):
            host, prefix, put = prefixed_host()
            args, kwargs = arguments(host, convention)
            names = dict(zip(NAMES, args, strict=False)) | kwargs
            if "attention_mask" not in names:  # only other implementations are called so
                names["attention_mask"] = kwargs["attention_mask"] = None
            ours, _ = look_up(sdpa_attention_forward, "eager")(*args, **dict(kwargs))
            put.remove()
            for name in ("key", "value"):
                names[name] = torch.cat(
                    [getattr(prefix, name).expand(2, -1, -1, -1), names[name]], 2
                )
            if names["attention_mask"] is not None:
                names["attention_mask"] = nn.functional.pad(
                    names["attention_mask"], (LENGTH, 0), value=True
                )
            if names.get("position_bias") is not None:
                names["position_bias"] = nn.functional.pad(names["position_bias"], (LENGTH, 0))
            expected, _ = sdpa_attention_forward(**names)
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool", [(1, 1, 1), (2, 3, 1)], ids=["pooled", "token"])
def test_scale_and_bias_without_names(pool: tuple[int, ...]) -> None:
    """Behind the mask, every function has another order; positions mean those of the function."""

    def attention(module, query, key, value, attention_mask, scaling, position_bias=None):  # type: ignore[no-untyped-def]
        scores = query @ key.mT * scaling + attention_mask + position_bias
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    host, _, put = prefixed_host(torch.rand(pool))
    query, key, value = torch.randn(3, 2, 2, 3, 8)
    mask, bias = torch.zeros(2, 1, 1, 3), torch.randn(1, 2, 3, 3)
    call = look_up(attention)
    unnamed, _ = call(host, query, key, value, mask, 0.3, bias)
    named, _ = call(host, query, key, value, mask, position_bias=bias, scaling=0.3)
    assert torch.equal(unnamed, named)
    assert not torch.equal(named, call(host, query, key, value, mask, 0.4, bias)[0])
    put.remove()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("flash_attention_2", {"cu_seq_lens_q": torch.tensor([0, 2, 3])}),
        ("kernels-community/flash-attn", {"position_ids": torch.tensor([[0, 1, 0]])}),
        ("a_sparse_kernel", {"indices": torch.zeros(1, 3, 2, dtype=torch.long)}),
        ("a_sparse_kernel", {"block_indices": torch.zeros(1, 2, 3, 1, dtype=torch.long)}),
    ],
)
def test_numbers_of_keys_are_refused(name: str, arguments: dict[str, Tensor]) -> None:
    """A prefix shifts the numbers of the keys; only masks know that."""
    host, prefix, put = prefixed_host()
    query, key, value = torch.randn(3, 1, 2, 3, 8)
    call = {"attention_mask": None, **arguments}
    with pytest.raises(ValueError, match=rf"{next(iter(arguments))} in {name}.*'sdpa'"):
        _attention_interface.attend(prefix, received, name, (host, query, key, value), dict(call))
    positions = {"attention_mask": None, "position_ids": torch.tensor([[4, 5, 6]])}
    _attention_interface.attend(prefix, received, name, (host, query, key, value), positions)
    _attention_interface.attend(prefix, received, "sdpa", (host, query, key, value), dict(call))
    put.remove()


# -- when the interface is wrapped ----------------------------------------------------------------


def prefixed(model: Any) -> Any:
    attachment = attach(model, Plan.uniform(Prefix(length=3, mlp=8)))
    awaken(attachment)
    return attachment


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@alone
def test_other_methods_do_not_wrap() -> None:
    attach(tiny_bert(), Plan.uniform(LoRA()))
    assert own()


@alone
def test_unwrapped_when_the_last_prefix_is_detached() -> None:
    first, second = prefixed(tiny_bert()), prefixed(tiny_gpt2())
    assert not own()
    first.detach()
    assert not own()
    expected = logits(second.model)
    second.detach()
    assert own()
    assert not torch.equal(logits(second.model), expected)


@alone
@pytest.mark.slow
def test_unwrapped_when_the_last_model_is_collected() -> None:
    first = prefixed(tiny_bert())
    second = prefixed(tiny_bert())
    del first
    gc.collect()
    assert not own()
    del second
    gc.collect()
    assert own()


@alone
@pytest.mark.slow
def test_unwrapped_when_attaching_fails() -> None:
    with pytest.raises(ValueError, match="has a prefix already"):
        attach(tiny_bert(), Plan.uniform(Prefix(), Prefix(name="other")))
    gc.collect()
    assert own()


@alone
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.slow
def test_a_copy_keeps_its_prefix(copied: Callable) -> None:
    """After its original is detached, and until it is collected."""
    attachment = prefixed(tiny_bert())
    expected, other = logits(attachment.model), copied(attachment.model)
    attachment.detach()
    assert not own()
    assert torch.equal(logits(other), expected)
    del other
    gc.collect()
    assert own()


@alone
def test_unpickled_without_an_original() -> None:
    """As by ``ddp_spawn``: nothing was attached in the process."""
    attachment = prefixed(tiny_bert())
    expected, stored = logits(attachment.model), pickle.dumps(attachment.model)
    attachment.detach()
    assert own()
    again = pickle.loads(stored)
    assert torch.equal(logits(again), expected)


@alone
def test_attached_again_after_it_was_unwrapped() -> None:
    model = tiny_bert()
    expected = []
    for _ in range(2):
        attachment = prefixed(model)
        expected.append(logits(model))
        attachment.detach()
    assert own()
    assert torch.equal(*expected)


class OtherPackage:
    """Another package that wraps the interface, for good or for a while."""

    def __init__(self) -> None:
        self.beneath, self.seen = AttentionInterface.get_interface, 0

        def get_interface(interface: Any, name: str, default: Callable) -> Callable:
            self.seen += 1
            return self.beneath(interface, name, default)

        self.wrapper = get_interface
        AttentionInterface.get_interface = get_interface

    def leave(self) -> None:
        AttentionInterface.get_interface = self.beneath


@alone
def test_the_wrapper_of_another_package_stays() -> None:
    """Above ours: it stays when our last prefix goes, and ours passes its look-ups on."""
    attachment = prefixed(tiny_bert())
    expected = logits(attachment.model)
    other = OtherPackage()
    attachment.detach()
    assert AttentionInterface.get_interface is other.wrapper
    assert look_up(received) is received, "beneath it, nothing of ours is between"

    again = prefixed(attachment.model)
    assert AttentionInterface.get_interface is other.wrapper, "ours is still in it"
    before = other.seen
    assert torch.equal(logits(again.model), expected), "the prefix acts once"
    assert other.seen > before
    again.detach()
    other.leave()
    assert look_up(received) is received
    assert own(), "the first look-up has found ours on top, without a prefix"


@alone
def test_the_wrapper_of_another_package_beneath_ours() -> None:
    other = OtherPackage()
    attachment = prefixed(tiny_bert())
    before = other.seen
    logits(attachment.model)
    assert other.seen > before
    attachment.detach()
    assert AttentionInterface.get_interface is other.wrapper
    other.leave()


@alone
def test_wrapped_again_where_another_package_has_replaced_it() -> None:
    """A package that gives back what it found may drop our wrapper."""
    other = OtherPackage()
    first = prefixed(tiny_bert())
    other.leave()
    assert own()
    second = prefixed(tiny_bert())
    assert torch.equal(logits(second.model), logits(first.model))
    assert not own()


@alone
@pytest.mark.slow
def test_the_collector_does_not_wait_for_a_thread() -> None:
    """A thread that examines a model holds the lock; the wrapper then goes at the next look-up."""
    attachment = prefixed(tiny_bert())
    model, held, done = attachment.model, threading.Event(), threading.Event()

    def hold() -> None:
        with _attention_interface.INTERFACE:
            held.set()
            assert done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    del attachment, model
    gc.collect()
    assert not own()
    assert look_up(received) is received
    done.set()
    thread.join()
    assert look_up(received) is received
    assert own()


@alone
@pytest.mark.slow
def test_threads_that_attach_and_detach() -> None:
    """None of them loses its prefix when another removes the last but one."""
    models = [tiny_bert() for _ in range(3)]
    base, wrong = logits(models[0]), []

    def work(model: nn.Module) -> None:
        for _ in range(4):
            attachment = prefixed(model)
            wrong.extend(["no prefix"] if torch.equal(logits(model), base) else [])
            attachment.detach()
            wrong.extend([] if torch.equal(logits(model), base) else ["a prefix"])

    threads = [threading.Thread(target=work, args=[model]) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.slow
def test_a_process_ends_quietly() -> None:
    """The collector may run when half of the interpreter is gone."""
    script = (
        "from lightning_pelt import *; from lightning_pelt.testing import tiny_bert\n"
        "model = tiny_bert(); attachment = attach(model, Plan.uniform(Prefix(length=2)))\n"
        "model.itself = [model]; other = attach(tiny_bert(), Plan.uniform(Prefix(length=2)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0
    assert "Exception" not in ended.stderr
