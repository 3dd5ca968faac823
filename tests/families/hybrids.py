"""Decoders of text whose blocks mix attention with mamba, linear attention or convolution."""

import torch

from families.family import Family

QKVO = "self_attn[q_proj k_proj v_proj > o_proj]"
MLP = "mlp.down_proj[mlp.gate_proj mlp.up_proj > mlp.down_proj]"
FFN = MLP.replace("mlp", "feed_forward")
W123 = "feed_forward.w2[feed_forward.w1 feed_forward.w3 > feed_forward.w2]"
# Blocks share the weights of their transformer, not its modules.
ZAMBA = f"shared_transf.{QKVO} " + MLP.replace("mlp", "shared_transf.feed_forward")
ZAMBA_2 = (
    f"shared_transformer.{QKVO} shared_transformer.feed_forward.down_proj"
    "[shared_transformer.feed_forward.gate_up_proj > shared_transformer.feed_forward.down_proj]"
)
CONV_QKVO = "self_attn[q_proj k_proj v_proj > out_proj]"
DELTA_NET = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MAMBA_2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
    "mamba_chunk_size": 8,
}
GRANITE = {
    **MAMBA_2,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "intermediate_size": 32,
    "shared_intermediate_size": 64,
    "num_key_value_heads": 2,
    "position_embedding_type": "nope",
    "embedding_multiplier": 12,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.22,
}
NEMOTRON = {
    "num_hidden_layers": 4,
    "ssm_state_size": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "chunk_size": 8,
    "moe_shared_expert_intermediate_size": 64,
}
KIMI = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "num_key_value_heads": 4,
}
ZAMBA_2_SIZES = {
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
    "mamba_headdim": 8,
    "mamba_d_state": 16,
    "chunk_size": 8,
    "adapter_rank": 4,
}

