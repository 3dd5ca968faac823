"""Dual encoders of images and text, and detectors with words."""

import torch

from families._inputs_multimodal import captioned, fixed, pixels, words
from families.family import Family

CLIP = "self_attn[q_proj k_proj v_proj > out_proj] mlp.fc2[mlp.fc1 > mlp.fc2]"
BERT = (
    "attention.self[query key value > attention.output.dense] "
    "output.dense[intermediate.dense > output.dense]"
)
VIT = (
    "attention.attention[query key value > attention.output.dense] "
    "output.dense[intermediate.dense > output.dense]"
)
TOWERS = (
    f"vision (vision_model.encoder.layers.*) 0-1: {CLIP}; "
    f"text (text_model.encoder.layers.*) causal 0-1: {CLIP}"
)
ATTENTION = "attention[q_proj k_proj v_proj > o_proj] mlp.fc2[mlp.fc1 > mlp.fc2]"
VISION = f"vision (vision_model.encoder.layers.*) 0-1: {CLIP}"
TEXT = f"text (text_model.encoder.layers.*) causal 0-1: {CLIP}"
SMALL = {"vision_config": {"image_size": 64}}  # four patches of CLIP

OFF = dict.fromkeys(("Prefix", "UniPELT"), "does not use transformers' attention interface")

