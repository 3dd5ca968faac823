"""Discovery: the sites of every family, against tables written from the modeling code."""

from __future__ import annotations

import pytest
import torch
from zoo import BLOCKS, ZOO, build

from lightning_pelt.anatomy import Anatomy, Site, examine
from lightning_pelt.testing import hook_counts, tiny_bert


def bert(o: str = "attention.output.dense", attention: str = "attention.self.{}") -> list[str]:
    qkv = [attention.format(leaf) for leaf in ("query", "key", "value")]
    return [*qkv, o, "intermediate.dense", "output.dense"]


def fused(qkv: str, o: str, *ffn: str) -> list[str]:
    return [qkv, qkv, qkv, o, *ffn]


def unfused(attention: str, leaves: str, *ffn: str) -> list[str]:
    return [f"{attention}.{leaf}" for leaf in leaves.split()] + list(ffn)


QKVO, QKV_OUT = "q_proj k_proj v_proj o_proj", "q_proj k_proj v_proj out_proj"
BERT = bert()
LLAMA = unfused("self_attn", QKVO, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
MIXTURE = unfused("self_attn", QKVO)
BART = unfused("self_attn", QKV_OUT, "fc1", "fc2")
BLOOM = fused(
    "self_attention.query_key_value",
    "self_attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
)
GPT2 = fused("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
VIT = unfused("attention", QKVO, "mlp.fc1", "mlp.fc2")
WAVE = unfused("attention", QKV_OUT, "feed_forward.intermediate_dense", "feed_forward.output_dense")
FFN_GATED = ("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1")

# Query, key, value, output, inputs and output of the feed-forward, relative to the first block of
# the first stack.
LEAVES: dict[str, list[str]] = {
    **dict.fromkeys(["bert", "roberta", "xlm-roberta", "camembert", "xlm-roberta-xl"], BERT),
    **dict.fromkeys(["electra", "ernie", "roformer", "rembert"], BERT),
    "albert": unfused("attention", "query key value dense", "ffn", "ffn_output"),
    "deberta": fused(
        "attention.self.in_proj", "attention.output.dense", "intermediate.dense", "output.dense"
    ),
    "deberta-v2": bert(attention="attention.self.{}_proj"),
    "deberta-v2-xlarge": bert(attention="attention.self.{}_proj"),
    "mpnet": unfused("attention.attn", "q k v o", "intermediate.dense", "output.dense"),
    "modernbert": fused("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"),
    "distilbert": unfused("attention", "q_lin k_lin v_lin out_lin", "ffn.lin1", "ffn.lin2"),
    **dict.fromkeys(["gpt2", "gpt_bigcode"], GPT2),
    "codegen": fused("attn.qkv_proj", "attn.out_proj", "mlp.fc_in", "mlp.fc_out"),
    "gptj": unfused("attn", QKV_OUT, "mlp.fc_in", "mlp.fc_out"),
    "gpt_neo": unfused("attn.attention", QKV_OUT, "mlp.c_fc", "mlp.c_proj"),
    **dict.fromkeys(["bloom", "falcon", "falcon-new", "falcon-old"], BLOOM),
    "mpt": fused("attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj"),
    "opt": BART,
    "opt-350m": BART,
    "xglm": BART,
    "gpt_neox": fused(
        "attention.query_key_value",
        "attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ),
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"], LLAMA),
    **dict.fromkeys(["gemma3_text", "stablelm", "stablelm-12b", "olmo", "olmo2", "granite"], LLAMA),
    **dict.fromkeys(["cohere", "smollm3"], LLAMA),
    **dict.fromkeys(["mixtral", "qwen3_moe"], MIXTURE),
    "phi": unfused("self_attn", "q_proj k_proj v_proj dense", "mlp.fc1", "mlp.fc2"),
    "phi3": fused("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    "glm": unfused("self_attn", QKVO, "mlp.gate_up_proj", "mlp.down_proj"),
    "starcoder2": unfused("self_attn", QKVO, "mlp.c_fc", "mlp.c_proj"),
    "deepseek_v3": unfused(
        "self_attn",
        "q_b_proj kv_b_proj kv_b_proj o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ),
    "t5": unfused(
        "layer.0.SelfAttention",
        "q k v o",
        "layer.1.DenseReluDense.wi",
        "layer.1.DenseReluDense.wo",
    ),
    **dict.fromkeys(
        ["umt5", "mt5"],
        unfused("layer.0.SelfAttention", "q k v o", *FFN_GATED, "layer.1.DenseReluDense.wo"),
    ),
    **dict.fromkeys(["bart", "mbart", "pegasus", "marian", "whisper"], BART),
    **dict.fromkeys(["wav2vec2", "wav2vec2-large", "hubert"], WAVE),
    **dict.fromkeys(["vit", "deit", "beit", "dinov2"], VIT),
    "clip": unfused("self_attn", QKV_OUT, "mlp.fc1", "mlp.fc2"),
}
POST_NORM = {"bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "albert"} | {
    *("roformer", "rembert", "deberta", "deberta-v2", "deberta-v2-xlarge", "mpnet"),
    *("distilbert", "opt-350m"),
    *("bart", "marian", "wav2vec2", "hubert"),
}
ENCODER, DECODER = ("encoder", False), ("decoder", True)
STACKS: dict[str, list[tuple[str, bool]]] = {
    "encoder": [ENCODER],
    "decoder": [DECODER],
    "seq2seq": [ENCODER, DECODER],
    "vision": [ENCODER],
    "audio": [ENCODER],
    "clip": [("vision", False), ("text", True)],
}


def test_the_tables_cover_the_zoo() -> None:
    assert set(LEAVES) == set(ZOO)
    assert set(LEAVES) >= POST_NORM


def leaves(anatomy: Anatomy, sites: list[Site], *roles: str) -> list[str]:
    block = f"{anatomy.stack(sites[0].stack).blocks[sites[0].block or 0]}."
    found = {site.role: site for site in sites}
    return [found[role].path.removeprefix(block) for role in roles if role in found]


@pytest.mark.parametrize("name", LEAVES)
def test_sites(name: str) -> None:
    model = build(name)
    anatomy = examine(model)
    assert anatomy.on_interface == ZOO[name].interface
    kind = "seq2seq" if name == "whisper" else ZOO[name].kind
    assert [(stack.name, stack.causal) for stack in anatomy.stacks] == STACKS[kind]
    depth = 1 if name == "albert" else BLOCKS
    assert [len(stack.blocks) for stack in anatomy.stacks] == [depth] * len(STACKS[kind])

    first = [s for s in anatomy.sites if (s.stack, s.block) == (anatomy.stacks[0].name, 0)]
    paths = leaves(
        anatomy,
        first,
        *(f"attention.{leaf}" for leaf in ("query", "key", "value", "output")),
        *("ffn.in", "ffn.in_2", "ffn.out"),
    )
    assert paths == LEAVES[name]
    sublayers = {s.role: s for s in first if s.role in ("attention.output", "ffn")}
    assert set(sublayers) == {"attention.output", "ffn"}
    assert {s.post_norm is not None for s in sublayers.values()} == {name in POST_NORM}
    for site in anatomy.sites:
        assert model.get_submodule(site.path) is not None
        assert model.get_submodule(site.source.path) is not None


@pytest.mark.parametrize("name", LEAVES)
def test_every_block_has_the_same_roles(name: str) -> None:
    anatomy = examine(build(name))
    for stack in anatomy.stacks:
        roles = [
            {s.role for s in anatomy.sites if (s.stack, s.block) == (stack.name, block)}
            for block in range(len(stack.blocks))
        ]
        if name == "deepseek_v3":  # its second block is a mixture of experts
            roles[0] -= {"ffn.in", "ffn.in_2", "ffn.out"}
        assert all(other == roles[0] for other in roles)
        assert roles[0] >= {"attention", "attention.query", "attention.output", "ffn"}
        assert ("norm" in roles[0]) == (name != "olmo"), "its norms have no weights"


@pytest.mark.parametrize(
    ("name", "attention", "states"),
    [
        ("bart", "encoder_attn", "key_value_states"),
        ("whisper", "encoder_attn", "key_value_states"),
        ("t5", "layer.1.EncDecAttention", "key_value_states"),
        ("umt5", "layer.1.EncDecAttention", "encoder_hidden_states"),
    ],
)
def test_cross_attention(name: str, attention: str, states: str) -> None:
    anatomy = examine(build(name))
    block = anatomy.stack("decoder").blocks[1]
    cross = {
        s.role: s for s in anatomy.sites if s.role.startswith("cross") and s.path.startswith(block)
    }
    leaf = ["q", "k", "v", "o"] if "t5" in name else QKV_OUT.split()
    for role, expected in zip(("query", "key", "value", "output"), leaf, strict=True):
        assert cross[f"cross_attention.{role}"].path == f"{block}.{attention}.{expected}"
    reads_encoder = {role for role, site in cross.items() if site.source.argument == states}
    assert reads_encoder == {"cross_attention.key", "cross_attention.value"}
    assert cross["cross_attention"].path == f"{block}.{attention}"


@pytest.mark.parametrize(
    ("name", "count", "key", "value"),
    [("bert", 4, 8, 8), ("llama", 2, 8, 8), ("gpt_bigcode", 1, 8, 8), ("deepseek_v3", 4, 8, 8)],
)
def test_heads(name: str, count: int, key: int, value: int) -> None:
    heads = next(site.heads for site in examine(build(name)).sites if site.heads)
    assert (heads.count, heads.key_width, heads.value_width) == (count, key, value)


@pytest.mark.parametrize(
    ("name", "role", "path", "argument"),
    [
        ("bert", "attention", "bert.encoder.layer.0.attention.self", "attention_mask"),
        ("llama", "attention", "model.layers.0.self_attn", "attention_mask"),
        ("t5", "attention", "encoder.block.0.layer.0.SelfAttention", "mask"),
        ("deberta-v2", "attention", "deberta.encoder.layer.0.attention.self", "attention_mask"),
        ("bart", "cross_attention", "model.decoder.layers.0.encoder_attn", "attention_mask"),
    ],
)
def test_mask_arguments(name: str, role: str, path: str, argument: str) -> None:
    anatomy = examine(build(name))
    stack = "decoder" if "decoder" in path or name == "llama" else "encoder"
    mask = anatomy.masks[stack, 0, role]
    assert (mask.path, mask.name) == (path, argument)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "bart", "vit", "deberta-v2"])
def test_depends_only_on_structure(name: str) -> None:
    """Not on precision, training mode, frozen parameters or the caller's grad mode."""
    expected = examine(build(name))
    model = build(name, seed=1).requires_grad_(False).train()
    with torch.no_grad():
        assert examine(model) == expected
    assert examine(build(name).bfloat16()) == expected
    bare = examine(build(name, task=False))
    inside = [[s.role for s in a.sites if s.block is not None] for a in (bare, expected)]
    assert inside[0] == inside[1]


def test_does_not_change_the_model() -> None:
    model = tiny_bert().train()
    model.bert.encoder.layer[0].eval()
    next(model.parameters()).requires_grad_(False)
    hooks = hook_counts(model)
    modes = {name: module.training for name, module in model.named_modules()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.random.get_rng_state()
    examine(model)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert hook_counts(model) == hooks
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
