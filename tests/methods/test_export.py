"""Attached models as graphs: torch.export and ONNX, with any number of rows and tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedModel, T5Config, T5EncoderModel
from zoo import build

from lightning_pelt import (
    IA3,
    XPEFT,
    Adapter,
    BitFit,
    Compacter,
    Gate,
    LoRA,
    Plan,
    Prefix,
    RandomBank,
    UniPELT,
    attach,
)
from lightning_pelt.methods.current import Current
from lightning_pelt.testing import awaken, draw, tiny_bert, tiny_gpt2, tiny_llama

EXAMPLE, OTHERS = (3, 7), ((5, 11), (1, 4), (2, 16))  # rows and tokens


def t5_encoder() -> PreTrainedModel:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return draw(T5EncoderModel(T5Config(vocab_size=100, pad_token_id=0, **sizes)))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": tiny_bert,
    "t5": t5_encoder,
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    "vit": lambda: build("vit"),
}
PLANS: dict[str, Callable[[], Plan]] = {
    "unipelt": lambda: UniPELT([Prefix(length=4, mlp=8), LoRA(), Adapter(bottleneck=4)]),
    "per token": lambda: UniPELT([Prefix(length=4), LoRA()], gate=Gate(pool="token")),
    "all tokens": lambda: UniPELT([Prefix(length=4), LoRA()], gate=Gate(pool="all", shared=True)),
    "lora": lambda: Plan.uniform(LoRA(sites=["query", "key", "value", "ffn.in"])),
    "prefix": lambda: Plan.uniform(Prefix(length=4, mlp=None)),
    "small": lambda: Plan.uniform(IA3(), BitFit(), Compacter(bottleneck=4)),
    "masks": lambda: Plan.uniform(XPEFT(bank=RandomBank(size=6), k=2, bottleneck=4, gate=Gate())),
}


def attached(model: str, plan: str) -> PreTrainedModel:
    tuned = MODELS[model]().eval()
    tuned.config.use_cache = False
    awaken(attach(tuned, PLANS[plan]()), std=0.3)
    return tuned.eval()


def batch(rows: int, tokens: int, *, padded: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    inputs = {"input_ids": torch.randint(3, 90, (rows, tokens), generator=generator)}
    if padded:
        mask = torch.ones(rows, tokens, dtype=torch.long)
        mask[-1, tokens - tokens // 3 :] = 0
        inputs["attention_mask"] = mask
    return inputs


def sizes(inputs: dict[str, Tensor]) -> dict[str, dict[int, Any]]:
    return {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in inputs}


@torch.no_grad()
def output(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return next(iter(model(**inputs).values()))


@torch.no_grad()
def compare(model: PreTrainedModel, exported: nn.Module, *, padded: bool) -> None:
    for rows, tokens in (EXAMPLE, *OTHERS):
        inputs = batch(rows, tokens, padded=padded)
        torch.testing.assert_close(
            output(exported, inputs), output(model, inputs), atol=1e-5, rtol=1e-5
        )


@pytest.mark.sample(6)
@pytest.mark.slow
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "no mask"])
@pytest.mark.parametrize(
    ("model", "plan"),
    [
        ("bert", "unipelt"),
        ("bert", "per token"),
        ("bert", "all tokens"),
        ("bert", "prefix"),
        ("bert", "small"),
        ("bert", "masks"),
        ("t5", "unipelt"),
        ("llama", "unipelt"),
        ("llama", "lora"),
        ("llama", "prefix"),
        ("gpt2", "lora"),
        ("gpt2", "per token"),
    ],
)
def test_exported_as_torch_export_does_it(model: str, plan: str, padded: bool) -> None:
    tuned = attached(model, plan)
    inputs = batch(*EXAMPLE, padded=padded)
    with torch.no_grad():
        program = torch.export.export(tuned, (), inputs, dynamic_shapes=sizes(inputs))
    compare(tuned, program.module(), padded=padded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "plan"),
    [("bert", "unipelt"), pytest.param("t5", "prefix", marks=pytest.mark.nightly)],
)
def test_exported_strictly(model: str, plan: str) -> None:
    tuned = attached(model, plan)
    inputs = batch(*EXAMPLE)
    with torch.no_grad():
        program = torch.export.export(tuned, (), inputs, dynamic_shapes=sizes(inputs), strict=True)
    compare(tuned, program.module(), padded=True)


@pytest.mark.slow
def test_images() -> None:
    tuned = MODELS["vit"]().eval()
    awaken(attach(tuned, UniPELT([Prefix(length=4), LoRA(), Adapter(bottleneck=4)])), std=0.3)
    tuned.eval()
    side = tuned.config.image_size

    def images(rows: int) -> dict[str, Tensor]:
        pixels = torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(rows))
        return {"pixel_values": pixels}

    with torch.no_grad():
        program = torch.export.export(
            tuned, (), images(3), dynamic_shapes={"pixel_values": {0: torch.export.Dim.DYNAMIC}}
        )
    for rows in (1, 2, 5):
        torch.testing.assert_close(
            output(program.module(), images(rows)), output(tuned, images(rows))
        )


@pytest.mark.slow
def test_the_submodules_are_in_the_graph() -> None:
    tuned, inputs = attached("bert", "unipelt"), batch(*EXAMPLE)
    base = output(tiny_bert().eval(), inputs)
    with torch.no_grad():
        program = torch.export.export(tuned, (), inputs, dynamic_shapes=sizes(inputs))
    assert (output(program.module(), inputs) - base).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("plan", ["unipelt", pytest.param("small", marks=pytest.mark.nightly)])
def test_the_model_is_as_before(plan: str, strict: bool) -> None:
    tuned, inputs = attached("bert", plan), batch(*EXAMPLE)
    before = output(tuned, inputs)
    values = gate_values(tuned)
    other = batch(*OTHERS[0])
    with torch.no_grad():
        torch.export.export(tuned, (), other, dynamic_shapes=sizes(other), strict=strict)
    for name, value in gate_values(tuned).items():
        assert value is values[name]
    assert torch.equal(output(tuned, inputs), before)
    assert not list(fakes(tuned))


def test_nothing_of_an_export_stays_after_the_next_forward() -> None:
    class Leaves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value: Current[Tensor] = Current("a value")

        def forward(self, x: Tensor) -> Tensor:
            self.value.set(2 * x)
            return self.value.get()

    model = Leaves()
    torch.export.export(model, (torch.ones(2),), strict=False)
    assert model.value.peek() is None
    assert model(torch.ones(1)).item() == 2
    assert not list(fakes(model))


def gate_values(model: nn.Module) -> dict[str, Tensor]:
    return {name: m.last for name, m in model.named_modules() if hasattr(m, "names")}


def fakes(model: nn.Module) -> Any:
    """Names of modules in which something of an export can still be read."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            read = value.peek() if isinstance(value, Current) else value
            flat = torch.utils._pytree.tree_leaves(read) if read is not module else []
            if any(isinstance(leaf, FakeTensor) for leaf in flat):
                yield f"{name}.{key}"


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("model", "plan"), [("bert", "unipelt"), ("t5", "unipelt"), ("llama", "lora")]
)
@pytest.mark.filterwarnings("ignore")
def test_onnx(model: str, plan: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tuned, inputs = attached(model, plan), batch(*EXAMPLE)
    file = tmp_path / "model.onnx"
    torch.onnx.export(
        tuned,
        (),
        file,
        kwargs=inputs,
        dynamic_shapes={name: {0: "batch", 1: "length"} for name in inputs},
        dynamo=True,
        verbose=False,
    )
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for rows, tokens in (EXAMPLE, *OTHERS):
        own = batch(rows, tokens)
        found = session.run(None, {name: tensor.numpy() for name, tensor in own.items()})[0]
        torch.testing.assert_close(
            torch.from_numpy(found), output(tuned, own), atol=1e-5, rtol=1e-5
        )
