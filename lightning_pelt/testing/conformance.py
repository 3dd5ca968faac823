"""``MethodConformance``: the tests of a tuning method, for this package and for others."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import Site, examine
from lightning_pelt.attach import Attachment, attach, find_attachment, merge
from lightning_pelt.methods.base import Method
from lightning_pelt.methods.gate import Gate
from lightning_pelt.plans import Plan, from_config
from lightning_pelt.testing.models import (
    VOCABULARY,
    awaken,
    hook_counts,
    is_ours,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
)


class MethodConformance:
    """The tests that every tuning method passes. Subclass it and set ``method``.

    Attributes:
        method: the method under test, gated in one subclass and ungated in another.
        compiled: names of the models on which compilation is tested; None for all. Fewer suffice
            for a variant whose mechanism another subclass compiles.

    Example::

        class TestLoRA(MethodConformance):
            method = LoRA(r=4)
    """

    method: ClassVar[Method]
    compiled: ClassVar[tuple[str, ...] | None] = None

    # What may be overridden.

    def models(self) -> dict[str, Callable[[], PreTrainedModel]]:
        """Builders of the models to test on, by name; each gives the same weights every time."""
        return {"bert": tiny_bert, "gpt2": tiny_gpt2, "llama": tiny_llama}

    def inputs(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """A batch for ``model``, its second row padded on the right."""
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(3, VOCABULARY, (2, 8), generator=generator)
        mask = torch.ones_like(tokens)
        mask[1, 5:] = 0
        return {"input_ids": tokens * mask, "attention_mask": mask}

    def output(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
        """The tensor to compare."""
        return model(**inputs).logits

    # The machinery.

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "model" in metafunc.fixturenames:
            names = list(self.models())
            if metafunc.function.__name__ == "test_compiles" and self.compiled is not None:
                names = [name for name in names if name in self.compiled]
            metafunc.parametrize("model", names, indirect=True)

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest) -> PreTrainedModel:
        return self.models()[request.param]()

    def run(self, model: PreTrainedModel) -> Tensor:
        with torch.no_grad():
            return self.output(model, self.inputs(model))

    def gradients(
        self, model: PreTrainedModel, run: Callable[[], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The gradients of the owned parameters, from the sum of the squared outputs.

        Args:
            run: gives the outputs, where they are not simply those of ``model``.
        """
        attachment = find_attachment(model)
        assert attachment is not None
        torch.manual_seed(0)  # a method may have dropout
        model.zero_grad()
        outputs = run() if run else self.output(model, self.inputs(model))
        outputs.float().square().sum().backward()
        owned = {n: p for n, p in model.named_parameters() if n in attachment.owned}
        without = [n for n, p in owned.items() if p.grad is None or not p.grad.any()]
        assert not without, f"no gradient reaches {without}"
        return {n: p.grad.clone() for n, p in owned.items() if p.grad is not None}

    def attach(self, model: PreTrainedModel, *, seed: int = 0, gated: bool = False) -> Attachment:
        """``method`` on ``model``, with a gate if asked, and with weights that matter."""
        bare = gated and self.method.gate is None
        method = replace(self.method, gate=Gate()) if bare else self.method  # type: ignore[type-var]
        attachment = attach(model, Plan.uniform(method, norms=False), seed=seed)
        awaken(attachment, seed=seed)
        return attachment

    # The suite.

    def test_finds_sites(self, model: PreTrainedModel) -> None:
        attachment = self.attach(model)
        blocks = {(site.stack, site.block) for site in self.method.where(attachment.anatomy)}
        expected = {(s.name, i) for s in attachment.anatomy.stacks for i in range(len(s.blocks))}
        assert expected <= blocks, "a uniform plan reaches every block"
        assert attachment.submodules[self.method.name]

    def test_survives_its_configuration(self) -> None:
        plan = Plan.uniform(self.method, norms=False)
        config = json.loads(json.dumps(plan.to_config()))
        again = from_config(config)
        assert again == plan
        assert again.to_config() == plan.to_config()

    def test_acts(self, model: PreTrainedModel) -> None:
        base = self.run(model)
        self.attach(model)
        assert (self.run(model) - base).abs().max() > 1e-4

    def test_base_names_are_unchanged(self, model: PreTrainedModel) -> None:
        parameters = [name for name, _ in model.named_parameters()]
        buffers = [name for name, _ in model.named_buffers()]
        self.attach(model)
        assert [n for n, _ in model.named_parameters() if not is_ours(n)] == parameters
        assert [n for n, _ in model.named_buffers() if not is_ours(n)] == buffers

    def test_trains_only_its_own(self, model: PreTrainedModel) -> None:
        attachment = self.attach(model)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {name for name, _ in model.named_parameters() if name in attachment.owned}

    def test_closed_gates_give_the_base(self, model: PreTrainedModel) -> None:
        base = self.run(model)
        attachment = self.attach(model, gated=True)
        opened = self.run(model)
        assert attachment.gates, "a gated method has gates"
        for gate in attachment.gates.values():
            gate.set_open(0.0)
        assert torch.equal(self.run(model), base)
        for gate in attachment.gates.values():
            gate.set_open(1.0)
        assert torch.equal(self.run(model), opened)

    def test_every_owned_parameter_gets_a_gradient(self, model: PreTrainedModel) -> None:
        attachment = self.attach(model)
        gradients = self.gradients(model)
        assert set(gradients) == {n for n, _ in model.named_parameters() if n in attachment.owned}

    def test_gates_get_gradients_while_closed(self, model: PreTrainedModel) -> None:
        """DDP waits for the gradient of every parameter, in every step."""
        attachment = self.attach(model, gated=True)
        for gate in attachment.gates.values():
            gate.set_open(0.0)
        self.output(model, self.inputs(model)).float().square().sum().backward()
        owned = [n for n, p in model.named_parameters() if n in attachment.owned and p.grad is None]
        assert not owned, f"{owned} fall out of the graph when closed"

    def test_checkpointed_gradients(self, model: PreTrainedModel) -> None:
        if not model.supports_gradient_checkpointing:
            pytest.skip(f"{type(model).__name__} has no activation checkpointing")
        self.attach(model)
        model.train()
        plain = self.gradients(model)
        checkpointed = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
        with warnings.catch_warnings():  # renamed in the middle of transformers 5
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
        assert all(module.gradient_checkpointing for module in checkpointed)
        again = self.gradients(model)
        scale = float(max(gradient.abs().max() for gradient in plain.values()))
        for name, gradient in plain.items():
            torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6 * scale)

    @pytest.mark.parametrize("how", ["deepcopy", "pickle", "pickle before the first forward"])
    def test_copies_behave_the_same(self, model: PreTrainedModel, how: str) -> None:
        attachment = self.attach(model)
        if "before" not in how:
            self.gradients(model)  # tensors of a graph are left in the submodules
        copied: Any = copy.deepcopy(model) if how == "deepcopy" else _pickled(model)
        opened = self.run(model)
        assert torch.equal(self.run(copied), opened)
        other = find_attachment(copied)
        assert other is not None
        assert other.model is copied
        for gate in other.gates.values():
            gate.set_open(0.0)
        awaken(other, seed=1)
        assert torch.equal(self.run(model), opened), "the copy shares weights with the model"
        other.detach()
        assert not any(is_ours(name) for name in copied.state_dict())
        attachment.detach()
        assert torch.equal(self.run(copied), self.run(model))
        assert hook_counts(copied) == hook_counts(model)

    def test_state_dict_is_what_is_owned(self, model: PreTrainedModel) -> None:
        attachment = self.attach(model)
        state = copy.deepcopy(model.state_dict())
        assert set(state) == attachment.owned
        opened = self.run(model)
        attachment.detach()
        self.attach(model, seed=1)
        assert not torch.equal(self.run(model), opened)
        model.load_state_dict(state)
        assert torch.equal(self.run(model), opened)

    def test_counts(self, model: PreTrainedModel) -> None:
        attachment = self.attach(model)
        count = attachment.counts[self.method.name]
        ours = [p for name, p in model.named_parameters() if is_ours(name)]
        assert count.trained + count.gates == sum(p.numel() for p in ours)
        assert 0 < count.deployed <= count.trained
        learned = self.method.gate is not None and self.method.gate.learned
        assert (count.gates > 0) == learned
        assert {id(p) for p in attachment.parameters_of(self.method.name)} == {id(p) for p in ours}

    def test_costs_what_it_says(self, model: PreTrainedModel) -> None:
        attachment = self.attach(model)
        sites = self.method.where(attachment.anatomy)
        blocks: dict[tuple[str, int | None], list[Site]] = {}
        for site in sites:
            blocks.setdefault((site.stack, site.block), []).append(site)
        costs = [self.method.cost(block) for block in blocks.values()]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs):
            pytest.skip(f"{type(self.method).__name__} does not tell its cost")
        fixed, unit = sum(cost.fixed for cost in known), sum(cost.unit for cost in known)
        trained = attachment.counts[self.method.name].trained
        assert trained == fixed or (unit and (trained - fixed) % unit == 0)
        if unit:
            size = (trained - fixed) // unit
            assert self.method.sized(size).size(sites[0]) == self.method.size(sites[0])

    def test_merges_or_refuses(self, model: PreTrainedModel) -> None:
        attachment = self.attach(model)
        names = list(model.state_dict())
        attached = self.run(model)
        gate = self.method.gate
        if not self.method.mergeable or (gate is not None and gate.learned):
            with pytest.raises(ValueError, match=r"cannot be merged|is gated"):
                merge(model)
            assert list(model.state_dict()) == names, "a refusal changes nothing"
            return
        updates = [u for module in attachment.all_submodules for u in module.weight_updates()]
        assert updates, "a mergeable method has weight updates"
        self._merge(model, attached)

    def _merge(self, model: PreTrainedModel, attached: Tensor) -> None:
        """Merge, or assert that a layer which has no bias is refused, with the model as it was."""
        try:
            merge(model)
        except ValueError as error:
            assert "has no bias" in str(error)
            assert find_attachment(model) is not None
            assert torch.equal(self.run(model), attached)
            return
        assert find_attachment(model) is None
        assert (self.run(model) - attached).abs().max() < 1e-4 * attached.abs().max()

    @pytest.mark.parametrize("openness", [0.3, 0.0])
    def test_merges_behind_a_constant_gate(self, model: PreTrainedModel, openness: float) -> None:
        """With the gate's value; with a closed gate, to exactly nothing, mergeable or not."""
        base, tensors = self.run(model), copy.deepcopy(model.state_dict())
        method: Method = replace(self.method, gate=Gate(learned=False))  # type: ignore[type-var]
        attachment = attach(model, Plan.uniform(method, norms=False))
        awaken(attachment)
        for gate in attachment.gates.values():
            gate.set_open(openness)
        if openness and not method.mergeable:
            with pytest.raises(ValueError, match="cannot be merged"):
                merge(model)
        elif openness:
            assert (self.run(model) - base).abs().max() > 1e-5, "a gate of 0.3 has an effect"
            self._merge(model, self.run(model))
        else:
            merge(model)
            assert torch.equal(self.run(model), base)
            assert all(torch.equal(t, tensors[name]) for name, t in model.state_dict().items())

    def test_answers_questions_about_itself(self, model: PreTrainedModel) -> None:
        assert isinstance(self.method.weight_decay, bool)
        assert all(isinstance(name, str) for name in self.method.batch_inputs)
        assert isinstance(self.method.size(self.method.where(examine(model))[0]), str)

    def test_detach_restores(self, model: PreTrainedModel) -> None:
        next(model.parameters()).requires_grad_(False)
        before = {name: p.requires_grad for name, p in model.named_parameters()}
        names, hooks, output = list(model.state_dict()), hook_counts(model), self.run(model)
        attributes = {path: set(vars(module)) for path, module in model.named_modules()}
        self.attach(model).detach()
        assert {name: p.requires_grad for name, p in model.named_parameters()} == before
        assert list(model.state_dict()) == names
        assert hook_counts(model) == hooks
        assert {path: set(vars(module)) for path, module in model.named_modules()} == attributes
        assert find_attachment(model) is None
        assert torch.equal(self.run(model), output)

    def test_seed_decides_the_weights(self, model: PreTrainedModel) -> None:
        states = []
        for noise in (1, 2):
            torch.manual_seed(noise)
            attachment = attach(model, Plan.uniform(self.method, norms=False), seed=3)
            states.append({n: t.clone() for n, t in model.state_dict().items() if is_ours(n)})
            attachment.detach()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_no_future_reaches_the_past(self, model: PreTrainedModel) -> None:
        attachment = self.attach(model)
        if not all(stack.causal for stack in attachment.anatomy.stacks):
            pytest.skip(f"{type(model).__name__} is not causal")
        tokens = self.inputs(model)["input_ids"][:1]
        changed = tokens.clone()
        changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
        with torch.no_grad():
            one = self.output(model, {"input_ids": tokens})
            other = self.output(model, {"input_ids": changed})
            cache = model(input_ids=tokens[:, :5], use_cache=True).past_key_values
            cached = model(input_ids=tokens[:, 5:], past_key_values=cache).logits
        torch.testing.assert_close(one[:, :-1], other[:, :-1], rtol=0, atol=1e-6)
        torch.testing.assert_close(cached, one[:, 5:], rtol=0, atol=1e-5)

    def test_padding_changes_nothing(self, model: PreTrainedModel) -> None:
        batch = self.inputs(model)
        more = {name: nn.functional.pad(tensor, (0, 4)) for name, tensor in batch.items()}
        attachment = self.attach(model)
        with torch.no_grad():
            short, long = self.output(model, batch), self.output(model, more)
        real = batch["attention_mask"].bool()
        if short.shape[:2] == real.shape:  # a prediction a token
            short, long = short[real], long[:, : real.shape[1]][real]
        # Rounding depends on the processor; padding that is read changes more than a thousandth.
        torch.testing.assert_close(long, short, rtol=0, atol=1e-5)
        attachment.detach()

    def test_half_precision_base(self, model: PreTrainedModel) -> None:
        model.bfloat16()
        attachment = self.attach(model)
        low = self.run(model)
        assert low.dtype == torch.bfloat16
        ours = [p.dtype for name, p in model.named_parameters() if is_ours(name)]
        assert set(ours) == {torch.float32}
        assert all(gradient.isfinite().all() for gradient in self.gradients(model).values())
        attachment.model.float()
        high = self.run(model)
        assert (low.float() - high).abs().max() < 0.1 * high.abs().max()

    def test_autocast(self, model: PreTrainedModel) -> None:
        def mixed() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.output(model, self.inputs(model))

        with torch.no_grad():
            base = mixed()
        attachment = self.attach(model, gated=True)
        gradients = self.gradients(model, mixed)
        assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        high = self.run(model)
        with torch.no_grad():
            low = mixed()
            assert low.dtype == base.dtype
            assert (low.float() - high).abs().max() < 0.1 * high.abs().max()
            for gate in attachment.gates.values():
                gate.set_open(0.0)
            assert torch.equal(mixed(), base)

    @pytest.mark.slow
    def test_compiles(self, model: PreTrainedModel) -> None:
        self.attach(model)
        eager, gradients = self.run(model), self.gradients(model)
        torch._dynamo.reset()
        compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
        outputs = self.output(compiled, self.inputs(model))
        torch.testing.assert_close(outputs.detach(), eager, rtol=0, atol=1e-5)
        again = self.gradients(model, lambda: outputs)
        scale = float(max(gradient.abs().max() for gradient in gradients.values()))
        for name, gradient in gradients.items():
            torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-5 * scale)


def _pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))
