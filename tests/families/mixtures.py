"""Decoders of text whose feed-forwards are mixtures of experts."""

from families.family import Family

QKVO = "self_attn[q_proj k_proj v_proj > o_proj]"
MLP = "mlp.down_proj[mlp.gate_proj mlp.up_proj > mlp.down_proj]"
LATENT = "self_attn[q_b_proj kv_b_proj > o_proj]"  # multi-head latent attention
SPARSE = f"decoder (layers.*) causal 0-1: {QKVO} mlp"
FIRST_DENSE = f"decoder (layers.*) causal 0: {QKVO} {MLP}, 1: {QKVO} mlp"
LATENT_FIRST_DENSE = f"decoder (layers.*) causal 0: {LATENT} {MLP}, 1: {LATENT} mlp"
GRANITE = SPARSE.replace("mlp", "block_sparse_moe")
INKLING = "self_attn[q_proj.linear k_proj.linear v_proj.linear > o_proj.linear] mlp"
GRANITE_SCALES = {
    "num_key_value_heads": 2,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.22,
}
INKLING_SIZES = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "d_rel": 4,
    "rel_extent": 16,
    "sliding_window_size": 4,
}
LATENT_SIZES = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 4,
}
INDEXED = {
    **LATENT_SIZES,
    "layer_types": ["indexed_attention"] * 2,
    "mlp_layer_types": ["dense", "sparse"],
    "index_topk": 4,
    "index_head_dim": 8,
    "index_n_heads": 4,
}
DENSE_SPARSE = {"mlp_layer_types": ["dense", "sparse"]}
# A window shorter than the rows that the tests have.
WINDOW_FULL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
FULL_WINDOW = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}

