"""Prefixes in the attention, against attention written out one query at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from families.family import Family
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface
from zoo import ZOO, build, inputs, output

from lightning_pelt import Gate, Plan, Prefix, attach
from lightning_pelt.attach import Attachment
from lightning_pelt.methods._prefix_attention import extend_mask
from lightning_pelt.testing import awaken, tiny_bert

LENGTH = 4
TOKENS = torch.arange(3, 19).view(2, 8)
MASK = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])


def prefixed(model: nn.Module, method: Prefix) -> Attachment:
    attachment = attach(model, Plan.uniform(method))
    awaken(attachment, std=0.3)
    return attachment


class Attended:
    """One call of the attention function: its arguments without the prefix, its output with it."""

    def __init__(self, module: nn.Module, arguments: tuple, options: dict, output: Tensor) -> None:
        names = ("query", "key", "value", "attention_mask")
        self.module, self.output = module, output
        self.options = options | dict(zip(names, arguments, strict=False))
        self.query, self.key, self.value = (self.options[name] for name in names[:3])
        self.mask = self.options.get("attention_mask")


@contextmanager
def watched() -> Iterator[list[Attended]]:
    """Every call of the attention function, seen from outside of the prefix."""
    seen: list[Attended] = []
    original = AttentionInterface.get_interface

    def get_interface(self: Any, name: str, default: Any) -> Any:
        function = original(self, name, default)

        def call(module: nn.Module, *arguments: Any, **options: Any) -> Any:
            result = function(module, *arguments, **dict(options))
            seen.append(Attended(module, arguments, options, result[0]))
            return result

        return call

    AttentionInterface.get_interface = get_interface
    try:
        yield seen
    finally:
        AttentionInterface.get_interface = original


def bias_of_real_keys(call: Attended) -> Tensor:
    """(B, heads, T, S): what is added to the scores of real tokens, -inf where they are hidden."""
    batch, heads, queries, _ = call.query.shape
    keys = call.key.shape[2]
    bias = torch.zeros(batch, heads, queries, keys)
    causal = call.options.get("is_causal")
    causal = getattr(call.module, "is_causal", True) if causal is None else causal
    if call.mask is None and causal:  # as SDPA is told to do
        bias = bias.masked_fill(~torch.ones(queries, keys).tril().bool(), -math.inf)
    elif call.mask is not None and call.mask.dtype == torch.bool:
        bias = bias.masked_fill(~call.mask, -math.inf)
    elif call.mask is not None:
        bias = bias + call.mask
    position_bias = call.options.get("position_bias")
    return bias if position_bias is None else bias + position_bias


def by_hand(call: Attended, key: Tensor, value: Tensor, gate: Tensor) -> Tensor:
    """softmax over [g q p_k ; q k] of [g p_v ; v], for every query and head by itself.

    Shapes: key (L, kv x d_k), value (L, kv x d_v), gate (B, T) -> (B, T, heads, d_v).
    """
    batch, heads, queries, width = call.query.shape
    groups = call.key.shape[1]
    prefix_key = key.view(len(key), groups, key.shape[1] // groups)
    prefix_value = value.view(len(value), groups, value.shape[1] // groups)
    scaling = call.options.get("scaling")
    scale = width**-0.5 if scaling is None else scaling
    softcap = call.options.get("softcap")
    bias = bias_of_real_keys(call)
    result = torch.empty(batch, queries, heads, call.value.shape[-1])
    for b in range(batch):
        for h in range(heads):
            group = h // (heads // groups)
            for t in range(queries):
                g, q = gate[b, t], call.query[b, h, t]
                keys = torch.cat([g * prefix_key[:, group], call.key[b, group]])
                values = torch.cat([g * prefix_value[:, group], call.value[b, group]])
                scores = keys @ q * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                scores[len(key) :] += bias[b, h, t]
                result[b, t, h] = scores.softmax(0) @ values
    return result


def own_prefix(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Keys and values of a prefix without MLP, as they were set."""
    prefix = module.__dict__["pelt_prefix"]
    return prefix.key.detach(), prefix.value.detach()


