"""What forwards without gradients use again is computed again as soon as it may differ."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt import Adapter, Gate, LoRA, Prefix, UniPELT, attach
from lightning_pelt.attach.attachment import attachment_of
from lightning_pelt.methods._kept import Kept, of_mask
from lightning_pelt.testing import awaken, tiny_bert, tiny_gpt2

IDS = torch.arange(3, 19).view(1, 16)


def model(gate: Gate | None = None, *, base: Callable = tiny_bert) -> PreTrainedModel:
    tuned = base().eval()
    tuned.config.use_cache = False
    plan = UniPELT([Prefix(length=4, mlp=8), LoRA(), Adapter(bottleneck=4)], gate=gate or Gate())
    awaken(attach(tuned, plan), std=0.3)
    return tuned.eval()


def with_gradients(tuned: nn.Module, ids: Tensor = IDS) -> Tensor:
    """The output where nothing is kept."""
    return tuned(input_ids=ids).logits.detach()


def assert_equal_without(tuned: nn.Module, ids: Tensor = IDS) -> None:
    """Without gradients, and in inference mode, the output is that with gradients."""
    for mode in (torch.no_grad, torch.inference_mode):
        for _ in range(2):
            with mode():
                found = tuned(input_ids=ids).logits.clone()
            torch.testing.assert_close(found, with_gradients(tuned, ids), atol=1e-6, rtol=1e-5)
            with mode():  # kept, since the forward with gradients has forgotten
                tuned(input_ids=ids)


def change_in_place(tuned: nn.Module) -> None:
    with torch.no_grad():
        for parameter in attachment_of(tuned).parameter_groups().values():
            for tensor in parameter:
                tensor.add_(0.1)


def load_state(tuned: nn.Module) -> None:
    state = {name: tensor + 0.1 for name, tensor in tuned.state_dict().items()}
    tuned.load_state_dict(state)


def load_by_assignment(tuned: nn.Module) -> None:
    state = {name: tensor + 0.1 for name, tensor in tuned.state_dict().items()}
    tuned.load_state_dict(state, assign=True)


def step(tuned: nn.Module) -> None:
    own = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=0.1)
    tuned(input_ids=IDS).logits.sum().backward()
    optimizer.step()


def new_data(tuned: nn.Module) -> None:
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.1


def data_in_place(tuned: nn.Module) -> None:
    """As averages of weights change them; torch counts no such change."""
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1)


def there_and_back(tuned: nn.Module) -> None:
    change_in_place(tuned)
    tuned.to(torch.float64).to(torch.float32)


def close_a_gate(tuned: nn.Module) -> None:
    for gate in attachment_of(tuned).gates.values():
        gate.set_open(0.25)


CHANGES = [
    change_in_place,
    load_state,
    load_by_assignment,
    step,
    new_data,
    data_in_place,
    there_and_back,
    close_a_gate,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_weights_is_seen(change: Callable[[nn.Module], None]) -> None:
    tuned = model()
    with torch.inference_mode():
        before = tuned(input_ids=IDS).logits.clone()
        assert torch.equal(tuned(input_ids=IDS).logits, before)
    change(tuned)
    with torch.inference_mode():
        after = tuned(input_ids=IDS).logits.clone()
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, with_gradients(tuned), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "gate", [Gate(), Gate(pool="token"), Gate(learned=False), Gate(pool="all")]
)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.slow
def test_equal_to_the_forward_with_gradients(gate: Gate, rows: int) -> None:
    ids = torch.randint(3, 90, (rows, 9), generator=torch.Generator().manual_seed(1))
    for base in (tiny_bert, tiny_gpt2):
        tuned = model(gate, base=base)
        if base is tiny_gpt2:
            tuned.config.pad_token_id = 0
        assert_equal_without(tuned, ids)


def test_weights_of_another_call_are_seen() -> None:
    tuned = model()
    for number in range(3):
        other = {n: p + number / 10 for n, p in tuned.named_parameters() if p.requires_grad}
        with torch.no_grad():
            found = torch.func.functional_call(tuned, other, (), {"input_ids": IDS}).logits
        wanted = torch.func.functional_call(tuned, other, (), {"input_ids": IDS}).logits.detach()
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
        del other


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_copies_keep_nothing(copied: Callable[[nn.Module], nn.Module]) -> None:
    tuned = model()
    with torch.inference_mode():
        before = tuned(input_ids=IDS).logits.clone()
    other = copied(tuned)
    change_in_place_of(other)
    with torch.inference_mode():
        assert torch.equal(tuned(input_ids=IDS).logits, before)
        assert (other(input_ids=IDS).logits - before).abs().max() > 1e-3


def change_in_place_of(tuned: nn.Module) -> None:
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1)


def test_gradients_after_a_forward_without() -> None:
    tuned = model()
    with torch.inference_mode():
        tuned(input_ids=IDS)
    tuned(input_ids=IDS).logits.sum().backward()
    own = [p for p in tuned.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in own)


@pytest.mark.slow
def test_tangents_are_not_lost() -> None:
    tuned = model()
    embeddings = tuned.get_input_embeddings()(IDS).detach()
    direction = torch.randn_like(embeddings, generator=torch.Generator().manual_seed(0))

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return tuned(inputs_embeds=x).logits

    tuned.set_attn_implementation("eager")
    _, tangent = torch.func.jvp(run, (embeddings,), (direction,))
    step_ = 1e-3
    difference = run(embeddings + step_ * direction) - run(embeddings - step_ * direction)
    torch.testing.assert_close(tangent, difference / (2 * step_), atol=2e-2, rtol=2e-2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_gates_are_no_constants() -> None:
    tuned = model().requires_grad_(False)
    with torch.no_grad():
        traced = torch.jit.trace(lambda ids: tuned(input_ids=ids).logits, (IDS,), check_trace=False)
        other = IDS.flip(1)
        torch.testing.assert_close(traced(other), tuned(input_ids=other).logits)


def test_kept_until_a_weight_changes() -> None:
    kept: Kept[Tensor] = Kept()
    weight = nn.Parameter(torch.ones(3))
    with torch.no_grad():
        first = kept.of([weight], lambda: 2 * weight)
        assert kept.of([weight], lambda: 2 * weight) is first
        weight.add_(1)
        second = kept.of([weight], lambda: 2 * weight)
        assert second.tolist() == [4, 4, 4]
        assert kept.of([weight], lambda: 2 * weight, also="other") is not second
    assert kept.of([weight], lambda: 2 * weight).requires_grad


def test_inference_tensors_are_not_kept() -> None:
    kept: Kept[Tensor] = Kept()
    with torch.inference_mode():
        weight = torch.ones(2)
        assert kept.of([weight], lambda: 2 * weight).tolist() == [2, 2]
        weight.add_(1)
        assert kept.of([weight], lambda: 2 * weight).tolist() == [4, 4]


def test_a_mask_is_reduced_once_in_a_forward() -> None:
    calls = []

    def count() -> Tensor:
        calls.append(1)
        return mask.sum()

    with torch.inference_mode():
        mask = torch.ones(2, 4)
        for forward in range(2):
            found = [of_mask(mask, "sum", count, asker=block).item() for block in ("a", "b", "c")]
            assert found == [8 + 8 * forward] * 3
            mask.add_(1)  # in place, which inference tensors do not count
    assert len(calls) == 2
