"""Segment Anything and its successors."""

from families._inputs_vision import image_and_points, image_and_words
from families.family import Family

SAM_VISION = {
    "image_size": 64,
    "output_channels": 32,
    "window_size": 2,
    "global_attn_indexes": [1],
    "mlp_dim": 64,
}
SAM = {
    "vision_config": {**SAM_VISION, "num_pos_feats": 16},
    "prompt_encoder_config": {
        "image_size": 64,
        "image_embedding_size": 4,
        "mask_input_channels": 4,
    },
}
SAM2_VISION = {
    "backbone_config": {
        "image_size": [128, 128],
        "blocks_per_stage": [1, 2, 1, 1],
        "embed_dim_per_stage": [8, 16, 24, 32],
        "num_attention_heads_per_stage": [1, 2, 2, 4],
        "window_size_per_stage": [8, 4, 4, 2],
        "global_attention_blocks": [2],
        "hidden_size": 8,
        "window_positional_embedding_background_size": [4, 4],
    },
    "backbone_channel_list": [32, 24, 16, 8],
    "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    "fpn_hidden_size": 32,
}
SAM3_VISION = {
    "backbone_config": {
        "image_size": 56,
        "window_size": 2,
        "global_attn_indexes": [1],
        "pretrain_image_size": 28,
    },
    "fpn_hidden_size": 32,
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
}
QKVO = "attention[q_proj k_proj v_proj > o_proj]"
MLP = "mlp.fc2[mlp.fc1 > mlp.fc2]"
LINEAR = "mlp.lin2[mlp.lin1 > mlp.lin2]"
PROJECTED = "mlp.proj_out[mlp.proj_in > mlp.proj_out]"
Q_O, Q_OUT = "[q_proj k_proj v_proj > o_proj]", "[q_proj k_proj v_proj > out_proj]"
TWO_WAY = "self_attn{0} xcross_attn_token_to_image{0} xcross_attn_image_to_token{0}"
SAM_PLACE = (
    f"encoder (vision_encoder.layers.*) 0-1: attn[qkv > proj] {LINEAR}; "
    f"decoder (mask_decoder.transformer.layers.*) 0-1: {TWO_WAY.format(Q_OUT)} {LINEAR}"
)
SAM_VISION_PLACE = f"encoder (vision_encoder.layers.*) 0-1: attn[qkv > proj] {LINEAR}"
DETR_OF_SAM3 = (
    f"detr_encoder (detr_encoder.layers.*) 0-1: self_attn{Q_O} xcross_attn{Q_O} {MLP}; "
    f"detr_decoder (detr_decoder.layers.*) 0-1: self_attn{Q_O} xtext_cross_attn{Q_O} "
    f"xvision_cross_attn{Q_O} {MLP}"
)
_REASON = "does not use transformers' attention interface"
OFF_INTERFACE = {"Prefix": _REASON, "UniPELT": _REASON}

FAMILIES = [
    Family("sam", "facebook/sam-vit-base", SAM_PLACE, SAM, inputs=image_and_points),
    Family(
        "sam2",
        "facebook/sam2.1-hiera-tiny",
        place=f"encoder (vision_encoder.backbone.blocks.*) 0-4: attn[qkv > proj] {PROJECTED}; "
        f"decoder (mask_decoder.transformer.layers.*) 0-1: {TWO_WAY.format(Q_O)} {PROJECTED}",
        options={
            "vision_config": SAM2_VISION,
            "prompt_encoder_config": {"image_size": 128, "mask_input_channels": 4},
        },
        inputs=image_and_points,
    ),
    Family(
        "sam2_vision_model",
        "facebook/sam2.1-hiera-tiny",
        place=f"encoder (backbone.blocks.*) 0-4: attn[qkv > proj] {PROJECTED}",
        options=SAM2_VISION,
    ),
    Family(
        "sam3",
        "facebook/sam3",
        place=f"vision (vision_encoder.backbone.layers.*) 0-1: {QKVO} {MLP}; "
        "text (text_encoder.text_model.encoder.layers.*) causal 0-1: "
        f"self_attn{Q_OUT} {MLP}; {DETR_OF_SAM3}",
        options={"vision_config": SAM3_VISION},
        inputs=image_and_words,
    ),
    Family(
        "sam3_lite_text",
        "yonigozlan/sam3-litetext-s0",
        place=f"vision (vision_encoder.backbone.layers.*) 0-1: {QKVO} {MLP}; "
        "text (text_encoder.layers.*) 0: -, 1-2: "
        f"self_attn{Q_OUT} {MLP}, 3: -; {DETR_OF_SAM3}",
        options={"vision_config": SAM3_VISION, "text_config": {"num_hidden_layers": 4}},
        inputs=image_and_words,
    ),
    Family(
        "sam3_tracker",
        "facebook/sam3",
        place=f"encoder (vision_encoder.backbone.layers.*) 0-1: {QKVO} {MLP}; "
        f"decoder (mask_decoder.transformer.layers.*) 0-1: {TWO_WAY.format(Q_O)} {PROJECTED}",
        options={
            "vision_config": SAM3_VISION,
            "prompt_encoder_config": {
                "image_size": 56,
                "patch_size": 14,
                "mask_input_channels": 4,
            },
        },
        inputs=image_and_points,
    ),
    Family(
        "sam3_vision_model",
        "facebook/sam3",
        place=f"encoder (backbone.layers.*) 0-1: {QKVO} {MLP}",
        options=SAM3_VISION,
    ),
    Family(
        "sam_hq",
        "syscv-community/sam-hq-vit-base",
        place=SAM_PLACE,
        options={**SAM, "mask_decoder_config": {"vit_dim": 32}},
        inputs=image_and_points,
    ),
    Family(
        "sam_hq_vision_model",
        "syscv-community/sam-hq-vit-base",
        place=SAM_VISION_PLACE,
        options=SAM_VISION,
        without=OFF_INTERFACE,
    ),
    Family(
        "sam_vision_model",
        "facebook/sam-vit-base",
        place=SAM_VISION_PLACE,
        options=SAM_VISION,
        without=OFF_INTERFACE,
    ),
    Family(
        "slanext",
        "PaddlePaddle/SLANeXt_wired_safetensors",
        place=f"encoder (backbone.vision_tower.layers.*) 0-1: attn[qkv > proj] {LINEAR}",
        options={
            "vision_config": SAM_VISION,
            "post_conv_in_channels": 32,
            "post_conv_out_channels": 32,
            "out_channels": 8,
            "max_text_length": 4,
        },
        without=OFF_INTERFACE,
        auto="AutoModelForTableRecognition",
    ),
]