def gate_of(attachment: Attachment, module: nn.Module, queries: int) -> Tensor:
    """The gate in front of ``module``'s prefix, per token."""
    view = module.__dict__["pelt_prefix"].gate
    assert view in attachment.gates.values()
    assert view.value is not None
    gate = view.value if view.value.dim() == 2 else view.value[:, None]
    return gate.expand(-1, queries)


FAMILIES = [name for name, entry in ZOO.items() if entry.interface]


def implementations(name: str) -> list[str]:
    return ["eager"] if name == "gemma2" else ["sdpa", "eager"]  # it has no SDPA


@torch.no_grad()
@pytest.mark.sample(7)
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("pool", [None, "all", "token"])
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_attention_written_out(name: str, pool: Any, padded: bool) -> None:
    """Pooled and per token gates, causal and not, grouped, capped, with position bias, windowed."""
    model, batch = build(name), inputs(name, padded=padded)
    gate = None if pool is None else Gate(pool=pool)
    attachment = prefixed(model, Prefix(length=LENGTH, mlp=None, gate=gate))
    for implementation in implementations(name):
        model.set_attn_implementation(implementation)
        with watched() as calls:
            output(model, batch)
        assert len(calls) >= 2
        # Albert runs one module twice, and the gate's last value is of the second run.
        for call in calls[-1:] if name == "albert" else calls:
            ones = torch.ones(call.query.shape[0], call.query.shape[2])
            opened = ones if gate is None else gate_of(attachment, call.module, ones.shape[1])
            expected = by_hand(call, *own_prefix(call.module), opened)
            torch.testing.assert_close(call.output, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_bert_layer_from_hidden_states() -> None:
    """Nothing of transformers: one self-attention out of its weights, with concatenated prefix."""
    model: Any = tiny_bert()
    frozen = copy.deepcopy(model.bert.encoder.layer[0].attention.self)
    attachment = prefixed(model, Prefix(length=LENGTH, mlp=None, gate=Gate()))
    module = model.bert.encoder.layer[0].attention.self
    seen: list[tuple[Tensor, Tensor]] = []
    module.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((args[0], output[0])), with_kwargs=True
    )
    model(input_ids=TOKENS, attention_mask=MASK)
    ((x, context),) = seen
    weight, bias = attachment.gates["00/prefix"].parameters()
    opened = torch.sigmoid(x @ weight[0] + bias)
    gate = torch.stack([opened[0].mean(), opened[1, :5].mean()])

    key, value = own_prefix(module)
    visible = torch.cat([torch.ones(2, LENGTH), MASK], 1).bool()
    expected = torch.empty_like(context)
    for b in range(2):
        q = frozen.query(x[b])
        k = torch.cat([gate[b] * key, frozen.key(x[b])])[visible[b]]
        v = torch.cat([gate[b] * value, frozen.value(x[b])])[visible[b]]
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            weights = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(8), -1)
            expected[b, :, part] = weights @ v[:, part]
    torch.testing.assert_close(context, expected, rtol=0, atol=1e-5)


