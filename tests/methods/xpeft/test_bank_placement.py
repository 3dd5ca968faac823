"""Where the adapters of a trained bank are applied: where they were trained, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from methods.xpeft.adapters import hub_folder, hub_tensors
from torch import Tensor, nn
from transformers import PreTrainedModel
from zoo import build, inputs

from lightning_pelt import XPEFT, Adapter, Plan, TrainedBank, attach, load_bank, save_bank
from lightning_pelt.attach import save_adapters
from lightning_pelt.testing import awaken

SIZES: Any = {"blocks": 2, "width": 32, "bottleneck": 4}
LAYERS = {
    "llama": "model.layers.{}.output_adapters",
    "gpt2": "transformer.h.{}.output_adapters",
    "bert": "bert.encoder.layer.{}.output",
}


def hub(folder: Path, name: str, **options: Any) -> str:
    layers = LAYERS.get(name, "model.layers.{}.output_adapters")
    return hub_folder(folder, model_type=name, layers=layers, **SIZES, **options)


def attached(name: str, bank: TrainedBank, **options: Any) -> PreTrainedModel:
    model = build(name)
    # With one adapter of one, the mask is 1 and the aggregated adapter is the adapter.
    method = XPEFT(bank=bank, k=1, bottleneck=4, norm=None, **options)
    attach(model, Plan.uniform(method, norms=False))
    return model


class HubBlocks:
    """Forward hooks that add AdapterHub's ``seq_bn`` to a pre-norm block, written out by hand.

    ``f`` is the feed-forward's output and ``a`` the input of the norm in front of it; the block
    continues with ``f + A(f + a) + a``.
    """

    def __init__(self, model: nn.Module, state: dict[str, Tensor], name: str) -> None:
        layers, norm, last = {
            "llama": ("model.layers.{}", "post_attention_layernorm", "mlp.down_proj"),
            "gpt2": ("transformer.h.{}", "ln_2", "mlp.c_proj"),
        }[name]
        self.state, self.a = state, torch.empty(0)
        for number in range(2):
            block = model.get_submodule(layers.format(number))
            keys = f"{LAYERS[name].format(number)}.adapters.7.adapter_"
            block.get_submodule(norm).register_forward_pre_hook(self._keep)
            block.get_submodule(last).register_forward_hook(self._adding(keys))

    def _keep(self, module: nn.Module, args: tuple) -> None:
        self.a = args[0]

    def _adding(self, keys: str) -> Any:
        def add(module: nn.Module, args: tuple, f: Tensor) -> Tensor:
            state, h = self.state, f + self.a
            inner = torch.relu(h @ state[f"{keys}down.0.weight"].T + state[f"{keys}down.0.bias"])
            return f + inner @ state[f"{keys}up.weight"].T + state[f"{keys}up.bias"]

        return add


@torch.no_grad()
@pytest.mark.parametrize("through_a_file", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_adapters_of_the_hub_read_the_residual_stream(
    tmp_path: Path, name: str, through_a_file: bool
) -> None:
    bank = TrainedBank([hub(tmp_path / "hub", name)])
    state = hub_tensors(layers=LAYERS[name], **SIZES)
    if through_a_file:
        bank = TrainedBank([str(save_bank(bank.load(**SIZES), tmp_path / "bank.safetensors"))])
        state = {key: tensor.bfloat16().float() for key, tensor in state.items()}
    expected = build(name)
    HubBlocks(expected, state, name)
    batch = inputs(name)
    found = attached(name, bank)(**batch).logits
    torch.testing.assert_close(found, expected(**batch).logits, rtol=0, atol=1e-4)
    assert not torch.allclose(found, build(name)(**batch).logits, atol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("placement", ["auto", "pfeiffer"])
def test_adapters_of_save_adapters_are_applied_as_they_were_trained(
    tmp_path: Path, placement: Any
) -> None:
    model = build("llama")
    plan = Plan.uniform(Adapter(bottleneck=4, placement=placement), norms=False)
    awaken(attach(model, plan))
    bank = TrainedBank([str(save_adapters(model, tmp_path))])
    batch = inputs("llama")
    found = attached("llama", bank)(**batch).logits
    torch.testing.assert_close(found, model(**batch).logits, rtol=0, atol=1e-4)


def test_another_placement_is_refused_with_the_remedy(tmp_path: Path) -> None:
    bank = TrainedBank([hub(tmp_path, "llama")])
    message = (
        r"placement='adapterhub', which on llama is 'pfeiffer', and XPEFT would apply them as "
        r"'sequential': XPEFT\(placement='auto'\) follows"
    )
    with pytest.raises(ValueError, match=message):
        attached("llama", bank, placement="sequential")
    attached("llama", bank, placement="pfeiffer")


def test_two_placements_in_one_bank_are_refused_where_they_differ(tmp_path: Path) -> None:
    """``auto`` is sequential in Llama; in BERT both are the same."""
    for name in ("llama", "bert"):
        model = build(name)
        attach(model, Plan.uniform(Adapter(bottleneck=4), norms=False))
        own = str(save_adapters(model, tmp_path / name))
        bank = TrainedBank([own, hub(tmp_path / f"{name}_hub", name)])
        assert bank.load(**SIZES).placements == {"auto", "adapterhub"}
        if name == "bert":
            attached(name, bank)
            continue
        with pytest.raises(
            ValueError, match=r"'auto', which on llama is 'sequential'.*one bank of"
        ):
            attached(name, bank)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gptj", "parallel residuals, and gptj is one"),
        ("gemma2", "placement 'pfeiffer' needs blocks"),
        ("modernbert", "an adapter of modernbert, for which AdapterHub adds the normed input"),
    ],
)
def test_families_where_the_hub_differs_are_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attached(name, TrainedBank([hub(tmp_path, name)]))


def test_a_file_of_an_older_version_does_not_say_the_placement(tmp_path: Path) -> None:
    tensors = TrainedBank([hub(tmp_path / "hub", "llama")]).load(**SIZES)
    path = save_bank(tensors, tmp_path / "bank.safetensors")
    assert load_bank(path).placements == {"adapterhub"}
    content = path.read_bytes()
    old = content.replace(rb", \"placements\": [\"adapterhub\"]", b"")
    assert len(old) < len(content)
    size = int.from_bytes(content[:8], "little") - (len(content) - len(old))
    path.write_bytes(size.to_bytes(8, "little") + old[8:])
    assert load_bank(path).placements == frozenset()
    assert load_bank(path).digest == tensors.digest
