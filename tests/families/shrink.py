"""Tiny configurations: the defaults of a family, which follow a published checkpoint, made small.

Only sizes change. What selects a computation (norms before or after, shared projections, gated
feed-forwards, windows, patterns of layers) stays as it is.
"""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

WIDTH, HEADS, KEYS, INNER, BLOCKS, VOCABULARY = 32, 4, 2, 64, 2, 128

# New sizes by the names of a configuration's entries; entries that are None stay None.
SIZES: dict[str, tuple[str, ...]] = {
    "width": (
        *("hidden_size", "d_model", "dim", "n_embd", "embed_dim", "embedding_size", "model_dim"),
        *("projection_dim", "word_embed_proj_dim", "encoder_hidden_size", "attention_hidden_size"),
        *("input_embedding_size", "output_embedding_size", "pooler_hidden_size", "width"),
        *("hidden_dim", "emb_dim", "decoder_hidden_size", "vision_hidden_size", "conv_width"),
        *("cross_attention_dim", "out_hidden_size", "text_hidden_size", "output_dim", "dim_out"),
        *("tdnn_width", "mlp_bottle_dim", "encoder_embed_dim", "decoder_embed_dim", "lru_width"),
        *("hidden_size_per_layer_input", "image_embed_dim", "hidden_size_text", "embed_dims"),
        *("classifier_proj_size", "codevector_dim", "proj_codevector_dim", "xvector_output_dim"),
    ),
    "inner": (
        *("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner"),
        *("ffn_hidden_size", "mlp_dim", "encoder_intermediate_size", "decoder_intermediate_size"),
        *("d_inner", "feed_forward_size", "dim_feedforward", "mlp_hidden_size"),
        *("intermediate_size_mlp", "dense_intermediate_size", "ffn_intermediate_size"),
    ),
    "expert": (
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "expert_ffn_hidden_size",
    ),
    "heads": (
        *("num_attention_heads", "n_heads", "n_head", "encoder_attention_heads", "num_heads"),
        *("decoder_attention_heads", "attention_heads", "decoder_num_attention_heads", "nhead"),
        *("encoder_num_attention_heads", "num_attention_heads_text", "attn_heads"),
    ),
    "keys": ("num_key_value_heads", "num_kv_heads", "num_key_value_head", "multi_query_group_num"),
    "blocks": (
        *("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"),
        *("num_layers", "num_decoder_layers", "num_encoder_layers", "depth", "num_blocks"),
        *("encoder_num_hidden_layers", "decoder_num_hidden_layers", "encoder_num_layers"),
        *("decoder_num_layers", "num_layer", "decoder_depth"),
    ),
    "vocabulary": ("vocab_size", "decoder_vocab_size", "encoder_vocab_size", "entity_vocab_size"),
    "head_width": ("head_dim", "kv_channels", "d_kv", "attention_head_dim", "global_head_dim"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "chosen": (
        *("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token"),
    ),
    "positions": ("max_position_embeddings", "n_positions", "n_ctx", "max_source_positions"),
}
NEW = {
    "width": WIDTH,
    "inner": INNER,
    "expert": INNER // 2,
    "heads": HEADS,
    "keys": KEYS,
    "blocks": BLOCKS,
    "vocabulary": VOCABULARY,
    "head_width": WIDTH // HEADS,
    "experts": 4,
    "chosen": 2,
    "positions": 64,
}
_NEW = {name: NEW[kind] for kind, names in SIZES.items() for name in names}


def tiny_config(model_type: str, options: dict[str, Any]) -> PreTrainedConfig:
    """The default configuration of a family with small sizes, and with ``options``.

    Args:
        model_type: of transformers.
        options: entries that replace those of the shrunk configuration; dictionaries are merged
            into the configurations of its parts.
    """
    cls = CONFIG_MAPPING[model_type]
    entries = shrunk(cls().to_dict())
    _merge(entries, options)
    config = cls.from_dict(entries)
    without_dropout(config)
    return config


def shrunk(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries of a configuration with small sizes, those of its parts too."""
    small: dict[str, Any] = {}
    for name, value in entries.items():
        if isinstance(value, dict):
            small[name] = shrunk(value)
        elif isinstance(value, bool) or not isinstance(value, int):
            small[name] = value
        elif name in SIZES["keys"]:
            heads = next((entries[n] for n in SIZES["heads"] if entries.get(n)), value)
            small[name] = {heads: HEADS, 1: 1}.get(value, KEYS)
        elif str(name).endswith(("token_id", "token_index")):
            small[name] = value if value < VOCABULARY else VOCABULARY - 2
        else:
            small[name] = min(value, _NEW[name]) if name in _NEW else value
    if isinstance(small.get("layer_types"), list):
        small["layer_types"] = small["layer_types"][:BLOCKS]
    if isinstance(small.get("per_layer_config"), dict):
        kept = [key for key in small["per_layer_config"] if int(key) < BLOCKS]
        small["per_layer_config"] = {key: small["per_layer_config"][key] for key in kept}
    return small


def _merge(entries: dict[str, Any], options: dict[str, Any]) -> None:
    for name, value in options.items():
        if isinstance(value, dict) and isinstance(entries.get(name), dict):
            _merge(entries[name], value)
        else:
            entries[name] = value


def without_dropout(config: PreTrainedConfig) -> None:
    """Set every dropout rate of a configuration and of its parts to 0."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            without_dropout(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