FAMILIES = [
    Family(
        "bailing_hybrid",
        "inclusionAI/Ling-3.0-Flash",
        place=f"decoder (layers.*) causal 0: {MLP}, 1: mlp, 2: "
        "self_attn[q_proj kv_b_proj > o_proj] mlp",
        options={
            **KIMI,
            "head_dim": 8,
            "first_k_dense_replace": 1,
            "num_expert_group": 2,
            "topk_group": 1,
        },
    ),
    Family(
        "bamba",
        "ibm-fms/Bamba-9.8b-2.2T-hf",
        place=f"decoder (layers.*) causal 0: {FFN}, 1: {QKVO} {FFN}, 2: {FFN}",
        options={**MAMBA_2, "num_hidden_layers": 3, "attn_layer_indices": [1]},
    ),
    Family(
        "falcon_h1",
        "tiiuae/Falcon-H1-1.5B-Instruct",
        place=f"decoder (layers.*) causal 0-1: {QKVO} feed_forward[up_proj gate_proj > down_proj]",
        options={
            **MAMBA_2,
            "mamba_d_ssm": 64,
            "attention_out_multiplier": 0.9375,
            "embedding_multiplier": 5.656854249492381,
            "key_multiplier": 0.390625,
            "mlp_multipliers": [0.8838834764831844, 0.5859375],
            "ssm_in_multiplier": 1.25,
            "ssm_multipliers": [0.35355339, 0.25, 0.35355339, 0.5, 0.35355339],
            "ssm_out_multiplier": 0.23570226039551587,
            "mamba_norm_before_gate": False,
        },
    ),
    Family(
        "granitemoehybrid",
        "ibm-granite/granite-4.0-h-tiny",
        place=f"decoder (layers.*) causal 0: block_sparse_moe, 1: {QKVO} block_sparse_moe, "
        "2: block_sparse_moe",
        options=GRANITE,
    ),
    Family(
        "granitemoehybrid",
        "ibm-granite/granite-4.0-h-1b",
        name="granitemoehybrid-dense",
        place="decoder (layers.*) causal 0: FFN, 1: QKVO FFN, 2: FFN".replace("QKVO", QKVO).replace(
            "FFN",
            "shared_mlp.output_linear[shared_mlp.input_linear > shared_mlp.output_linear]",
        ),
        options={**GRANITE, "num_local_experts": 0, "num_experts_per_tok": 0},
    ),
    Family(
        "jamba",
        "ai21labs/Jamba-v0.1",
        place=f"decoder (layers.*) causal 0: {FFN}, 1: feed_forward, 2: {QKVO} {FFN}, "
        "3: feed_forward",
        options={
            "num_hidden_layers": 4,
            "attn_layer_period": 4,
            "attn_layer_offset": 2,
            "mamba_dt_rank": "auto",
        },
    ),
    Family(
        "jev",
        "autotrust/JEV-9B",
        place=f"decoder (model.layers.*) causal 0: {MLP}, 1: {QKVO} {MLP}",
        options={
            "text_config": {**DELTA_NET, "layer_types": ["linear_attention", "full_attention"]}
        },
        inputs=lambda model: {
            "input_ids": torch.tensor([[5, 17, 40, 9, 31, 22, 60, 14]]),
            "marks": torch.tensor([[3, 8]]),
            "num_options": torch.tensor([[2, 2]]),
            "question_type_ids": torch.tensor([[0, 0]]),
        },
        auto="JevForDecision",
    ),
    Family(
        "kimi_linear",
        "moonshotai/Kimi-Linear-48B-A3B-Instruct",
        place=f"decoder (layers.*) causal 0: {MLP}, 1: mlp, 2: "
        "self_attn[q_proj kv_b_proj > o_proj] mlp",
        options=KIMI,
    ),
    Family(
        "lara_mini",
        "translated/Lara-4-Mini-Base",
        place=f"decoder (layers.*) causal 0: mlp, 1: {QKVO} mlp, 2: mlp, 3: {QKVO} mlp",
        options={
            **DELTA_NET,
            "num_hidden_layers": 4,
            "layer_types": [
                "linear_attention",
                "sliding_attention",
                "linear_attention",
                "full_attention",
            ],
            "sliding_window": 4,
        },
    ),
    Family(
        "lfm2",
        "LiquidAI/LFM2-1.2B",
        place=f"decoder (layers.*) causal 0: {W123}, 1: {CONV_QKVO} {W123}, 2: {W123}",
        options={
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "block_multiple_of": 16,
        },
    ),
    Family(
        "lfm2_moe",
        "LiquidAI/LFM2-8B-A1B",
        place=f"decoder (layers.*) causal 0: {W123}, 1: {CONV_QKVO} feed_forward, 2: feed_forward",
        options={
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "num_dense_layers": 1,
        },
    ),
    Family(
        "lfm3",
        "LiquidAI/LFM3-1.7B",
        place=f"decoder (layers.*) causal 0: {W123}, 1: {QKVO} {W123}, 2: {W123}, 3: {QKVO} {W123}",
        options={
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention", "conv", "sliding_attention"],
            "sliding_window": 4,
        },
    ),
    Family(
        "minimax",
        "MiniMaxAI/MiniMax-Text-01-hf",
        place=f"decoder (layers.*) causal 0: mlp, 1: {QKVO} mlp",
        options={
            "layer_types": ["linear_attention", "full_attention"],
            "block_size": 256,
            "full_attn_alpha_factor": 3.5565588200778455,
            "linear_attn_alpha_factor": 3.5565588200778455,
            "mlp_alpha_factor": 3.5565588200778455,
        },
    ),
    Family(
        "nemotron_h",
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        place="decoder (layers.*) causal 0: -, 1: mixer, 2: mixer[q_proj k_proj v_proj > o_proj], "
        "3: mixer",
        options={
            **NEMOTRON,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        },
    ),
    Family(
        "nemotron_h",
        "nvidia/Nemotron-H-8B-Base-8K",
        name="nemotron_h-dense",
        place="decoder (layers.*) causal 0: -, 1: MLP, 2: mixer[q_proj k_proj v_proj > o_proj], "
        "3: MLP".replace("MLP", "mixer.down_proj[mixer.up_proj > mixer.down_proj]"),
        options={
            **NEMOTRON,
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"],
        },
    ),
    Family(
        "nemotron_h",
        "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16",
        name="nemotron_h-latent",
        place="decoder (layers.*) causal 0: -, 1: mixer, 2: mixer[q_proj k_proj v_proj > o_proj], "
        "3: mixer",
        options={
            **NEMOTRON,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "moe_latent_size": 16,
        },
    ),
    Family(
        "olmo_hybrid",
        "allenai/Olmo-Hybrid-7B",
        place=f"decoder (layers.*) causal 0: {MLP}, 1: {QKVO} {MLP}",
        options={
            **DELTA_NET,
            "linear_num_key_heads": 4,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    Family(
        "qwen3_5_moe_text",
        "Qwen/Qwen3.5-35B-A3B",
        place=f"decoder (layers.*) causal 0: mlp, 1: {QKVO} mlp",
        options={**DELTA_NET, "layer_types": ["linear_attention", "full_attention"]},
    ),
    Family(
        "qwen3_5_text",
        "Qwen/Qwen3.5-27B",
        place=f"decoder (layers.*) causal 0: {MLP}, 1: {QKVO} {MLP}",
        options={**DELTA_NET, "layer_types": ["linear_attention", "full_attention"]},
    ),
    Family(
        "qwen3_next",
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
        place=f"decoder (layers.*) causal 0: mlp, 1: {QKVO} mlp",
        options={**DELTA_NET, "layer_types": ["linear_attention", "full_attention"]},
    ),
    Family(
        "qwen4_exp_text",
        "Qwen/Qwen4-Exp",
        place=f"decoder (layers.*) causal 0: mlp, 1: {QKVO} mlp",
        options={
            **DELTA_NET,
            "layer_types": ["linear_attention", "indexed_attention"],
            # Experts stay larger than the mixing of the streams.
            "num_experts": 8,
            "moe_intermediate_size": 64,
            "hc_lowrank": 8,
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 4,
            "indexer_compress_ratio": 2,
        },
    ),
    Family(
        "recurrent_gemma",
        "google/recurrentgemma-2b",
        place="decoder (layers.*) causal 0-1: MLP, "
        "2: temporal_block[q_proj k_proj v_proj > o_proj] MLP".replace(
            "MLP", MLP.replace("mlp", "mlp_block")
        ),
        options={
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "intermediate_size": 128,
            "attention_window_size": 4,
        },
    ),
    Family(
        "zamba",
        "Zyphra/Zamba-7B-v1",
        place=f"decoder (layers.*) causal 0: -, 1: {ZAMBA}, 2: -, 3: {ZAMBA}",
        options={
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
            "attention_hidden_size": 64,
            "attention_head_dim": 16,
            "mamba_dt_rank": "auto",
        },
    ),
    Family(
        "zamba2",
        "Zyphra/Zamba2-2.7B",
        place=f"decoder (layers.*) causal 0: -, 1-3: {ZAMBA_2}",
        options={
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid", "hybrid", "hybrid"],
            "hybrid_layer_ids": [1, 2, 3],
            **ZAMBA_2_SIZES,
            "num_mem_blocks": 2,
        },
    ),
    Family(
        "zamba2",
        "Zyphra/Zamba2-1.2B",
        name="zamba2-adapted",
        place=f"decoder (layers.*) causal 0: -, 1: {ZAMBA_2}, 2: -, 3: {ZAMBA_2}",
        options={
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
            "hybrid_layer_ids": [1, 3],
            **ZAMBA_2_SIZES,
            "use_shared_attention_adapter": True,
            "use_mem_rope": True,
        },
    ),
]