FAMILIES = [
    Family(
        "aimv2",
        "apple/aimv2-large-patch14-224-lit",
        "vision (vision_model.encoder.layers.*) 0-1: attention[q_proj k_proj v_proj > "
        # Without padding, SDPA drops the causal mask of its text tower.
        "out_proj] ffn.down_proj[ffn.gate_proj ffn.up_proj > ffn.down_proj]; text "
        "(text_model.encoder.layers.*) 0-1: attention[q_proj k_proj v_proj > "
        "out_proj] ffn.down_proj[ffn.gate_proj ffn.up_proj > ffn.down_proj]",
        {"vision_config": {"image_size": 56}},
        captioned(1, 3, 56, 56, attention_mask=torch.ones(1, 8, dtype=torch.long)),
    ),
    Family(
        "aimv2_vision_model",
        "apple/aimv2-large-patch14-224",
        "encoder (encoder.layers.*) 0-1: attention[q_proj k_proj v_proj > out_proj] "
        "ffn.down_proj[ffn.gate_proj ffn.up_proj > ffn.down_proj]",
        {"image_size": 56},
    ),
    Family(
        "align",
        "kakaobrain/align-base",
        f"encoder (text_model.encoder.layer.*) 0-1: {BERT}",
        {
            "vision_config": {
                "image_size": 64,
                "width_coefficient": 0.1,
                "depth_coefficient": 0.1,
                "hidden_dim": 32,
            }
        },
    ),
    Family(
        "altclip",
        "BAAI/AltCLIP",
        f"{VISION}; text (text_model.roberta.encoder.layers.*) 0-1: {BERT}",
        SMALL,
    ),
    Family(
        "blip",
        "Salesforce/blip-itm-base-coco",
        "vision (vision_model.encoder.layers.*) 0-1: self_attn[qkv > projection] "
        f"mlp.fc2[mlp.fc1 > mlp.fc2]; text (text_model.encoder.layer.*) 0-1: {BERT}",
        SMALL,
        without=OFF,
    ),
    Family(
        "blip_2_qformer",
        "Salesforce/blip2-itm-vit-g",
        "encoder (encoder.layer.*) 0: attention.attention[query key value > "
        "attention.output.dense] xcrossattention.attention[query key value > "
        "crossattention.output.dense] output_query.dense[intermediate_query.dense > "
        "output_query.dense], 1: attention.attention[query key value > "
        "attention.output.dense] output_query.dense[intermediate_query.dense > "
        "output_query.dense]",
        {},
        fixed(query_embeds=pixels(1, 4, 32), encoder_hidden_states=pixels(1, 5, 32)),
    ),
    Family(
        "bridgetower",
        "BridgeTower/bridgetower-base",
        # The attention of the vision tower is one function of its weights. Causal is a safe answer.
        f"text (text_model.encoder.layer.*) 0-2: {BERT}; "
        "vision (vision_model.visual.transformer.resblocks.*) causal 0-2: "
        "mlp.c_proj[mlp.c_fc > mlp.c_proj]; cross_modal_text "
        "(cross_modal_text_layers.*) causal 0-1: attention.self[query key value > "
        "attention.output.dense] xcrossattention.self[query key value > "
        "crossattention.output.dense] output.dense[intermediate.dense > output.dense]; "
        "cross_modal_image (cross_modal_image_layers.*) causal 0-1: attention.self[query key "
        "value > attention.output.dense] xcrossattention.self[query key value > "
        "crossattention.output.dense] output.dense[intermediate.dense > output.dense]",
        {
            "hidden_size": 64,  # MultiheadAttention has hidden_size / 64 heads
            "vision_config": {"hidden_size": 64, "num_hidden_layers": 3, "image_size": 64},
            "text_config": {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 128},
        },
    ),
    Family(
        "chinese_clip",
        "OFA-Sys/chinese-clip-vit-base-patch16",
        f"{VISION}; text (text_model.encoder.layer.*) 0-1: {BERT}",
        SMALL,
    ),
    Family("clip", "openai/clip-vit-base-patch32", TOWERS, SMALL),
    Family(
        "clip_text_model",
        "openai/clip-vit-large-patch14",
        f"encoder (encoder.layers.*) causal 0-1: {CLIP}",
    ),
    Family(
        "clip_vision_model",
        "openai/clip-vit-base-patch32",
        f"encoder (encoder.layers.*) 0-1: {CLIP}",
        {"image_size": 64},
    ),
    Family("clipseg", "CIDAS/clipseg-rd64-refined", TOWERS, SMALL),
    Family(
        "flava",
        "facebook/flava-full",
        f"image (image_model.encoder.layer.*) 0-1: {VIT}; text "
        f"(text_model.encoder.layer.*) 0-1: {VIT}; multimodal "
        f"(multimodal_model.encoder.layer.*) 0-1: {VIT}",
        {"image_config": {"image_size": 64}},
        without=OFF,
    ),
    Family(
        "grounding-dino",
        "IDEA-Research/grounding-dino-tiny",
        f"text (text_backbone.encoder.layer.*) 0-1: {BERT}; backbone "
        f"(backbone.conv_encoder.model.swin.encoder.layers.*.blocks.*) 0-4: {ATTENTION}; "
        "encoder (encoder.layers.*) 0-1: xfusion_layer.attn[vision_proj text_proj "
        "values_vision_proj > out_text_proj] text_enhancer_layer.self_attn[query key value > "
        "out_proj] deformable_layer.fc2[deformable_layer.fc1 > deformable_layer.fc2]; "
        "decoder (decoder.layers.*) 0-1: self_attn[query key value > out_proj] "
        "xencoder_attn_text[query key value > out_proj] fc2[fc1 > fc2]",
        {
            "num_queries": 6,
            "backbone_config": {
                "image_size": 96,
                "embed_dim": 16,
                "depths": [1, 1, 2, 1],
                "num_heads": [1, 2, 2, 4],
                "window_size": 4,
            },
        },
    ),
    Family(
        "groupvit",
        "nvidia/groupvit-gcc-yfcc",
        f"vision (vision_model.encoder.stages.*.layers.*) 0-3: {CLIP}; {TEXT}",
        {
            "vision_config": {
                "image_size": 64,
                "depths": [2, 1, 1],
                "num_group_tokens": [8, 4, 0],
                "num_output_groups": [8, 4, 0],
            },
            "projection_intermediate_dim": 64,
            "projection_dim": 32,
        },
        without=OFF,
    ),
    Family("metaclip_2", "facebook/metaclip-2-worldwide-huge-quickgelu", TOWERS, SMALL),
    Family(
        "mm-grounding-dino",
        "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
        f"text (text_backbone.encoder.layer.*) 0-1: {BERT}; backbone "
        f"(backbone.conv_encoder.model.swin.encoder.layers.*.blocks.*) 0-4: {ATTENTION}; "
        "encoder (encoder.layers.*) 0-1: xfusion_layer.attn[vision_proj text_proj "
        "values_vision_proj > out_text_proj] text_enhancer_layer.self_attn[query key value > "
        "out_proj] deformable_layer.fc2[deformable_layer.fc1 > deformable_layer.fc2]; "
        "decoder (decoder.layers.*) 0-1: self_attn[query key value > out_proj] "
        "xencoder_attn_text[query key value > out_proj] fc2[fc1 > fc2]",
        {
            "num_queries": 6,
            "backbone_config": {
                "image_size": 96,
                "embed_dim": 16,
                "depths": [1, 1, 2, 1],
                "num_heads": [1, 2, 2, 4],
                "window_size": 4,
            },
        },
    ),
    Family("owlv2", "google/owlv2-base-patch16", TOWERS, SMALL),
    Family("owlvit", "google/owlvit-base-patch32", TOWERS, SMALL),
    Family(
        "pixtral",
        "mistral-community/pixtral-12b",
        "encoder (transformer.layers.*) 0-1: attention[q_proj k_proj v_proj > o_proj] "
        "feed_forward.down_proj[feed_forward.gate_proj feed_forward.up_proj > "
        "feed_forward.down_proj]",
        {"image_size": 64},
    ),
    Family(
        "siglip",
        "google/siglip-base-patch16-224",
        f"{VISION}; text (text_model.encoder.layers.*) 0-1: {CLIP}",
        {"vision_config": {"image_size": 64}, "text_config": {"projection_size": 32}},
    ),
    Family(
        "siglip2",
        "google/siglip2-base-patch16-naflex",
        f"{VISION}; text (text_model.encoder.layers.*) 0-1: {CLIP}",
        {"vision_config": {"num_patches": 16}, "text_config": {"projection_size": 32}},
    ),
    Family(
        "siglip2_vision_model",
        "google/siglip2-base-patch16-naflex",
        f"encoder (encoder.layers.*) 0-1: {CLIP}",
        {"num_patches": 16},
    ),
    Family(
        "siglip_vision_model",
        "google/siglip-so400m-patch14-384",
        f"encoder (encoder.layers.*) 0-1: {CLIP}",
        {"image_size": 64},
    ),
    Family(
        "tipsv2",
        "google/tipsv2-b14",
        f"vision (vision_model.encoder.layer.*) 0-1: {ATTENTION}; text "
        f"(text_model.encoder.layers.*) 0-1: {CLIP}",
        {
            "vision_config": {
                "image_size": 56,
                "stage_names": ["stem", "stage1", "stage2"],
                "out_features": ["stage2"],
                "out_indices": [2],
            }
        },
    ),
    Family(
        "tvp",
        "Intel/tvp-base",
        "encoder (encoder.layer.*) 0-1: attention[query key value > dense] "
        "output.dense[intermediate.dense > output.dense]",
        {
            "visual_prompt_size": 16,
            "max_img_size": 64,
            "num_frames": 2,
            "backbone_config": {
                "embedding_size": 8,
                "hidden_sizes": [8, 16, 16, 32],
                "depths": [1, 1, 1, 1],
            },
        },
        fixed(
            input_ids=words(),
            pixel_values=pixels(1, 2, 3, 64, 64),
            attention_mask=torch.ones(1, 8, dtype=torch.long),
        ),
        without=OFF,
    ),
    Family(
        "videoprism",
        "google/videoprism-lvt-base-f16r288",
        f"video_spatial (video_model.vision_model.spatial_layers.*) 0-1: {ATTENTION}; "
        f"video_temporal (video_model.vision_model.temporal_layers.*) 0-1: {ATTENTION}; "
        f"video_auxiliary (video_model.auxiliary_layers.*) 0-1: {ATTENTION}; "
        "text (text_model.layers.*) "
        f"causal 0-1: {ATTENTION}",
        {
            "vision_config": {
                "image_size": 36,
                "num_frames": 4,
                "num_spatial_layers": 2,
                "num_temporal_layers": 2,
            }
        },
        fixed(
            input_ids=words().expand(2, 8),  # a row alone has the probability 1
            pixel_values_videos=pixels(2, 4, 3, 36, 36),
            attention_mask=torch.ones(2, 8, dtype=torch.long),
        ),
    ),
    Family(
        "vilt",
        "dandelin/vilt-b32-mlm",
        f"encoder (encoder.layer.*) 0-1: {VIT}",
        {"image_size": 64},
        without=OFF,
    ),
    Family(
        "vision-text-dual-encoder",
        "clip-italian/clip-italian",
        f"{VISION}; text (text_model.encoder.layer.*) 0-1: {BERT}",
        {
            "vision_config": {
                "model_type": "clip_vision_model",
                "image_size": 64,
                "patch_size": 32,
            },
            "projection_dim": 32,
        },
    ),
    Family(
        "xclip",
        "microsoft/xclip-base-patch32",
        "vision (vision_model.encoder.layers.*) 0-1: message_attn[q_proj k_proj v_proj > "
        f"out_proj] {CLIP}; mit (mit.encoder.layers.*) 0: {CLIP}; {TEXT}; "
        "prompts_generator (prompts_generator.decoder.*) causal 0-1: xcross_attn[q_proj "
        "k_proj v_proj > proj] mlp.3[mlp.0 > mlp.3]",
        {
            "vision_config": {
                "image_size": 64,
                "num_frames": 4,
                "mit_hidden_size": 32,
                "mit_intermediate_size": 64,
                "mit_num_attention_heads": 4,
            },
            "prompt_num_attention_heads": 4,
            "projection_dim": 32,
        },
    ),
]
