"""Language models that read image tokens."""

import torch

from families._inputs_multimodal import fixed, pictured, pixels, words
from families._multimodal import (
    BART,
    BERT,
    CLIP,
    DELTA_NET,
    DENSE_SPARSE,
    FC,
    FUSED_GATED,
    GATED,
    GEMMA_VISION,
    INDEX,
    INKLING_SIZES,
    LATENT,
    LLAMA,
    QFORMER,
    QFORMER_SELF,
    SAM,
    SAM_SIZES,
    SELF,
    TEXT,
    TWO_STREAMS,
    TWO_STREAMS_SELF,
    VISION,
    VISION_MODEL,
    WINDOWS,
)
from families.family import Family

FAMILIES = [
    Family(
        "apertus1p5",
        "swiss-ai/Apertus-v1.5-8B",
        # Images and sounds become words before the model.
        place="decoder (language_model.layers.*) causal 0-1: "
        f"{SELF} mlp.down_proj[mlp.up_proj > mlp.down_proj]",
        options={
            "image_token_id": 120,
            "audio_token_id": 121,
            "image_token_offset": 20,
            "audio_token_offset": 36,
            "vision_config": {
                "base_channels": 32,
                "embed_dim": 8,
                "latent_channels": 8,
                "codebook_size": 16,
                "channel_multiplier": [1, 1, 1, 1],
                "num_res_blocks": 1,
                "attn_resolutions": [],
            },
            "audio_config": {
                "codebook_dim": 32,
                "codebook_size": 16,
                "num_filters": 4,
                "upsampling_ratios": [2, 2],
                "num_lstm_layers": 1,
            },
        },
    ),
    Family(
        "aria",
        "rhymes-ai/Aria",
        f"{VISION}; text (language_model.layers.*) causal 0-1: {SELF} mlp",
        {
            "vision_config": {"image_size": 64},
            "image_token_index": 100,
            "projector_patch_to_query_dict": {"4": 2},
            "max_value_projector_patch_to_query_dict": 2,
        },
    ),
    Family(
        "aya_vision",
        "CohereLabs/aya-vision-8b",
        f"{VISION}; {TEXT}",
        {"vision_config": {"image_size": 56}, "text_config": {"num_key_value_heads": 2, **WINDOWS}},
    ),
    Family(
        "blip-2",
        "Salesforce/blip2-opt-2.7b",
        f"vision (vision_model.encoder.layers.*) 0-1: self_attn[qkv > projection] {FC}; "
        f"qformer (qformer.encoder.layer.*) 0: {QFORMER}, 1: {QFORMER_SELF}; text "
        f"(language_model.model.decoder.layers.*) causal 0-1: {BART} fc2[fc1 > fc2]",
        {
            "vision_config": {"image_size": 28},
            "num_query_tokens": 4,
            "image_token_index": 100,
            "qformer_config": {"encoder_hidden_size": 32},
        },
    ),
    Family(
        "chameleon",
        "facebook/chameleon-7b",
        f"decoder (layers.*) causal 0-1: {LLAMA}",
        {
            "vq_config": {
                "embed_dim": 16,
                "num_embeddings": 16,
                "latent_channels": 16,
                "resolution": 32,
                "base_channels": 32,
                "channel_multiplier": [1, 1, 1, 1, 1],
                "num_res_blocks": 1,
            },
            "vocabulary_map": {"<image>": 100}
            | {f"IMGIMG{'ABCDEFGHIJ'[n // 10]}{'ABCDEFGHIJ'[n % 10]}Z": 50 + n for n in range(16)},
            "image_token_id": 100,
        },
    ),
    Family(
        "cohere2_vision",
        "CohereLabs/command-a-vision-07-2025",
        f"{VISION}; {TEXT}",
        {
            "vision_config": {"image_size": 64},
            "text_config": {"num_key_value_heads": 2, **WINDOWS},
            "alignment_intermediate_size": 64,
        },
    ),
    Family(
        "colmodernvbert",
        "ModernVBERT/colmodernvbert-merged",
        f"vision (vlm.vision_model.encoder.layers.*) 0-1: {CLIP}; text "
        "(vlm.text_model.layers.*) 0-1: attn[Wqkv > Wo] mlp.Wo[mlp.Wi > mlp.Wo]",
        {
            "vlm_config": {
                "vision_config": {"image_size": 64, "vision_use_head": False},
                "image_token_id": 100,
                "pixel_shuffle_factor": 2,
            },
            "embedding_dim": 16,
        },
        auto="AutoModelForPreTraining",
    ),
    Family(
        "colpali",
        "vidore/colpali-v1.3-hf",
        f"vision (vlm.vision_tower.encoder.layers.*) 0-1: {CLIP}; text "
        f"(vlm.language_model.layers.*) 0-1: {LLAMA}",
        {"vlm_config": {"vision_config": {"image_size": 28}}, "embedding_dim": 16},
        auto="AutoModelForPreTraining",
    ),
    Family(
        "deepseek_ocr2",
        "deepseek-community/DeepSeek-OCR-2",
        f"vision_sam (vision_tower.sam_encoder.layers.*) 0-1: {SAM}; vision "
        f"(vision_tower.vision_encoder.layers.*) causal 0-1: {LLAMA}; text "
        f"(language_model.layers.*) causal 0: {LLAMA}, 1: {SELF} mlp",
        {
            "vision_config": {
                "sam_config": {**SAM_SIZES, "output_channels": 16, "downsample_channels": [16, 32]},
                "encoder_config": {"num_key_value_heads": 2},
            },
            "text_config": {
                **DENSE_SPARSE,
                "n_group": 1,
                "topk_group": 1,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 32,
            },
        },
    ),
    Family(
        "deepseek_vl",
        "deepseek-community/deepseek-vl-1.3b-chat",
        f"{VISION_MODEL}; {TEXT}",
        {"vision_config": {"image_size": 32}},
    ),
    Family(
        "deepseek_vl_hybrid",
        "deepseek-community/deepseek-vl-7b-chat",
        f"{VISION_MODEL}; high_res_vision (high_res_vision_model.vision_encoder.layers.*) "
        f"0-1: {SAM}; {TEXT}",
        {
            "vision_config": {"image_size": 32},
            "high_res_vision_config": {**SAM_SIZES, "output_channels": 32, "num_pos_feats": 16},
        },
        pictured(1, 3, 32, 32, tokens=4, high_res_pixel_values=pixels(1, 3, 128, 128)),
    ),
    Family(
        "diffusion_gemma",
        "google/diffusiongemma-26B-A4B-it",
        # Beside the dense feed-forward stand experts, and neither is the block's.
        "text (encoder.language_model.layers.*) causal 0: self_attn[q_proj k_proj v_proj > "
        "o_proj], 1: self_attn[q_proj k_proj > o_proj]; decoder (decoder.layers.*) 0: "
        "self_attn[q_proj k_proj v_proj > o_proj], 1: self_attn[q_proj k_proj > o_proj]",
        {
            "text_config": {
                "per_layer_config": {"01": {"head_dim": 16}},
                **WINDOWS,
                "num_experts": 4,
                "top_k_experts": 2,
                "moe_intermediate_size": 16,
            },
            "vision_config": {
                "pooling_kernel_size": 2,
                "patch_size": 4,
                "position_embedding_size": 16,
            },
            "canvas_length": 8,
        },
        without=dict.fromkeys(("Adapter", "UniPELT"), "'ffn'"),
    ),
    Family(
        "embedding_gemma2",
        "google/embeddinggemma-2",
        "vision (vision_tower.encoder.layers.*) 0-1: self_attn[q_proj.linear "
        "k_proj.linear v_proj.linear > o_proj.linear] "
        "mlp.down_proj.linear[mlp.gate_proj.linear mlp.up_proj.linear > "
        f"mlp.down_proj.linear]; text (language_model.layers.*) 0-1: {LLAMA}",
        {
            "text_config": {
                "per_layer_config": {"01": {"head_dim": 16, "num_key_value_heads": 1}},
                **WINDOWS,
            },
            "image_token_id": 100,
            "video_token_id": 101,
            "audio_token_id": 102,
            "vision_config": GEMMA_VISION,
        },
    ),
    Family(
        "emu3",
        "Emu3-community/Emu3-Chat-hf",
        "vqmodel (vqmodel.encoder.down_block.down.*.attn.*) 0: -; "
        f"text (text_model.layers.*) causal 0-1: {LLAMA}",
        {
            "vq_config": {
                "codebook_size": 16,
                "embed_dim": 4,
                "base_channels": 32,
                "channel_multiplier": [1, 1, 1, 1],
                "num_res_blocks": 1,
                "attn_resolutions": [1],
                "num_attention_heads": 1,
            },
            "vocabulary_map": {"<image>": 100, "<|extra_200|>": 99}
            | {f"<|visual token {number:06d}|>": 50 + number for number in range(16)},
            "image_token_id": 100,
        },
    ),
    Family(
        "evolla",
        "westlake-repl/Evolla-10B-hf",
        f"protein_encoder (protein_encoder.model.encoder.layer.*) 0-1: {BERT}; "
        "protein_sequence_compressor_resampler "
        "(protein_encoder.sequence_compressor_resampler.layers.*) causal 0-1: x0[to_q to_kv > "
        f"to_out] 1.fc2[1.fc1 > 1.fc2]; decoder (layers.*) causal 0: {LLAMA}, 1: {SELF} "
        f"xadapter[query key_protein value_protein > out_proj] {GATED}",
        {
            "protein_encoder_config": {"pad_token_id": 1, "mask_token_id": 4},
            "aligner_num_add_layers": 1,
            "resampler_depth": 2,
            "resampler_dim_head": 8,
            "resampler_heads": 4,
            "resampler_num_latents": 4,
        },
        fixed(
            input_ids=words(),
            attention_mask=torch.ones(1, 8, dtype=torch.long),
            protein_input_ids=words(),
            protein_attention_mask=torch.ones(1, 8, dtype=torch.long),
        ),
        auto="EvollaModel",
    ),
    Family(
        "florence2",
        "florence-community/Florence-2-base",
        # A block has a spatial and a channel half, of which the last has the feed-forward named.
        "vision (vision_tower.blocks.*.*) 0-4: spatial_block.window_attn[qkv > proj] "
        "channel_block.channel_attn[qkv > proj] channel_block.ffn.fc2[channel_block.ffn.fc1 > "
        "channel_block.ffn.fc2]; text_encoder "
        f"(language_model.encoder.layers.*) 0-1: {BART} fc2[fc1 > fc2]; text_decoder "
        f"(language_model.decoder.layers.*) causal 0-1: {BART} xencoder_attn[q_proj k_proj "
        "v_proj > out_proj] fc2[fc1 > fc2]",
        {
            "vision_config": {
                "embed_dim": [8, 16, 16, 32],
                "num_heads": [1, 2, 2, 4],
                "num_groups": [1, 2, 2, 4],
                "depths": [1, 1, 2, 1],
                "window_size": 4,
                "projection_dim": 32,
            }
        },
    ),
    Family(
        "fuyu",
        "adept/fuyu-8b",
        "decoder (language_model.layers.*) causal 0-1: self_attn[query_key_value > dense] "
        "mlp.dense_4h_to_h[mlp.dense_h_to_4h > mlp.dense_4h_to_h]",
        {"patch_size": 4, "image_size": 16},
    ),
    Family(
        "gemma3",
        "google/gemma-3-4b-it",
        f"{VISION}; {TEXT}",
        {
            "vision_config": {"image_size": 56, "patch_size": 14, "vision_use_head": False},
            "text_config": WINDOWS,
            "mm_tokens_per_image": 4,
        },
    ),
    Family(
        "gemma4",
        "google/gemma-4-e2b-it",
        "vision (vision_tower.encoder.layers.*) 0-1: self_attn[q_proj.linear "
        "k_proj.linear v_proj.linear > o_proj.linear] "
        "mlp.down_proj.linear[mlp.gate_proj.linear mlp.up_proj.linear > "
        f"mlp.down_proj.linear]; {TEXT}, 2-3: self_attn[q_proj ? > o_proj] {GATED}",
        {
            "image_token_id": 100,
            "video_token_id": 101,
            "audio_token_id": 102,
            "text_config": {
                "num_hidden_layers": 4,
                "num_kv_shared_layers": 2,
                "use_double_wide_mlp": True,
                "num_key_value_heads": 1,
                "per_layer_config": {1: {"head_dim": 16}, 3: {"head_dim": 16}},
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "sliding_window": 16,
                "vocab_size_per_layer_input": 128,
                "hidden_size_per_layer_input": 8,
            },
            "vision_config": GEMMA_VISION,
        },
    ),
    Family(
        "gemma4_unified",
        "google/gemma-4-12B-it",
        f"decoder (language_model.layers.*) causal 0-1: {LLAMA}",
        {
            "text_config": {"per_layer_config": {"01": {"head_dim": 16}}, **WINDOWS},
            "image_token_id": 100,
            "video_token_id": 101,
            "audio_token_id": 102,
            "vision_config": {
                "model_type": "gemma4_unified_vision",
                "patch_size": 4,
                "pooling_kernel_size": 1,
                "mm_embed_dim": 32,
                "mm_posemb_size": 16,
                "output_proj_dims": 32,
            },
        },
    ),
    Family(
        "git",
        "microsoft/git-base",
        f"image (image_encoder.vision_model.encoder.layers.*) 0-1: {CLIP}; encoder "
        f"(encoder.layer.*) causal 0-1: {BERT}",
        {"vision_config": {"image_size": 32}},
    ),
    Family(
        "got_ocr2",
        "stepfun-ai/GOT-OCR-2.0-hf",
        f"vision (vision_tower.layers.*) 0-1: {SAM}; {TEXT}",
        {"vision_config": {**SAM_SIZES, "output_channels": 32}},
    ),
    Family(
        "granite4_vision",
        "ibm-granite/granite-vision-4.0",
        f"vision (vision_tower.encoder.layers.*) 0-2: {CLIP}; layerwise_projectors "
        f"(layerwise_projectors.*.qformer.encoder.layer.*) causal 0: {QFORMER}; spatial_projectors "
        f"(spatial_projectors.*.qformer.encoder.layer.*) causal 0-3: {QFORMER}; text "
        f"(language_model.layers.*) causal 0-3: {LLAMA}",
        {
            "vision_config": {
                "model_type": "siglip_vision_model",
                "image_size": 64,
                "patch_size": 16,
                "num_hidden_layers": 3,
                "hidden_size": 64,
            },
            "vision_feature_select_strategy": "full",
            "image_grid_pinpoints": [[64, 128], [128, 64]],
            "qformer_config": {"hidden_size": 64, "encoder_hidden_size": 64},
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-2, 0]],
            "spatial_target_layers": [0, 1, 2, 3],
            "text_config": {"num_hidden_layers": 4},
        },
        pictured(1, 3, 3, 64, 64, tokens=14, image_sizes=torch.tensor([[64, 128]])),
    ),
    Family(
        "granite_docling",
        "ibm-granite/granite-for-docling-500m",
        f"{VISION_MODEL}; text (text_model.layers.*) causal 0-1: {LLAMA}",
        {
            "vision_config": {"image_size": 64, "deepstack_visual_indexes": [0], "scale_factor": 2},
            "image_token_id": 100,
        },
    ),
    Family(
        "idefics",
        "HuggingFaceM4/idefics-9b",
        f"{VISION_MODEL}; perceiver_resampler (perceiver_resampler.blocks.*) causal 0-1: x0[q_proj "
        "k_proj v_proj > output_proj] 1.c_proj[1.fc > 1.c_proj]; gated_cross_attn "
        "(gated_cross_attn_layers.*) causal 0-1: xcross_attn[q_proj k_proj v_proj > "
        f"o_proj] {GATED}; decoder (layers.*) causal 0-3: {LLAMA}",
        {
            "vision_config": {"image_size": 28},
            "perceiver_config": {
                "use_resampler": True,
                "resampler_n_latents": 4,
                "resampler_depth": 2,
                "resampler_n_heads": 4,
                "resampler_head_dim": 8,
            },
            "use_resampler": True,
            "cross_layer_interval": 2,
            "num_hidden_layers": 4,
            "qk_layer_norms": True,
            "alpha_initializer": "ones",
            "alpha_type": "vector",
        },
    ),
    Family(
        "idefics2",
        "HuggingFaceM4/idefics2-8b",
        f"{VISION_MODEL}; connector (connector.perceiver_resampler.layers.*) 0-1: {LLAMA}; "
        f"text (text_model.layers.*) causal 0-1: {LLAMA}",
        {
            "vision_config": {"image_size": 56, "patch_size": 14},
            "perceiver_config": {
                "resampler_n_latents": 4,
                "resampler_depth": 2,
                "resampler_n_heads": 4,
                "resampler_head_dim": 8,
            },
        },
    ),
    Family(
        "idefics3",
        "HuggingFaceM4/Idefics3-8B-Llama3",
        f"{VISION_MODEL}; text (text_model.layers.*) causal 0-1: {LLAMA}",
        {
            "vision_config": {"image_size": 56, "patch_size": 14},
            "text_config": {"num_key_value_heads": 2},
        },
    ),
    Family(
        "inkling_mm_model",
        "thinkingmachines/Inkling",
        f"decoder (language_model.layers.*) causal 0: {SELF} mlp[gate_proj up_proj > "
        f"down_proj], 1: {SELF} mlp",
        {
            "image_token_id": 100,
            "audio_token_id": 101,
            "text_config": {
                "layer_types": ["hybrid_sliding", "hybrid"],
                **DENSE_SPARSE,
                **INKLING_SIZES,
                "unpadded_vocab_size": None,
            },
            "vision_config": {"n_layers": 2},
        },
    ),
    Family(
        "instructblip",
        "Salesforce/instructblip-vicuna-7b",
        f"vision (vision_model.encoder.layers.*) 0-1: self_attn[qkv > projection] {FC}; "
        f"qformer (qformer.encoder.layer.*) 0: {TWO_STREAMS}, 1: {TWO_STREAMS_SELF}; {TEXT}",
        {
            "vision_config": {"image_size": 28},
            "num_query_tokens": 4,
            "image_token_index": 100,
            "text_config": {"model_type": "llama"},
        },
    ),
    Family(
        "instructblipvideo",
        "Salesforce/instructblip-vicuna-7b",
        f"vision (vision_model.encoder.layers.*) 0-1: self_attn[qkv > projection] {FC}; "
        f"qformer (qformer.encoder.layer.*) 0: {TWO_STREAMS}, 1: {TWO_STREAMS_SELF}; {TEXT}",
        {
            "vision_config": {"image_size": 28},
            "num_query_tokens": 4,
            "video_token_index": 100,
            "text_config": {"model_type": "llama"},
        },
    ),
    Family(
        "internvl",
        "OpenGVLab/InternVL3-1B-hf",
        "vision (vision_tower.encoder.layer.*) 0-1: attention[q_proj k_proj v_proj > "
        f"projection_layer] {FC}; {TEXT}",
        {"vision_config": {"image_size": [56, 56]}, "text_config": {"num_key_value_heads": 2}},
    ),
    Family(
        "janus",
        "deepseek-community/Janus-Pro-1B",
        "vision (vision_model.encoder.layers.*) 0-1: self_attn[q_proj k_proj v_proj > "
        f"projection_layer] {FC}; {TEXT}",
        {
            "vision_config": {"image_size": 32, "num_image_tokens": 4, "num_hidden_layers": 2},
            "vq_config": {
                "num_embeddings": 16,
                "latent_channels": 16,
                "base_channels": 32,
                "channel_multiplier": [1, 1, 1, 1],
                "num_res_blocks": 1,
                "num_patches": 4,
                "image_token_embed_dim": 32,
            },
        },
    ),
    Family(
        "kosmos-2",
        "microsoft/kosmos-2-patch14-224",
        f"vision (vision_model.model.encoder.layers.*) 0-1: {CLIP}; text "
        f"(text_model.model.layers.*) causal 0-1: {BART} ffn.fc2[ffn.fc1 > ffn.fc2]",
        {"vision_config": {"image_size": 28}, "text_config": {"layers": 2}, "latent_query_num": 4},
    ),
    Family(
        "kosmos-2.5",
        "microsoft/kosmos-2.5",
        "vision (vision_model.encoder.layer.*) 0-1: attention[query key value > output] "
        "mlp.wo[mlp.wi_0 mlp.wi_1 > mlp.wo]; text (text_model.model.layers.*) causal 0-1: "
        f"{BART} ffn.fc2[ffn.fc1 > ffn.fc2]",
        {
            "vision_config": {"max_num_patches": 16, "patch_embed_hidden_size": 48},
            "text_config": {"layers": 2},
            "latent_query_num": 4,
        },
    ),
    Family(
        "lfm2_vl",
        "LiquidAI/LFM2-VL-1.6B",
        f"{VISION}; text (language_model.layers.*) causal 0: "
        f"feed_forward.w2[feed_forward.w1 feed_forward.w3 > feed_forward.w2], 1: {BART} "
        "feed_forward.w2[feed_forward.w1 feed_forward.w3 > feed_forward.w2]",
        {
            "vision_config": {"num_patches": 16, "vision_use_head": False},
            "text_config": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
            "projector_hidden_size": 64,
        },
    ),
    Family(
        "lighton_ocr",
        "lightonai/LightOnOCR-1B-1025",
        "vision (vision_encoder.transformer.layers.*) 0-1: attention[q_proj k_proj v_proj "
        "> o_proj] feed_forward.down_proj[feed_forward.gate_proj feed_forward.up_proj > "
        f"feed_forward.down_proj]; {TEXT}",
        {"vision_config": {"image_size": 56}},
    ),
    Family(
        "llama4",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        without=dict.fromkeys(("LoRA", "Adapter", "Prefix", "UniPELT"), "cannot be examined"),
    ),
    Family(
        "llava",
        "llava-hf/llava-1.5-7b-hf",
        f"{VISION}, 2: -; {TEXT}",
        {"vision_config": {"image_size": 28, "num_hidden_layers": 3}},
    ),
    Family(
        "llava_next",
        "llava-hf/llava-v1.6-mistral-7b-hf",
        f"{VISION}, 2: -; {TEXT}",
        {
            "vision_config": {"image_size": 28, "num_hidden_layers": 3},
            "text_config": {
                "model_type": "mistral",
                "num_key_value_heads": 2,
                "sliding_window": None,
            },
            "image_grid_pinpoints": [[28, 56], [56, 28]],
        },
    ),
    Family(
        "llava_next_video",
        "llava-hf/LLaVA-NeXT-Video-7B-hf",
        f"{VISION}, 2: -; {TEXT}",
        {
            "vision_config": {"image_size": 28, "num_hidden_layers": 3},
            "image_grid_pinpoints": [[28, 56], [56, 28]],
        },
    ),
    Family(
        "llava_onevision",
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        f"{VISION}; {TEXT}",
        {
            "vision_config": {"image_size": 28},
            "image_grid_pinpoints": [[28, 56], [56, 28]],
            "text_config": {"num_key_value_heads": 2},
        },
    ),
    Family(
        "minicpm_ocr",
        "openbmb/MiniCPM-OCR-1.0",
        f"{VISION}; text (language_model.layers.*) causal 0: {GATED}, 1: {LLAMA}",
        {
            "image_token_id": 100,
            "video_token_id": 101,
            "insert_layer_id": 0,
            "vision_config": {"insert_layer_id": 0, "image_size": 64},
            "text_config": DELTA_NET,
        },
    ),
    Family(
        "minicpmv4_6",
        "openbmb/MiniCPM-V-4.6",
        f"{VISION}; text (language_model.layers.*) causal 0: {GATED}, 1: {LLAMA}",
        {
            "image_token_id": 100,
            "video_token_id": 101,
            "insert_layer_id": 0,
            "vision_config": {"insert_layer_id": 0, "image_size": 64},
            "text_config": DELTA_NET,
        },
    ),
    Family(
        "minicpmv4_7",
        "openbmb/MiniCPM-V-4.7-1B",
        f"{VISION}; text (language_model.layers.*) causal 0: {GATED}, 1: {LLAMA}",
        {
            "image_token_id": 100,
            "video_token_id": 101,
            "insert_layer_id": 0,
            "vision_config": {"insert_layer_id": 0, "image_size": 64},
            "text_config": DELTA_NET,
        },
    ),
    Family(
        "mistral3",
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        "vision (vision_tower.transformer.layers.*) 0-1: attention[q_proj k_proj v_proj > "
        "o_proj] feed_forward.down_proj[feed_forward.gate_proj feed_forward.up_proj > "
        f"feed_forward.down_proj]; {TEXT}",
        {"vision_config": {"image_size": 56}},
    ),
    Family(
        "mistral_large4",
        "mistralai/Mistral-Large-4-1T-A52B",
        "vision (vision_tower.transformer.layers.*) 0-1: attention[q_proj k_proj v_proj > "
        "o_proj] feed_forward.down_proj[feed_forward.gate_proj feed_forward.up_proj > "
        "feed_forward.down_proj]; text (language_model.layers.*) causal 0: "
        f"self_attn[q_proj kv_b_proj > o_proj] {GATED}, 1: self_attn[q_proj kv_b_proj > "
        "o_proj] mlp",
        {
            "image_token_index": 100,
            "vision_config": {"image_size": 56},
            "text_config": {
                **DENSE_SPARSE,
                "layer_types": ["indexed_attention", "indexed_attention"],
                "indexer_types": ["full", "full"],
                **LATENT,
                "qk_rope_head_dim": 4,
                **INDEX,
                "head_dim": 4,
                "no_rope_layers": [1, 0],
                "kv_source_layers": [0, 1],
            },
        },
    ),
    Family(
        "mllama",
        "meta-llama/Llama-3.2-11B-Vision",
        f"vision (vision_model.transformer.layers.*) 0-1: {SELF} {FC}; vision_global "
        f"(vision_model.global_transformer.layers.*) 0-1: {SELF} {FC}; text "
        f"(language_model.layers.*) causal 0: {LLAMA}, 1: xcross_attn[q_proj k_proj v_proj "
        f"> o_proj] {GATED}, 2: {LLAMA}",
        {
            "vision_config": {
                "image_size": 28,
                "num_global_layers": 2,
                "intermediate_layers_indices": [0, 1],
                "vision_output_dim": 96,
                "max_num_tiles": 2,
                "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            },
            "text_config": {"cross_attention_layers": [1], "num_hidden_layers": 3},
        },
    ),
    Family(
        "molmo2",
        "allenai/Molmo2-8B",
        f"vision (vision_tower.layers.*) 0-2: {SELF} {FC}; {TEXT}",
        {
            "vision_config": {
                "image_size": [28, 28],
                "num_position_embeddings": 4,
                "num_hidden_layers": 3,
                "num_key_value_heads": 4,
            },
            "adapter_config": {"vision_feature_layer": [2, 1], "num_key_value_heads": 4},
            "text_config": {"additional_vocab_size": 8, "rope_scaling_layers": None},
            "image_patch_id": 100,
        },
        fixed(
            input_ids=words(4, 100),
            pixel_values=pixels(1, 4, 588),
            image_token_pooling=torch.arange(4)[:, None],
            image_grids=torch.tensor([[2, 2, 0, 0]]),
            image_num_crops=torch.tensor([1]),
        ),
    ),
    Family(
        "nemotron_h_omni",
        "nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-BF16",
        "vision (vision_model.encoder.layer.*) 0-1: attention[q_proj k_proj v_proj > "
        f"o_proj] {FC}; text (language_model.model.layers.*) causal 0: -, 1: mixer, 2: "
        "mixer[q_proj k_proj v_proj > o_proj], 3: mixer.down_proj[mixer.up_proj > "
        "mixer.down_proj]",
        {
            "image_token_id": 100,
            "vision_hidden_size": 32,
            "projector_hidden_size": 32,
            "vision_config": {"image_size": 64, "max_img_size": 128},
            "text_config": {
                "num_hidden_layers": 4,
                "ssm_state_size": 16,
                "mamba_num_heads": 8,
                "mamba_head_dim": 8,
                "n_groups": 2,
                "chunk_size": 8,
                "moe_shared_expert_intermediate_size": 64,
            },
        },
        fixed(
            input_ids=words(4, 100),
            pixel_values=pixels(16, 768),
            image_grid_hw=torch.tensor([[4, 4]]),
        ),
        auto="AutoModelForImageTextToText",
    ),
    Family(
        "ovis2",
        "thisisiron/Ovis2-1B-hf",
        "vision (vision_tower.transformer.encoder.layers.*) 0-1: attention[q_proj k_proj "
        "v_proj > out_proj] ffn.down_proj[ffn.gate_proj ffn.up_proj > ffn.down_proj]; "
        f"{TEXT}",
        {
            "vision_config": {
                "image_size": 28,
                "hidden_stride": 2,
                "num_visual_indicator_tokens": 5,
            },
            "visual_indicator_token_ids": [101, 102, 103, 104, 105],
            "text_config": {"num_key_value_heads": 2},
            "image_token_id": 100,
        },
    ),
    Family(
        "paligemma",
        "google/paligemma-3b-pt-224",
        # Its prompts see all of themselves; what it writes is causal.
        f"{VISION}; {TEXT}".replace("(", "(model."),
        {"vision_config": {"image_size": 28}},
        pictured(1, 3, 28, 28, tokens=4, token_type_ids=torch.tensor([[0] * 9 + [1] * 3])),
        auto="AutoModelForImageTextToText",
    ),
    Family(
        "phi4_multimodal",
        "microsoft/Phi-4-multimodal-instruct",
        "embed_tokens_extend (embed_tokens_extend.image_embed.img_processor.encoder.layers.*) "
        f"causal 0-1: {CLIP}, 2: -; decoder (layers.*) causal 0-1: self_attn[qkv_proj > o_proj] "
        f"{FUSED_GATED}",
        {
            "vision_config": {
                "image_size": 64,
                "crop_size": 64,
                "num_hidden_layers": 3,
                "patch_size": 16,
                "image_token_id": 100,
            },
            "audio_config": {"num_blocks": 2, "audio_token_id": 101},
        },
        fixed(
            input_ids=words(13, 100),
            image_pixel_values=pixels(1, 2, 3, 64, 64),
            image_sizes=torch.tensor([[64, 64]]),
            image_attention_mask=torch.ones(1, 2, 4, 4),
        ),
    ),
    Family(
        "pi0",
        "lerobot/pi0_base",
        f"vlm_vision (vlm.vision_tower.encoder.layers.*) 0-1: {CLIP}; vlm_text "
        f"(vlm.language_model.layers.*) 0: {LLAMA}, 1: -; dit (dit.layers.*) causal 0-1: "
        f"{LLAMA}",
        {
            "vlm_config": {"vision_config": {"image_size": 28}, "image_token_index": 100},
            "chunk_size": 4,
            "max_state_dim": 8,
            "max_action_dim": 8,
        },
    ),
    Family(
        "qianfan_ocr",
        "baidu/Qianfan-OCR",
        "vision (vision_tower.layers.*) 0-1: attention[q_proj k_proj v_proj > "
        f"projection_layer] {FC}; {TEXT}",
        {"vision_config": {"image_size": [56, 56]}, "text_config": {"num_key_value_heads": 2}},
    ),
    Family(
        "shieldgemma2",
        "google/shieldgemma-2-4b-it",
        f"vision (model.model.vision_tower.encoder.layers.*) 0-1: {CLIP}; text "
        f"(model.model.language_model.layers.*) causal 0-1: {LLAMA}",
        {
            "yes_token_index": 10,
            "no_token_index": 11,
            "vision_config": {"image_size": 56, "patch_size": 14, "vision_use_head": False},
            "text_config": WINDOWS,
            "mm_tokens_per_image": 4,
        },
        auto="AutoModelForImageClassification",
    ),
    Family(
        "smolvlm",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        f"{VISION_MODEL}; text (text_model.layers.*) causal 0-1: {LLAMA}",
        {"vision_config": {"image_size": 56, "patch_size": 14}},
    ),
    Family(
        "step3p7",
        "stepfun-ai/Step-3.7-Flash",
        f"vision (vision_model.layers.*) 0-1: {CLIP}; text (language_model.layers.*) "
        f"causal 0: {LLAMA}, 1: {SELF} mlp",
        {
            "vision_config": {"image_size": 56, "max_position_embeddings": 16},
            "text_config": {
                **DENSE_SPARSE,
                "layer_types": ["full_attention", "sliding_attention"],
                "sliding_window": 16,
                "share_expert_dim": 32,
            },
        },
    ),
    Family(
        "t5gemma2",
        "google/t5gemma-2-270m-270m",
        f"vision (encoder.vision_tower.encoder.layers.*) 0-1: {CLIP}; text "
        f"(encoder.text_model.layers.*) 0-1: {LLAMA}; decoder (decoder.layers.*) causal "
        f"0-1: {LLAMA}",
        {
            "encoder": {
                "vision_config": {"image_size": 56, "patch_size": 14, "vision_use_head": False},
                "text_config": WINDOWS,
                "mm_tokens_per_image": 4,
                "image_token_index": 100,
            },
            "decoder": WINDOWS,
            "image_token_index": 100,
        },
    ),
    Family(
        "unlimited_ocr",
        "baidu/Unlimited-OCR",
        f"vision_sam (vision_tower.sam_encoder.layers.*) 0-1: {SAM}; vision_encoder "
        f"(vision_tower.vision_encoder.encoder.layers.*) 0-1: {CLIP}; text "
        f"(language_model.layers.*) causal 0: {LLAMA}, 1: {SELF} mlp",
        {
            "vision_config": {
                "sam_config": {**SAM_SIZES, "output_channels": 16, "downsample_channels": [16, 32]},
                "encoder_config": {"image_size": 56},
            },
            "text_config": {
                **DENSE_SPARSE,
                "layer_types": ["reference_sliding_attention", "reference_sliding_attention"],
                "sliding_window": 16,
            },
        },
    ),
    Family(
        "video_llava",
        "LanguageBind/Video-LLaVA-7B-hf",
        f"image (image_tower.encoder.layers.*) 0-1: {CLIP}, 2: -; video "
        f"(video_tower.encoder.layers.*) 0-1: {CLIP}, 2: -; {TEXT}",
        {
            "vision_config": {"image_size": 28, "num_hidden_layers": 3},
            "image_token_index": 100,
            "video_token_index": 101,
        },
        fixed(
            input_ids=words(4, 100, video=10, video_token=101),
            pixel_values_images=pixels(1, 3, 28, 28),
            pixel_values_videos=pixels(1, 2, 3, 28, 28),
        ),
    ),
    Family(
        "vipllava",
        "llava-hf/vip-llava-7b-hf",
        f"{VISION}, 2: -; {TEXT}",
        {
            "vision_config": {"image_size": 28, "num_hidden_layers": 3},
            "vision_feature_layers": [-2, -3],
        },
    ),
    Family(
        "mistral4",
        "mistralai/Mistral-Small-4-119B-2603",
        "decoder (layers.*) causal 0-1: self_attn[q_b_proj kv_b_proj > o_proj] mlp",
        {
            **LATENT,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_head_dim": 12,
            "head_dim": 4,
            "rope_parameters": {"partial_rotary_factor": 1.0},
        },
    ),
]