SWIN = {
    **{"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]},
    **{"window_size": 4, "stage_names": ["stem", "stage1", "stage2"]},
    **{"out_features": ["stage2"], "out_indices": [2]},
}
SAM = {
    "vision_config": {
        **{"image_size": 32, "patch_size": 4, "window_size": 3, "global_attn_indexes": [1]},
        **{"output_channels": 32, "num_pos_feats": 16},
    },
    "prompt_encoder_config": {
        **{"image_size": 32, "patch_size": 4, "image_embedding_size": 8, "hidden_size": 32}
    },
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "attention_downsample_rate": 2},
}
QWEN = {
    "vision_config": {
        **{"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 2},
        **{"mlp_ratio": 2, "spatial_merge_size": 2, "temporal_patch_size": 1, "in_channels": 3},
    },
    "text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    **{"image_token_id": 120, "vision_start_token_id": 121, "vision_end_token_id": 122},
    "video_token_id": 123,
}


def windows() -> tuple[Any, dict[str, Tensor]]:
    """Swin: the attention reads (B x windows, T, d)."""
    model = Family("swin", "microsoft/swin-tiny-patch4-window7-224", options=SWIN).build()
    return model, {"pixel_values": torch.randn(2, 3, 16, 16)}


def sets_of_points() -> tuple[Any, dict[str, Tensor]]:
    """SAM's mask decoder: it reads (B, P, T, d), and its function (B x P, heads, T, d)."""
    model = Family("sam", "facebook/sam-vit-base", options=SAM).build()
    points = torch.rand(2, 3, 1, 2) * 32
    return model, {"pixel_values": torch.randn(2, 3, 32, 32), "input_points": points}


@torch.no_grad()
@pytest.mark.parametrize("pool", ["all", "token"])
@pytest.mark.parametrize("make", [windows, sets_of_points])
@pytest.mark.slow
def test_gates_of_attentions_that_read_other_shapes(make: Any, pool: Any) -> None:
    model, batch = make()
    attachment = attach(
        model,
        Plan.uniform(Prefix(length=LENGTH, mlp=None, gate=Gate(pool=pool))),
        example_inputs=batch,
    )
    awaken(attachment, std=0.3)
    with watched() as calls:
        model(**batch)
    calls = [call for call in calls if "pelt_prefix" in call.module.__dict__]
    assert len(calls) >= 4
    for call in calls:
        rows, tokens = call.query.shape[0], call.query.shape[2]
        gate = call.module.__dict__["pelt_prefix"].gate.value
        gate = gate.flatten(0, -2) if pool == "token" else gate.flatten()[:, None]
        gate = gate.repeat_interleave(rows // len(gate), 0).expand(-1, tokens)
        expected = by_hand(call, *own_prefix(call.module), gate)
        torch.testing.assert_close(call.output, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_gates_of_images_one_by_one() -> None:
    """Qwen2-VL reads the patches of all images as one row, and attends within each image."""
    model: Any = Family("qwen2_vl", "Qwen/Qwen2-VL-2B-Instruct", options=QWEN).build()
    words = torch.tensor([[5, 121, *[120] * 4, 122, 7, 121, *[120] * 6, 122, 9]])
    grid, patches = torch.tensor([[1, 4, 4], [1, 4, 6]]), torch.randn(40, 12)
    batch = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    batch |= {"pixel_values": patches, "image_grid_thw": grid}
    batch["mm_token_type_ids"] = (words == 120).long()
    plan = Plan.uniform(Prefix(length=LENGTH, mlp=None, gate=Gate(pool="token")))
    attachment = attach(model, plan, example_inputs=batch)
    awaken(attachment, std=0.3)
    together = model.visual(patches, grid_thw=grid).last_hidden_state
    alone = [
        model.visual(part, grid_thw=size[None]).last_hidden_state
        for part, size in zip(patches.split([16, 24]), grid, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=2e-5)
    for gate in attachment.gates.values():
        gate.set_open(0.0)
    closed = model.visual(patches, grid_thw=grid).last_hidden_state
    assert (closed - together).abs().max() > 1e-2


def test_a_gate_of_other_tokens_is_refused() -> None:
    model: Any = tiny_bert()
    prefixed(model, Prefix(length=LENGTH, mlp=None, gate=Gate(pool="token")))
    model(input_ids=TOKENS)
    module = model.bert.encoder.layer[0].attention.self
    function = AttentionInterface().get_interface("sdpa", lambda *a, **k: None)
    heads = torch.zeros(2, 4, 5, 8)
    with pytest.raises(
        ValueError, match=r"gate of the prefix at .*self.*\(2, 8, 1\).*2 x 5 tokens"
    ):
        function(module, heads, heads, heads, None)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("gate", [None, Gate()])
@pytest.mark.parametrize("name", ["bert", "modernbert", "llama", "mistral", "qwen3", "bart"])
def test_flex_attention_agrees(name: str, gate: Gate | None, padded: bool) -> None:
    model, batch = build(name), inputs(name, padded=padded)
    prefixed(model, Prefix(length=LENGTH, gate=gate))
    expected = output(model, batch)
    model.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"):  # the kernels are torch's affair
        torch.testing.assert_close(output(model, batch), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_naive_concatenation_is_wrong() -> None:
    """What the mask is made for: causal SDPA without one aligns its triangle with the prefix."""
    model, batch = build("llama"), inputs("llama", padded=False)
    prefixed(model, Prefix(length=LENGTH, mlp=None))
    with watched() as calls:
        output(model, batch)
    call = calls[0]
    assert call.mask is None
    key, value = own_prefix(call.module)

    def beside(prefix: Tensor, real: Tensor) -> Tensor:
        heads = prefix.view(LENGTH, 2, 8).transpose(0, 1)
        return torch.cat([heads.expand(2, -1, -1, -1), real], 2)

    naive = nn.functional.scaled_dot_product_attention(
        call.query,
        beside(key, call.key),
        beside(value, call.value),
        is_causal=True,
        enable_gqa=True,
    ).transpose(1, 2)
    right = by_hand(call, key, value, torch.ones(2, 8))
    torch.testing.assert_close(call.output, right, rtol=0, atol=2e-5)
    assert (naive - right).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_mask_of_the_wrong_polarity_would_show(implementation: str) -> None:
    """The control of all the tests above: hidden prefix columns give another output."""
    model, batch = build("bert"), inputs("bert", padded=True)
    base = output(model, batch)
    model.set_attn_implementation(implementation)
    attachment = prefixed(model, Prefix(length=LENGTH, mlp=None))
    with watched() as calls:
        opened = output(model, batch)
    assert (opened - base).abs().max() > 1e-2
    for call in calls[:1]:
        key, value = own_prefix(call.module)
        hidden = by_hand(call, key[:0], value[:0], torch.ones(2, 8))
        assert (call.output - hidden).abs().max() > 1e-2
    attachment.detach()
    torch.testing.assert_close(output(model, batch), base, rtol=0, atol=1e-5)


@torch.no_grad()
def test_sliding_window_does_not_hide_the_prefix() -> None:
    """A window of four tokens; the eighth still sees the prefix, and still no early token."""
    model: Any = build("mistral")
    batch = inputs("mistral", padded=False)
    assert model.config.sliding_window == 4
    prefixed(model, Prefix(length=LENGTH, mlp=None))
    with watched() as before:
        output(model, batch)
    for module in (call.module for call in before):
        module.__dict__["pelt_prefix"].value.add_(1.0)
    with watched() as after:
        output(model, batch)
    change = (after[0].output - before[0].output).abs().amax((2, 3))
    assert (change > 1e-3).all(), "every token of every row sees the prefix"
    assert torch.isneginf(bias_of_real_keys(before[0])[0, 0, 7, :4]).all()


def test_full_length_input() -> None:
    """As many tokens as the model has positions: the prefix takes none of them."""
    model = tiny_bert()
    prefixed(model, Prefix(length=LENGTH))
    assert model.config.max_position_embeddings == 32
    tokens = torch.arange(32)[None] + 3
    assert model(input_ids=tokens).logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_positions_do_not_shift(name: str) -> None:
    """Queries and keys reach the first attention as they do without a prefix."""
    model, batch = build(name), inputs(name)
    with watched() as before:
        output(model, batch)
    prefixed(model, Prefix(length=LENGTH))
    with watched() as after:
        output(model, batch)
    assert torch.equal(after[0].query, before[0].query)
    assert torch.equal(after[0].key, before[0].key)
    assert not torch.equal(after[0].output, before[0].output)


def test_paged_cache_is_refused() -> None:
    model: Any = build("llama")
    prefixed(model, Prefix(length=LENGTH))
    module = model.model.layers[0].self_attn
    function = AttentionInterface().get_interface("sdpa", lambda *a, **k: None)
    heads = torch.zeros(1, 2, 3, 8)
    with pytest.raises(ValueError, match=r"paged cache.*without continuous batching"):
        function(module, heads, heads, heads, None, cache=object())


def test_modules_without_a_prefix_keep_their_function() -> None:
    prefixed(tiny_bert(), Prefix(length=LENGTH))
    sentinel = (torch.zeros(1), None)
    function = AttentionInterface().get_interface("eager", lambda *a, **k: sentinel)
    heads = torch.zeros(1, 2, 3, 8)
    assert function(nn.Linear(1, 1), heads, heads, heads, None) is sentinel
    assert function(nn.Linear(1, 1), heads, heads, heads, attention_mask=None) is sentinel
    assert function(nn.Linear(1, 1), query=heads, key=heads, value=heads) is sentinel


@torch.no_grad()
def test_a_mask_with_its_name() -> None:
    """BLIP-2 and others do not pass it by position."""
    model: Any = tiny_bert()
    prefixed(model, Prefix(length=LENGTH, mlp=None))
    module = model.bert.encoder.layer[0].attention.self
    function = AttentionInterface().get_interface("sdpa", lambda *a, **k: None)
    heads = torch.randn(1, 4, 3, 8)
    mask = torch.tensor([[[[True, False, True]]]])
    positional, _ = function(module, heads, heads, heads, mask)
    named, _ = function(module, heads, heads, heads, attention_mask=mask)
    assert torch.equal(named, positional)
    assert not torch.equal(named, function(module, heads, heads, heads, attention_mask=None)[0])


MASKS = {
    "none, encoder": (None, False, None),
    "none, causal": (None, True, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
    "boolean": (torch.tensor([[[[True, False, True]]]]), True, [[1, 1, 1, 0, 1]]),
    "added": (torch.tensor([[[[0.0, -9.0, 0.0]]]]), True, [[0.0, 0.0, 0.0, -9.0, 0.0]]),
    "integers": (torch.tensor([[1, 1, 0]]), True, [[1, 1, 1, 1, 0]]),
}


@pytest.mark.parametrize("kind", MASKS)
def test_extended_mask(kind: str) -> None:
    """Two columns in front, visible in the mask's own language."""
    mask, causal, expected = MASKS[kind]
    module = nn.Module()
    module.is_causal = causal
    query = torch.zeros(1, 1, 3, 4)
    extended = extend_mask(mask, 2, module=module, query=query, keys=3, name="sdpa", kwargs={})
    if expected is None:
        assert extended is None
        return
    assert extended.dim() == 4 or mask.dim() == 2
    assert mask is None or extended.dtype == mask.dtype
    torch.testing.assert_close(extended.float().reshape(-1, 5), torch.tensor(expected).float())


@pytest.mark.parametrize(
    ("queries", "visible"), [(1, None), (2, [[1] * 3 + [0] * 4, [1] * 4 + [0] * 3])]
)
def test_causal_mask_with_a_cache(queries: int, visible: list | None) -> None:
    """The first of five tokens: a single one sees everything and needs no mask.

    As in SDPA without a prefix, later keys are those that a cache of fixed length has room for.
    """
    query = torch.zeros(1, 1, queries, 4)
    extended = extend_mask(
        None, 2, module=nn.Module(), query=query, keys=5, name="sdpa", kwargs={"is_causal": True}
    )
    assert (extended is None) == (visible is None)
    if extended is not None:
        assert extended.dtype == torch.bool
        torch.testing.assert_close(extended[0, 0].float(), torch.tensor(visible).float())


def test_flash_attention_with_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sliding window.*attn_implementation='sdpa'"):
        extend_mask(
            torch.ones(1, 3),
            2,
            module=nn.Module(),
            query=torch.zeros(1, 1, 3, 4),
            keys=3,
            name="flash_attention_2",
            kwargs={"sliding_window": 4},
        )
