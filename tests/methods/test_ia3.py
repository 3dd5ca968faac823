"""(IA)3 against weights that are scaled by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import HEADS, WIDTH, build, inputs, output

from lightning_pelt import IA3, Gate, Plan, attach
from lightning_pelt.attach import Attachment
from lightning_pelt.testing import MethodConformance, awaken, tiny_bert

D = WIDTH // HEADS


class TestIA3(MethodConformance):
    method = IA3()


class TestGatedIA3(MethodConformance):
    compiled = ("bert", "gpt2")
    method = IA3(gate=Gate())


def rescaled(model: nn.Module, method: IA3) -> Attachment:
    attachment = attach(model, Plan.uniform(method))
    awaken(attachment)
    return attachment


def thirds(rows: Tensor) -> dict[str, Tensor]:
    return dict(zip(("query", "key", "value"), rows.split(WIDTH), strict=True))


def per_head(rows: Tensor) -> dict[str, Tensor]:
    heads = rows.view(HEADS, 3, D)
    return {"key": heads[:, 1].flatten(), "value": heads[:, 2].flatten()}


def apart(rows: Tensor) -> dict[str, Tensor]:
    return {"key": rows, "value": rows}


LAYOUTS: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {
    "bert": apart,
    "llama": apart,
    "t5": apart,
    "bart": apart,
    "deberta-v2": apart,
    "gpt2": thirds,
    "gpt_neox": per_head,
    "bloom": per_head,
}


@torch.no_grad()
@pytest.mark.parametrize("name", LAYOUTS)
def test_is_a_rescaling_of_weights(name: str) -> None:
    """Keys and values: rows and biases. The feed-forward's inner activation: columns."""
    model, batch = build(name), inputs(name)
    changed = copy.deepcopy(model)
    attachment = rescaled(model, IA3())
    for module in attachment.submodules["ia3"]:
        linear: Any = changed.get_submodule(module.site.path)
        transposed = type(linear).__name__ == "Conv1D"
        weight = linear.weight.data.T if transposed else linear.weight.data
        if module.on_input:
            weight.mul_(module.vector)
            continue
        key = next(n for n, m in model.get_submodule(module.site.path).pelt.items() if m is module)
        rows = LAYOUTS[name](torch.arange(len(weight)))["key" if "key" in key else "value"]
        weight[rows] *= module.vector[:, None]
        if linear.bias is not None:
            linear.bias[rows] *= module.vector
    torch.testing.assert_close(output(model, batch), output(changed, batch), rtol=0, atol=2e-5)


@torch.no_grad()
def test_starts_at_the_base() -> None:
    model, tokens = tiny_bert(), torch.arange(3, 11)[None]
    base = model(input_ids=tokens).logits
    attach(model, Plan.uniform(IA3()))
    assert torch.equal(model(input_ids=tokens).logits, base)


@torch.no_grad()
def test_gate() -> None:
    """1 + g (l - 1): a closed gate leaves everything as it is, an open one gives l."""
    model: Any = tiny_bert()
    value = model.bert.encoder.layer[1].attention.self.value
    frozen = copy.deepcopy(value)
    attachment = rescaled(model, IA3(gate=Gate()))
    (vector,) = (m.vector for m in value.pelt.values() if hasattr(m, "vector"))
    seen: list[tuple[Tensor, Tensor]] = []
    value.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    model(input_ids=torch.arange(3, 11)[None])
    ((x, y),) = seen
    weight, bias = attachment.gates["01/ia3.value"].parameters()
    gate = torch.sigmoid(x @ weight[0] + bias).mean()
    torch.testing.assert_close(y, frozen(x) * (1 + gate * (vector - 1)))


def test_mixture_of_experts_keeps_keys_and_values() -> None:
    attachment = rescaled(build("mixtral"), IA3())
    hosts = {module.site.path.rpartition(".")[2] for module in attachment.submodules["ia3"]}
    assert hosts == {"k_proj", "v_proj"}
