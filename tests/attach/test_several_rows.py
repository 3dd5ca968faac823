"""Rows of one batch with different adapters: each row is computed as by its adapter alone."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn
from zoo import build, inputs, output

from lightning_pelt import IA3, Adapter, Gate, LoRA, Plan, Prefix, UniPELT
from lightning_pelt.attach.several import Adapters
from lightning_pelt.plans import Group
from lightning_pelt.plans.papers import HeadOnly
from lightning_pelt.testing import awaken

SITES = ("query", "value", "output")
PLANS = {
    "lora": Plan.uniform(LoRA(r=2)),
    "gated": Plan.uniform(LoRA(r=2, gate=Gate(), sites=("query", "value", "output"))),
    "shared gate": Plan.uniform(LoRA(r=2, gate=Gate(shared=True))),
    "unlearned gate": Plan.uniform(LoRA(r=2, gate=Gate(learned=False))),
    "token gate": Plan.uniform(Adapter(bottleneck=4, gate=Gate(pool="token"))),
    "adapter": Plan.uniform(Adapter(bottleneck=4, gate=Gate(), sites=("attention", "ffn"))),
    "parallel": Plan.uniform(Adapter(bottleneck=4, placement="parallel", scale=2.0)),
    "both": Plan.uniform(LoRA(r=2, rslora=True), Adapter(bottleneck=4, gate=Gate())),
    "groups": Plan([Group([LoRA(r=2)], blocks=[0]), Group([Adapter(bottleneck=4)], blocks=[1])]),
    "head": HeadOnly(),
}


@torch.no_grad()
def several(name: str, plan: Plan, count: int = 3) -> Adapters:
    adapters = Adapters(build(name))
    for number in range(count):
        attachment = adapters.add(f"a{number}", plan, seed=number)
        awaken(attachment, seed=number)
        draw = torch.Generator().manual_seed(number)
        for parameter in attachment.parameter_groups().get("head", ()):
            parameter.add_(torch.randn(parameter.shape, generator=draw).to(parameter))
        if number == 1:
            for view in attachment.gates.values():
                view.set_open(0.5)
    adapters.model.eval()
    return adapters


def batch(name: str, rows: int) -> dict[str, Tensor]:
    """Inputs of the zoo, padded, with as many rows."""
    given = inputs(name)
    return {k: v.repeat(rows, *[1] * (v.dim() - 1))[:rows] for k, v in given.items()}


@torch.no_grad()
def check(name: str, adapters: Adapters, names: list[str | None]) -> None:
    given, model = batch(name, len(names)), adapters.model
    expected = []
    for row, own in enumerate(names):
        with adapters.using(own):
            expected.append(output(model, given)[row])
    with adapters.rows(names):
        found = output(model, given)
    real = given.get("attention_mask")
    for row in range(len(names)):
        shown = slice(None)
        if real is not None and real.shape[1:] == found.shape[1:2]:
            shown = real[row].bool()
        torch.testing.assert_close(found[row][shown], expected[row][shown], rtol=1e-5, atol=1e-5)
    own = [i for i, each in enumerate(names) if each in ("a0", "a2")]
    assert len(own) < 2 or not torch.allclose(expected[own[0]], expected[own[1]], atol=1e-3)


MIXED = ["a2", "a0", None, "a1", "a0"]


@pytest.mark.parametrize("plan", PLANS)
def test_each_row_is_as_by_its_adapter_alone(plan):
    adapters = several("bert", PLANS[plan])
    check("bert", adapters, MIXED)
    assert adapters.active == "a2"


@pytest.mark.parametrize(
    "name",
    ["gpt2", "llama", "t5", "bart", "albert", "vit", "gpt_neox", "mixtral", "opt", "modernbert"],
)
@pytest.mark.slow
def test_families(name):
    """Fused projections, encoders with decoders, flattened feed-forwards, experts, norms of heads.

    ALBERT runs one block twice.
    """
    plan = Plan.uniform(LoRA(r=2, sites=SITES), Adapter(bottleneck=4, gate=Gate()))
    check(name, several(name, plan), MIXED)


@pytest.mark.slow
def test_positions_of_deberta_belong_to_no_row():
    adapters = several("deberta-v2", Plan.uniform(LoRA(r=2)))
    given = batch("deberta-v2", 3)
    before = output(adapters.model, given)
    with (
        pytest.raises(RuntimeError, match="does not belong to the rows"),
        adapters.rows(["a0", "a1", None]),
    ):
        output(adapters.model, given)
    assert torch.equal(output(adapters.model, given), before)
    check("deberta-v2", adapters, ["a1"])


def test_a_head_with_other_layers_is_refused():
    adapters = several("bert", PLANS["lora"], count=1)
    adapters.delete("a0")
    adapters.model.classifier = nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, 3))
    adapters.add("a0", PLANS["lora"])
    adapters.model.eval()
    with pytest.raises(ValueError, match=r"its own|their own"), adapters.rows(["a0", None]):
        pass
    assert adapters.active == "a0"


@pytest.mark.slow
def test_compiled_code_notices_a_switch():
    adapters = several("bert", PLANS["lora"])
    given = batch("bert", 3)
    expected, orders = {}, [["a0", "a1", None], ["a1", "a1", "a0"]]
    with torch.no_grad():
        for name in (None, "a0", "a1"):
            with adapters.using(name):
                expected[name] = output(adapters.model, given)
        compiled = torch.compile(adapters.model, backend="eager")
        for name in ("a0", "a1", None, "a0", None):
            with adapters.using(name):
                torch.testing.assert_close(output(compiled, given), expected[name])
        for names in orders:
            with adapters.rows(names):
                found = output(compiled, given)
            for row, name in enumerate(names):
                torch.testing.assert_close(found[row], expected[name][row])


@pytest.mark.slow
def test_weights_are_stacked_again_when_they_change():
    adapters = several("bert", PLANS["both"])
    check("bert", adapters, MIXED)
    stacked = adapters._kept.rows
    check("bert", adapters, ["a1", "a2"])  # a subset needs no new stack
    assert adapters._kept.rows is stacked and stacked.names == ["a0", "a1", "a2"]
    awaken(adapters["a1"], seed=5)
    check("bert", adapters, MIXED)
    adapters.delete("a1")
    awaken(adapters.add("a1", PLANS["both"], seed=8), seed=8)
    check("bert", adapters, MIXED)
    awaken(adapters.add("a4", PLANS["lora"], seed=8), seed=8)
    check("bert", adapters, ["a4", None])
    check("bert", adapters, MIXED)


@pytest.mark.slow
def test_other_dtypes():
    adapters = several("bert", PLANS["both"])
    check("bert", adapters, MIXED)
    adapters.model.double()
    check("bert", adapters, MIXED)
    with torch.inference_mode():
        check("bert", adapters, MIXED)


def test_beams_share_the_adapter_of_their_prompt():
    adapters = several("gpt2", PLANS["lora"])
    prompts = torch.tensor([[5, 6, 7], [8, 9, 10]])
    options = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    expected = []
    for row, name in enumerate(("a1", "a0")):
        with adapters.using(name):
            expected.append(adapters.model.generate(prompts[row : row + 1], **options)[0])
    with adapters.rows(["a1", "a0"]):
        found = adapters.model.generate(prompts, **options)
    for one, other in zip(found, expected, strict=True):
        width = min(len(one), len(other))
        assert torch.equal(one[:width], other[:width])


def test_heads_of_other_labels():
    adapters = several("bert", PLANS["lora"], count=1)
    with torch.no_grad():
        for number in (1, 2):
            attachment = adapters.add(f"a{number}", PLANS["lora"], labels=5, seed=number)
            awaken(attachment, seed=number)
    adapters.model.eval()
    check("bert", adapters, ["a1", "a2", "a1"])
    check("bert", adapters, ["a0", None])
    for names, text in [(["a0", "a1"], "heads for other labels"), (["a1", None], "other labels")]:
        with pytest.raises(ValueError, match=text), adapters.rows(names):
            pass
    check("bert", adapters, ["a1", "a2"])


def test_no_adapter_in_any_row_is_the_bare_base():
    adapters = several("bert", PLANS["lora"])
    with torch.no_grad(), adapters.rows([None, None]):
        found = output(adapters.model, inputs("bert"))
    assert torch.equal(found, output(build("bert"), inputs("bert")))


def test_after_an_error_the_model_is_as_it_was():
    adapters = several("bert", PLANS["lora"])
    given = inputs("bert")
    before = output(adapters.model, given)
    with pytest.raises(RuntimeError, match="rows of the batch"), adapters.rows(["a0", "a1", "a2"]):
        output(adapters.model, given)  # two rows
    assert adapters.active == "a2"
    assert torch.equal(output(adapters.model, given), before)
    with adapters.rows(["a0", "a1"]), pytest.raises(ValueError, match="mixes the adapters"):
        adapters.activate("a1")
    assert torch.equal(output(adapters.model, given), before)


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (Plan.uniform(IA3()), "'ia3' of the plan: Rescale cannot"),
        (Plan.uniform(Prefix(length=2)), "'prefix' of the plan"),
        (UniPELT(), "'prefix' of the plan|'lora' of the plan"),
        (Plan.uniform(LoRA(), norms=True), "all rows of a batch have the same"),
    ],
)
def test_what_cannot_be_mixed_is_refused(plan, text):
    adapters = several("bert", plan, count=2)
    before = output(adapters.model, inputs("bert"))
    for _ in range(2):
        with pytest.raises(ValueError, match=text), adapters.rows(["a0", "a1"]):
            pass
        assert adapters.active == "a1"
        assert torch.equal(output(adapters.model, inputs("bert")), before)


def test_refusals():
    adapters = several("bert", PLANS["lora"])
    adapters.add("other", PLANS["adapter"])
    for names, text in [
        (["a0", "a5"], "unknown adapter 'a5'"),
        (["a0", "other"], "different plans"),
        ([], "one for each row"),
    ]:
        with pytest.raises(ValueError, match=text), adapters.rows(names):
            pass
    adapters.model.train()
    with pytest.raises(ValueError, match=r"model.eval\(\)"), adapters.rows(["a0", "a1"]):
        pass


@pytest.mark.slow
def test_threads_wait_for_each_other():
    adapters = several("bert", PLANS["both"])
    given = inputs("bert")
    orders: list[list[str | None]] = [["a0", "a1"], ["a2", None]]
    expected = []
    for names in orders:
        with torch.no_grad(), adapters.rows(names):
            expected.append(output(adapters.model, given))
    wrong = []

    @torch.no_grad()
    def serve(number: int) -> None:
        for _ in range(10):
            with adapters.rows(orders[number]):
                if not torch.equal(output(adapters.model, given), expected[number]):
                    wrong.append(number)

    threads = [threading.Thread(target=serve, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