FAMILIES = [
    Family(
        "afmoe",
        "arcee-ai/Trinity-Mini",
        place=FIRST_DENSE,
        options={
            **WINDOW_FULL,
            "num_dense_layers": 1,
            "mup_enabled": True,
            "num_key_value_heads": 2,
        },
    ),
    Family("aria_text", "rhymes-ai/Aria", place=SPARSE),
    Family(
        "axk1",
        "skt/A.X-K1",
        place=LATENT_FIRST_DENSE,
        options={**LATENT_SIZES, **DENSE_SPARSE, "n_group": 2, "topk_group": 1},
    ),
    Family(
        "axk2",
        "skt/A.X-K2",
        place=LATENT_FIRST_DENSE.replace("q_b_proj", "q_gate_proj"),
        options=INDEXED,
        seed=1,
    ),
    Family(
        "beam",
        "reflection/Beam-1.0-501B-A23B",
        place=FIRST_DENSE,
        options={**WINDOW_FULL, **DENSE_SPARSE, "n_group": 2, "topk_group": 1},
    ),
    Family(
        "cohere2_moe",
        "CohereLabs/command-a-plus-05-2026",
        place=SPARSE,
        options={**WINDOW_FULL, "mlp_layer_types": ["sparse", "sparse"]},
    ),
    Family(
        "dbrx",
        "transformers-community/dbrx-instruct",
        # Its experts are rows of matrices, which no module maps.
        place="decoder (blocks.*) causal 0-1: norm_attn_norm.attn[Wqkv > out_proj]",
        without=dict.fromkeys(("Adapter", "UniPELT"), "'ffn'"),
        options={
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 500000},
            "ffn_config": {"moe_num_experts": 4, "moe_top_k": 2, "ffn_hidden_size": 64},
        },
    ),
    Family(
        "deepseek_v2",
        "deepseek-ai/DeepSeek-V2",
        place=LATENT_FIRST_DENSE,
        options={
            **LATENT_SIZES,
            "first_k_dense_replace": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "topk_method": "group_limited_greedy",
            "n_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 16.0,
        },
    ),
    Family(
        "deepseek_v2",
        "deepseek-ai/DeepSeek-V2-Lite",
        name="deepseek_v2-lite",
        place=LATENT_FIRST_DENSE.replace("q_b_proj", "q_proj"),
        options={
            **LATENT_SIZES,
            "q_lora_rank": None,
            "first_k_dense_replace": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    Family(
        "deepseek_v3",
        "deepseek-ai/DeepSeek-V3",
        place=LATENT_FIRST_DENSE,
        options={**LATENT_SIZES, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
    ),
    Family(
        "deepseek_v32",
        "deepseek-ai/DeepSeek-V3.2-Exp",
        place=LATENT_FIRST_DENSE,
        options={**INDEXED, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
    ),
    Family(
        "deepseek_v4",
        "deepseek-ai/DeepSeek-V4-Flash-Base",
        place="decoder (layers.*) causal 0-2: self_attn[q_b_proj kv_proj > o_b_proj] mlp",
        options={
            "num_hidden_layers": 3,
            "layer_types": [
                "sliding_attention",
                "compressed_sparse_attention",
                "heavily_compressed_attention",
            ],
            "mlp_layer_types": ["hash_moe", "moe", "moe"],
            "compress_rates": {
                "compressed_sparse_attention": 2,
                "heavily_compressed_attention": 4,
            },
            "sliding_window": 4,
            "head_dim": 16,
            "partial_rotary_factor": 0.25,
            "qk_rope_head_dim": 4,
            "q_lora_rank": 16,
            "o_groups": 2,
            "o_lora_rank": 8,
            "index_n_heads": 4,
            "index_head_dim": 8,
            "index_topk": 2,
        },
    ),
    Family(
        "doge",
        "SmallDoge/Doge-120M-MoE",
        name="doge-moe",
        place=f"decoder (layers.*) causal 0-1: {QKVO} mlp[gate_proj up_proj > down_proj]",
        options={
            "is_moe": True,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "num_key_value_heads": 2,
        },
    ),
    Family(
        "dots1",
        "rednote-hilab/dots.llm1.base",
        place=FIRST_DENSE,
        options={
            "n_routed_experts": 4,
            "n_shared_experts": 2,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        },
    ),
    Family(
        "dots3_note_text",
        "dots-studio/dots3-note-prev",
        place=LATENT_FIRST_DENSE,
        options={
            **INDEXED,
            "layer_types": ["indexed_attention", "sliding_attention"],
            "sliding_window": 4,
            "num_key_value_heads": 4,
            "shared_experts_intermediate_size": 32,
            "head_dim": 12,
            "per_layer_config": {
                1: {
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "q_lora_rank": 16,
                    "kv_lora_rank": 16,
                    "head_dim": 16,
                    "qk_nope_head_dim": 12,
                    "qk_rope_head_dim": 4,
                    "v_head_dim": 8,
                }
            },
        },
    ),
    Family(
        "ernie4_5_moe",
        "baidu/ERNIE-4.5-21B-A3B-PT",
        place=FIRST_DENSE,
        options={"moe_layer_end_index": 1},
    ),
    Family(
        "exaone_moe",
        "LGAI-EXAONE/K-EXAONE-236B-A23B",
        place=FIRST_DENSE,
        options={**WINDOW_FULL, **DENSE_SPARSE},
    ),
    Family("flex_olmo", "allenai/FlexOlmo-7x7B-1T", place=SPARSE),
    Family(
        "flint",
        "RecursiveSI/flint",
        place=FIRST_DENSE,
        options={**FULL_WINDOW, "mlp_only_layers": [0]},
    ),
    Family(
        "gemma4_text",
        "google/gemma-4-26B-A4B",
        name="gemma4_text-moe",
        place=f"decoder (layers.*) causal 0: {QKVO} experts, "
        "1: self_attn[q_proj k_proj > o_proj] experts",
        options={
            **WINDOW_FULL,
            "per_layer_config": {1: {"head_dim": 16, "num_key_value_heads": 1}},
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
    ),
    Family("glm4_moe", "zai-org/GLM-4.5", place=FIRST_DENSE, options={"attention_bias": True}),
    Family(
        "glm4_moe_lite",
        "zai-org/GLM-4.7-Flash",
        place=LATENT_FIRST_DENSE,
        options={**LATENT_SIZES, **DENSE_SPARSE},
    ),
    Family(
        "glm_moe_dsa",
        "zai-org/GLM-5",
        place=LATENT_FIRST_DENSE,
        options={**INDEXED, "indexer_types": ["full", "full"], "first_k_dense_replace": 1},
    ),
    Family("gpt_oss", "openai/gpt-oss-20b", place=SPARSE, options=WINDOW_FULL),
    Family(
        "granitemoe",
        "ibm-granite/granite-3.0-1b-a400m-base",
        place=GRANITE,
        options=GRANITE_SCALES,
    ),
    Family(
        "granitemoe_swa",
        "ibm-granite/granite-swash-3b-a600m",
        place=GRANITE,
        options={**GRANITE_SCALES, **FULL_WINDOW},
    ),
    Family(
        "granitemoeshared",
        "ibm-research/moe-7b-1b-active-shared-experts",
        place=GRANITE,
        options={**GRANITE_SCALES, "shared_intermediate_size": 64},
    ),
    Family(
        "hunyuan_v1_moe",
        "tencent/Hunyuan-A13B-Instruct",
        place=SPARSE,
        options={"num_experts": 4, "moe_topk": 2, "head_dim": 8, "num_key_value_heads": 2},
    ),
    Family("hy_v3", "tencent/Hy3-preview", place=FIRST_DENSE, options=DENSE_SPARSE),
    Family(
        "hy_v4",
        "tencent/Hy4-preview",
        place=LATENT_FIRST_DENSE,
        options={**INDEXED, "indexer_types": ["full", "shared"]},
    ),
    Family(
        "inkling2_loop_text",
        "thinkingmachines/Inkling-2-Mini",
        place=f"decoder (layers.*) causal 0-5: {INKLING}",
        options={
            **INKLING_SIZES,
            "num_hidden_layers": 6,
            "layer_types": ["hybrid_sliding", "hybrid"] * 3,
            "n_layers_per_attn_res_block": 2,
            "loop_layer_index_start": 2,
            "loop_layer_index_end": 4,
            "loop_num_passes": 2,
            "loop_gate_rank": 4,
        },
    ),
    Family(
        "inkling2_text",
        "thinkingmachines/Inkling-2-Small-MXFP8",
        place=f"decoder (layers.*) causal 0-3: {INKLING}",
        options={
            **INKLING_SIZES,
            "num_hidden_layers": 4,
            "layer_types": ["hybrid_sliding", "hybrid"] * 2,
            "n_layers_per_attn_res_block": 2,
        },
    ),
    Family(
        "inkling_text",
        "thinkingmachines/Inkling",
        place=f"decoder (layers.*) causal 0: {QKVO} mlp[gate_proj up_proj > down_proj], "
        f"1: {QKVO} mlp",
        options={
            **INKLING_SIZES,
            **DENSE_SPARSE,
            "layer_types": ["hybrid_sliding", "hybrid"],
        },
    ),
    Family(
        "jetmoe",
        "jetmoe/jetmoe-8b",
        place="decoder (layers.*) causal 0-1: self_attention[? kv_proj > ?] mlp",
        without={"LoRA": "query", "UniPELT": "query"},
    ),
    Family(
        "kolibri1",
        "Aleph-Alpha/Kolibri-1",
        place=SPARSE,
        options=WINDOW_FULL,
    ),
    Family(
        "laguna",
        "poolside/laguna-XS.2",
        place=FIRST_DENSE,
        options={**WINDOW_FULL, **DENSE_SPARSE, "num_attention_heads_per_layer": [4, 8]},
    ),
    Family(
        "llama4_text",
        "meta-llama/Llama-4-Scout-17B-16E",
        place=SPARSE.replace("mlp", "feed_forward"),
        options={"attention_chunk_size": 4},
    ),
    Family(
        "llama4_text",
        "meta-llama/Llama-4-Maverick-17B-128E",
        name="llama4_text-maverick",
        place=FIRST_DENSE.replace("mlp", "feed_forward"),
        options={
            "moe_layers": [1],
            "interleave_moe_layer_step": 2,
            "use_qk_norm": False,
            "attention_chunk_size": 4,
        },
    ),
    Family(
        "longcat_flash",
        "meituan-longcat/LongCat-Flash-Chat",
        place="decoder (layers.*) causal 0-1: "
        + LATENT.replace("self_attn", "self_attn.0")
        + " "
        + LATENT.replace("self_attn", "self_attn.1")
        + " "
        + MLP.replace("mlp", "mlps.1"),
        options={**LATENT_SIZES, "qk_head_dim": 12, "zero_expert_num": 2},
    ),
    Family(
        "mellum",
        "JetBrains/Mellum2-12B-A2.5B-Base",
        place=SPARSE,
        options={**WINDOW_FULL, "mlp_layer_types": ["sparse", "sparse"]},
    ),
    Family(
        "mimo_v2_flash",
        "XiaomiMiMo/MiMo-V2-Flash",
        place=FIRST_DENSE,
        options={
            **DENSE_SPARSE,
            **FULL_WINDOW,
            "head_dim": 12,
            "v_head_dim": 8,
        },
    ),
    Family("minimax_m2", "MiniMaxAI/MiniMax-M2", place=SPARSE),
    Family(
        "minimax_m3_vl_text",
        "MiniMaxAI/MiniMax-M3",
        place=FIRST_DENSE.replace("mlp.gate_proj mlp.up_proj", "mlp.gate_up_proj"),
        options={
            **DENSE_SPARSE,
            "layer_types": ["full_attention", "minimax_m3_sparse"],
            "shared_intermediate_size": 64,
            "rotary_dim": 4,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_block_size": 2,
            "index_topk_blocks": 2,
        },
    ),
    Family("mixtral", "mistralai/Mixtral-8x7B-v0.1", place=SPARSE),
    Family("olmoe", "allenai/OLMoE-1B-7B-0924", place=SPARSE),
    Family(
        "phimoe",
        "microsoft/Phi-3.5-MoE-instruct",
        place=SPARSE,
        options={"attention_bias": True, "lm_head_bias": True},
    ),
    Family("qwen2_moe", "Qwen/Qwen1.5-MoE-A2.7B", place=SPARSE),
    Family("qwen3_moe", "Qwen/Qwen3-30B-A3B-Base", place=SPARSE, options={"norm_topk_prob": True}),
    Family(
        "sarvam_mla",
        "sarvamai/sarvam-105b",
        place=LATENT_FIRST_DENSE.replace("q_b_proj", "q_proj"),
        options={**LATENT_SIZES, "q_lora_rank": None, "num_key_value_heads": 4},
    ),
    Family("sarvam_moe", "sarvamai/sarvam-30b", place=FIRST_DENSE),
    Family("solar_open", "upstage/Solar-Open-100B", place=SPARSE),
    Family(
        "zaya",
        "Zyphra/ZAYA1-8B",
        # Its keys mix both projections; k_proj would be the honest one.
        place="decoder (layers.*) causal 0-1: "
        "self_attn[qkv_proj.q_proj qkv_proj.v_proj_current > o_proj] mlp",
        options={"router_hidden_size": 16},
    ),
]
