"""Language models that read images of any size, as a grid of patches."""

import torch

from families._inputs_multimodal import fixed, pictured, pixels, words
from families._multimodal import (
    BART,
    CLIP,
    DEEP,
    DELTA_NET,
    DENSE_SPARSE,
    FC,
    FUSED,
    FUSED_GATED,
    GATED,
    GLM_TOKENS,
    INDEX,
    INKLING_SIZES,
    LATENT,
    LINEAR_FC,
    LLAMA,
    MUSE_VISION,
    PATCH_WINDOWS,
    SECTIONS,
    SELF,
    TEXT,
    TOKENS,
    VISION_MODEL,
    WINDOWS,
)
from families.family import Family

FAMILIES = [
    Family(
        "cohere_compass",
        "CohereLabs/North-Micro-Vision-Instruct",
        f"vision (visual.blocks.*) 0-1: {FUSED} {LINEAR_FC}; {TEXT}",
        TOKENS
        | {
            "vision_config": DEEP,
            "text_config": {
                "num_key_value_heads": 2,
                **WINDOWS,
                "rope_parameters": {"full_attention": SECTIONS, "sliding_attention": SECTIONS},
            },
        },
    ),
    Family(
        "colqwen2",
        "vidore/colqwen2-v1.0-hf",
        f"vision (vlm.visual.blocks.*) 0-1: {FUSED} {FC}; text "
        f"(vlm.language_model.layers.*) causal 0-1: {LLAMA}",
        {
            "vlm_config": TOKENS | {"text_config": {"rope_parameters": SECTIONS}},
            "embedding_dim": 16,
        },
        fixed(
            input_ids=words(4, 100),
            pixel_values=pixels(1, 16, 1176),
            image_grid_thw=torch.tensor([[1, 4, 4]]),
            attention_mask=torch.ones(1, 12, dtype=torch.long),
        ),
        auto="AutoModelForPreTraining",
    ),
    Family(
        "cosmos3_edge",
        "nvidia/Cosmos3-Edge",
        f"vision (visual.encoder.layers.*) 0-1: {CLIP}; text (language_model.layers.*) "
        f"causal 0-1: {SELF} {FC}",
        TOKENS
        | {
            "vision_config": {"num_patches": 16},
            "projector_hidden_size": 64,
            "text_config": {"rope_parameters": SECTIONS},
        },
    ),
    Family(
        "cosmos3_omni",
        "nvidia/Cosmos3-Nano",
        f"vision (visual.blocks.*) 0-1: {FUSED} {LINEAR_FC}; {TEXT}",
        TOKENS
        | {
            "vision_config": DEEP,
            "text_config": {
                "num_key_value_heads": 2,
                "rope_parameters": SECTIONS | {"mrope_interleaved": True},
            },
        },
    ),
    Family(
        "dots3_note",
        "dots-studio/dots3-note-prev",
        f"vision (vision_tower.blocks.*) 0: {FUSED} {GATED}, 1: {FUSED} mlp; text "
        "(language_model.layers.*) causal 0: self_attn[q_b_proj kv_b_proj > o_proj] "
        f"{GATED}, 1: self_attn[q_b_proj kv_b_proj > o_proj] mlp",
        {
            "image_token_id": 100,
            "video_token_id": 101,
            "audio_token_id": 102,
            "text_config": {
                "per_layer_config": {},
                **DENSE_SPARSE,
                "layer_types": ["indexed_attention", "sliding_attention"],
                **LATENT,
                "q_lora_rank": 16,
                "qk_rope_head_dim": 4,
                **INDEX,
                "head_dim": 12,
                "sliding_window": 16,
            },
            "vision_config": {
                "per_layer_config": {},
                **DENSE_SPARSE,
                "adapter_in_dim": 32,
                "adapter_out_dim": 32,
            },
            "audio_config": {
                "adapter_input_size": 32,
                "adapter_out_dim": 32,
                "downsample_hidden_size": 16,
                "conv_output_size": 256,
            },
        },
    ),
    Family(
        "ernie4_5_vl_moe",
        "baidu/ERNIE-4.5-VL-28B-A3B-PT",
        f"vision (vision_tower.blocks.*) 0-1: {FUSED} {FC}; text (language_model.layers.*) "
        f"causal 0: {LLAMA}, 1: {SELF} mlp",
        TOKENS
        | {
            **GLM_TOKENS,
            "text_config": {
                "moe_intermediate_size": [32, 16],
                **DENSE_SPARSE,
                "rope_parameters": SECTIONS | {"mrope_section": [1, 1, 2]},
            },
        },
    ),
    Family(
        "exaone4_5",
        "LGAI-EXAONE/EXAONE-4.5-33B",
        f"vision (visual.blocks.*) 0-1: {FUSED} {GATED}; {TEXT}",
        TOKENS
        | {
            "vision_config": {**PATCH_WINDOWS, "num_key_value_heads": 2},
            "text_config": {"num_key_value_heads": 2, **WINDOWS},
        },
    ),
    Family(
        "glm46v",
        "zai-org/GLM-4.6V-Flash",
        f"vision (visual.blocks.*) 0-1: {FUSED} {GATED}; text (language_model.layers.*) "
        f"causal 0-1: {SELF} {FUSED_GATED}",
        TOKENS
        | {
            **GLM_TOKENS,
            "vision_config": {"image_size": 56},
            "text_config": {"rope_parameters": SECTIONS},
        },
    ),
    Family(
        "glm4v",
        "zai-org/GLM-4.1V-9B-Thinking",
        f"vision (visual.blocks.*) 0-1: {FUSED} {GATED}; text (language_model.layers.*) "
        f"causal 0-1: {SELF} {FUSED_GATED}",
        TOKENS
        | {
            **GLM_TOKENS,
            "vision_config": {"image_size": 56},
            "text_config": {"rope_parameters": SECTIONS},
        },
    ),
    Family(
        "glm4v_moe",
        "zai-org/GLM-4.5V",
        f"vision (visual.blocks.*) 0-1: {FUSED} {GATED}; text (language_model.layers.*) "
        f"causal 0: {LLAMA}, 1: {SELF} mlp",
        TOKENS
        | {
            **GLM_TOKENS,
            "vision_config": {"image_size": 56},
            "text_config": {
                "rope_parameters": SECTIONS
                | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}
            },
        },
    ),
    Family(
        "glm5_next",
        "zai-org/GLM-5.3-Flash",
        f"vision (visual.blocks.*) 0-1: {FUSED} {GATED}; text (language_model.layers.*) "
        f"causal 0: {GATED}, 1: self_attn[q_b_proj kv_b_proj > o_proj] mlp",
        TOKENS
        | {
            "vision_config": {
                "image_size": 56,
                "projection_intermediate_size": 64,
                "out_hidden_size": 32,
            },
            "text_config": {
                **DENSE_SPARSE,
                "layer_types": ["linear_attention", "indexed_attention"],
                "indexer_types": ["full", "full"],
                **LATENT,
                "q_lora_rank": 16,
                "qk_head_dim": 8,
                **INDEX,
                "linear_head_dim": 8,
                "linear_num_heads": 4,
                "index_kpool": 2,
            },
        },
    ),
    Family(
        "glm_image",
        "zai-org/GLM-Image",
        # No gradient passes the codes of its images.
        "vision (visual.blocks.*) 0-1: -; text (language_model.layers.*) "
        f"causal 0-1: {SELF} {FUSED_GATED}",
        {
            "image_token_id": 100,
            "image_start_token_id": 101,
            "image_end_token_id": 102,
            "vision_config": {"image_size": 64},
            "text_config": {"vision_vocab_size": 16, "rope_parameters": SECTIONS},
            "vq_config": {"latent_channels": 32, "num_embeddings": 16},
        },
        fixed(
            input_ids=words(16, 100),
            pixel_values=pixels(16, 768),
            image_grid_thw=torch.tensor([[1, 4, 4], [1, 4, 4]]),
            images_per_sample=torch.tensor([2]),
        ),
    ),
    Family(
        "glm_ocr",
        "zai-org/GLM-OCR",
        f"vision (visual.blocks.*) 0-1: {FUSED} {GATED}; text (language_model.layers.*) "
        f"causal 0-1: {SELF} {FUSED_GATED}",
        TOKENS
        | {
            **GLM_TOKENS,
            "vision_config": {"image_size": 56},
            "text_config": {"rope_parameters": SECTIONS},
        },
    ),
    Family(
        "glmga",
        "zai-org/GLM-GA",
        f"vision (visual.blocks.*) 0-1: {FUSED} {GATED}; text (language_model.layers.*) "
        f"causal 0-1: {SELF} {FUSED_GATED}",
        TOKENS
        | {
            **GLM_TOKENS,
            "vision_config": {"image_size": 56},
            "text_config": {"rope_parameters": SECTIONS},
        },
    ),
    Family(
        "hunyuan_vl",
        "tencent/HunyuanOCR",
        f"vision (vision_tower.layers.*) 0-1: {SELF} {FC}; {TEXT}",
        TOKENS
        | {
            "text_config": {
                "head_dim": 8,
                "rope_parameters": SECTIONS | {"mrope_section": [1, 1, 1, 1]},
            },
            "im_start_id": 104,
            "im_end_id": 105,
            "im_newline_id": 106,
        },
    ),
    Family(
        "hy_v4_vl",
        "tencent/Hy4",
        f"vision (vision_tower.layers.*) 0-1: {SELF} {FC}; text (language_model.layers.*) "
        f"causal 0: self_attn[q_b_proj kv_b_proj > o_proj] {GATED}, 1: self_attn[q_b_proj "
        "kv_b_proj > o_proj] mlp",
        TOKENS
        | {
            "text_config": {
                **DENSE_SPARSE,
                "layer_types": ["indexed_attention", "indexed_attention"],
                "indexer_types": ["full", "shared"],
                "q_lora_rank": 16,
                **LATENT,
                "qk_rope_head_dim": 4,
                **INDEX,
                "head_dim": 4,
                "rope_parameters": SECTIONS | {"mrope_section": [2, 0, 0]},
            }
        },
    ),
    Family(
        "hyperclovax_vision_v2",
        "naver-hyperclovax/HyperCLOVAX-SEED-Think-32B",
        f"vision (vision_model.blocks.*) 0-1: {FUSED} {GATED}; {TEXT}",
        TOKENS | {"vision_config": PATCH_WINDOWS, "text_config": {"use_post_norm": True}},
    ),
    Family(
        "inkling2",
        "thinkingmachines/Inkling-2-Small-MXFP8",
        f"vision (vision_tower.layers.*) 0-1: {CLIP}; text (language_model.layers.*) "
        "causal 0-1: self_attn[q_proj.linear k_proj.linear v_proj.linear > o_proj.linear] "
        "mlp",
        {
            "image_token_id": 100,
            "text_config": {
                "layer_types": ["hybrid_sliding", "hybrid"],
                **INKLING_SIZES,
                "unpadded_vocab_size": 128,
                "n_layers_per_attn_res_block": 1,
            },
            "vision_config": {"posemb_grid_size": 4, "projection_hidden_dim": 64},
        },
        pictured(4, 40, 40, 3, tokens=4, image_grid_thw=torch.tensor([[1, 2, 2]])),
    ),
    Family(
        "inkling2_loop",
        "thinkingmachines/Inkling-2-Mini",
        f"vision (vision_tower.layers.*) 0-1: {CLIP}; text (language_model.layers.*) "
        "causal 0-2: self_attn[q_proj.linear k_proj.linear v_proj.linear > o_proj.linear] "
        "mlp",
        {
            "image_token_id": 100,
            "text_config": {
                "num_hidden_layers": 3,
                "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
                **INKLING_SIZES,
                "unpadded_vocab_size": 128,
                "n_layers_per_attn_res_block": 1,
                "loop_layer_index_start": 1,
                "loop_layer_index_end": 2,
                "loop_num_passes": 2,
                "loop_gate_rank": 4,
            },
            "vision_config": {"posemb_grid_size": 4, "projection_hidden_dim": 64},
        },
        pictured(4, 40, 40, 3, tokens=4, image_grid_thw=torch.tensor([[1, 2, 2]])),
    ),
    Family(
        "kimi_k25",
        "moonshotai/Kimi-K2.6",
        f"vision (vision_tower.layers.*) 0-1: attn[q_proj k_proj v_proj > proj] {FC}; text "
        "(language_model.layers.*) causal 0: self_attn[q_b_proj kv_b_proj > o_proj] "
        f"{GATED}, 1: self_attn[q_b_proj kv_b_proj > o_proj] mlp",
        TOKENS
        | {
            "vision_config": {"pos_emb_height": 4, "pos_emb_width": 4},
            "text_config": {
                **LATENT,
                "q_lora_rank": 16,
                "qk_rope_head_dim": 4,
                "first_k_dense_replace": 1,
                "n_group": 2,
                "topk_group": 1,
                "head_dim": 4,
                "qk_head_dim": 12,
            },
            "projection_hidden_size": 32,
        },
    ),
    Family(
        "lfm3_vl",
        "LiquidAI/LFM3-VL-2B",
        "vision (vision_tower.layers.*) 0: feed_forward.w2[feed_forward.w1 "
        f"feed_forward.w3 > feed_forward.w2], 1: {BART} feed_forward.w2[feed_forward.w1 "
        "feed_forward.w3 > feed_forward.w2]; text (language_model.layers.*) causal 0: "
        f"feed_forward.w2[feed_forward.w1 feed_forward.w3 > feed_forward.w2], 1-2: {SELF} "
        "feed_forward.w2[feed_forward.w1 feed_forward.w3 > feed_forward.w2]",
        TOKENS
        | {
            "vision_config": {"layer_types": ["conv", "full_attention"]},
            "text_config": {
                "num_hidden_layers": 3,
                "layer_types": ["conv", "sliding_attention", "full_attention"],
                "sliding_window": 16,
            },
            "projector_hidden_size": 64,
        },
    ),
    Family(
        "minimax_m3_vl",
        "MiniMaxAI/MiniMax-M3",
        f"vision (vision_tower.layers.*) 0-1: {CLIP}; text (language_model.layers.*) "
        f"causal 0: {SELF} {FUSED_GATED}, 1: {SELF} mlp",
        {
            "image_token_index": 100,
            "video_token_index": 101,
            "vision_config": {"image_size": 56},
            "text_config": {
                **DENSE_SPARSE,
                "layer_types": ["full_attention", "full_attention"],
                "rotary_dim": 4,
                "shared_intermediate_size": 32,
            },
            "projector_hidden_size": 32,
            "merged_hidden_size": 128,
        },
    ),
    Family(
        "muse_glimmer",
        "meta-models/Muse-Glimmer-30B",
        f"vision (vision_tower.layers.*) 0-1: attn[q_proj k_proj v_proj > proj] {FC}; {TEXT}",
        TOKENS
        | {
            "vision_config": MUSE_VISION,
            "text_config": {**WINDOWS, "layer_rope_theta": [10000.0, 0]},
            "out_hidden_size": 128,
            "projector_hidden_size": 32,
        },
    ),
    Family(
        "muse_spark",
        "meta-models/Muse-Spark-Open-816B-A42B",
        f"vision (vision_tower.layers.*) 0-1: attn[q_proj k_proj v_proj > proj] {FC}; text "
        f"(language_model.layers.*) causal 0: {LLAMA}, 1: {SELF} mlp",
        TOKENS
        | {
            "vision_config": MUSE_VISION,
            "text_config": {
                **WINDOWS,
                "layer_rope_theta": [10000.0, 0],
                **DENSE_SPARSE,
                "moe_hidden_size": 16,
            },
            "audio_config": {
                "hidden_sizes": [8, 8, 8, 8],
                "depths": [1, 1, 1, 1],
                "num_hidden_layers": 4,
            },
            "out_hidden_size": 128,
            "projector_hidden_size": 32,
        },
    ),
    Family(
        "paddleocr_vl",
        "PaddlePaddle/PaddleOCR-VL",
        f"vision (visual.vision_model.encoder.layers.*) 0-1: {CLIP}; {TEXT}",
        TOKENS
        | {"vision_config": {"image_size": 56}, "text_config": {"rope_parameters": SECTIONS}},
    ),
    Family(
        "qwen2_5_omni_thinker",
        "Qwen/Qwen2.5-Omni-7B",
        f"audio (audio_tower.layers.*) 0-1: {BART} fc2[fc1 > fc2]; vision "
        f"(visual.blocks.*) 0-1: attn[q k v > proj] {GATED}; {TEXT}",
        TOKENS
        | {
            "audio_token_id": 104,
            "vision_config": PATCH_WINDOWS,
            "text_config": {"rope_parameters": SECTIONS, "num_key_value_heads": 2},
            "audio_config": {"num_mel_bins": 16, "n_window": 8},
        },
    ),
    Family(
        "qwen2_5_vl",
        "Qwen/Qwen2.5-VL-3B-Instruct",
        f"vision (visual.blocks.*) 0-1: {FUSED} {GATED}; {TEXT}",
        TOKENS | {"vision_config": PATCH_WINDOWS, "text_config": {"rope_parameters": SECTIONS}},
    ),
    Family(
        "qwen2_vl",
        "Qwen/Qwen2-VL-2B-Instruct",
        f"vision (visual.blocks.*) 0-1: {FUSED} {FC}; {TEXT}",
        TOKENS | {"text_config": {"rope_parameters": SECTIONS}},
    ),
    Family(
        "qwen3_5",
        "Qwen/Qwen3.5-27B",
        f"vision (visual.blocks.*) 0-1: {FUSED} {LINEAR_FC}; text "
        f"(language_model.layers.*) causal 0: {GATED}, 1: {LLAMA}",
        TOKENS
        | {
            "vision_config": {"num_position_embeddings": 16},
            "text_config": {
                **DELTA_NET,
                "rope_parameters": SECTIONS
                | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]},
            },
        },
    ),
    Family(
        "qwen3_5_moe",
        "Qwen/Qwen3.5-35B-A3B",
        f"vision (visual.blocks.*) 0-1: {FUSED} {LINEAR_FC}; text "
        f"(language_model.layers.*) causal 0: mlp, 1: {SELF} mlp",
        TOKENS
        | {
            "vision_config": {"num_position_embeddings": 16},
            "text_config": {
                **DELTA_NET,
                "rope_parameters": SECTIONS
                | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]},
            },
        },
    ),
    Family(
        "qwen3_omni_moe_thinker",
        "Qwen/Qwen3-Omni-30B-A3B-Instruct",
        f"audio (audio_tower.layers.*) 0-1: {BART} fc2[fc1 > fc2]; vision "
        f"(visual.blocks.*) 0-1: {FUSED} {LINEAR_FC}; text (language_model.layers.*) "
        f"causal 0-1: {SELF} mlp",
        TOKENS
        | {
            "audio_token_id": 104,
            "audio_config": {"downsample_hidden_size": 16},
            "vision_config": DEEP,
            "text_config": {
                "rope_parameters": SECTIONS | {"mrope_interleaved": True},
                "num_key_value_heads": 2,
            },
        },
    ),
    Family(
        "qwen3_vl",
        "Qwen/Qwen3-VL-4B-Instruct",
        f"vision (visual.blocks.*) 0-1: {FUSED} {LINEAR_FC}; {TEXT}",
        TOKENS
        | {
            "vision_config": DEEP,
            "text_config": {
                "num_key_value_heads": 2,
                "rope_parameters": SECTIONS | {"mrope_interleaved": True},
            },
        },
    ),
    Family(
        "qwen3_vl_moe",
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
        f"vision (visual.blocks.*) 0-1: {FUSED} {LINEAR_FC}; text "
        f"(language_model.layers.*) causal 0-1: {SELF} mlp",
        TOKENS
        | {
            "vision_config": DEEP,
            "text_config": {
                "num_key_value_heads": 2,
                "rope_parameters": SECTIONS | {"mrope_interleaved": True},
            },
        },
    ),
    Family(
        "qwen4_exp",
        "Qwen/Qwen4-Exp",
        f"vision (visual.blocks.*) 0-1: {FUSED} {LINEAR_FC}; text "
        f"(language_model.layers.*) causal 0: mlp, 1: {SELF} mlp",
        TOKENS
        | {
            "vision_config": {"num_position_embeddings": 16},
            "text_config": {
                "layer_types": ["linear_attention", "indexed_attention"],
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "hc_lowrank": 8,
                "indexer_n_heads": 4,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 8,
                "indexer_budget": 4,
                "indexer_compress_ratio": 2,
                "rope_parameters": SECTIONS,
            },
        },
    ),
    Family(
        "video_llama_3",
        "lkhl/VideoLLaMA3-2B-Image-HF",
        f"{VISION_MODEL}; {TEXT}",
        TOKENS | {"text_config": {"num_key_value_heads": 2}},
    ),
]
