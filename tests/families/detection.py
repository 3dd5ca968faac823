"""Detectors of objects."""

from families._inputs_vision import image, larger_image
from families.family import Family

RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "stage_names": ["stem", "stage1", "stage2", "stage3", "stage4"],
}
ONE_SCALE = {**RESNET, "out_features": ["stage4"], "out_indices": [4]}
SCALES = {**RESNET, "out_features": ["stage2", "stage3", "stage4"], "out_indices": [2, 3, 4]}
HGNET = {
    "embedding_size": 8,
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 16, 16, 32],
    "stem_channels": [3, 4, 8],
    "stage_in_channels": [8, 8, 16, 16],
    "stage_mid_channels": [4, 4, 4, 4],
    "stage_out_channels": [8, 16, 16, 32],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [1, 1, 1, 1],
}
HYBRID = {
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 16, 32],
    "decoder_in_channels": [32, 32, 32],
    "encoder_layers": 2,
    "num_queries": 10,
    "num_denoising": 0,
}
VIT_SCALES = {"image_size": 64, "out_features": ["stage1", "stage2"], "out_indices": [1, 2]}

SELF = "self_attn[q_proj k_proj v_proj > o_proj]"
CROSS = "xencoder_attn[q_proj k_proj v_proj > o_proj]"
MLP = "mlp.fc2[mlp.fc1 > mlp.fc2]"
LAYERS = "mlp.layers.1[mlp.layers.0 > mlp.layers.1]"
ENCODER = f"encoder (encoder.layers.*) 0-1: {SELF} {MLP}"
# Multi-scale deformable attentions have no queries and keys: the blocks keep the rest.
RT_DETR = (
    f"aifi (encoder.aifi.*.layers.*) 0-1: {SELF} {MLP}; "
    f"decoder (decoder.layers.*) 0-1: {SELF} {MLP}"
)
PADDLE = (
    f"aifi (model.encoder.aifi.*.layers.*) 0-1: {SELF} {MLP}; "
    f"decoder (model.decoder.layers.*) 0-1: {SELF} {MLP}"
)
_REASON = "does not use transformers' attention interface"
OFF_INTERFACE = {"Prefix": _REASON, "UniPELT": _REASON}
DETECTION = "AutoModelForObjectDetection"

FAMILIES = [
    Family(
        "conditional_detr",
        "microsoft/conditional-detr-resnet-50",
        place=f"{ENCODER}; decoder (decoder.layers.*) 0-1: "
        "self_attn[q_content_proj k_content_proj v_proj > o_proj] "
        f"xencoder_attn[q_content_proj k_content_proj v_proj > o_proj] {MLP}",
        options={"backbone_config": ONE_SCALE, "num_queries": 10},
        inputs=image,
    ),
    Family(
        "d_fine",
        "ustc-community/dfine-xlarge-coco",
        place=f"aifi (encoder.aifi.*.layers.*) 0-1: {SELF} {LAYERS}; "
        f"decoder (decoder.layers.*) 0-1: {SELF} {LAYERS}",
        options={**HYBRID, "backbone_config": HGNET},
        inputs=image,
    ),
    Family(
        "dab-detr",
        "IDEA-Research/dab-detr-resnet-50",
        place="encoder (encoder.layers.*) 0-1: self_attn[q_proj k_proj v_proj > out_proj] "
        "fc2[fc1 > fc2]; decoder (decoder.layers.*) 0-1: "
        "self_attn.self_attn[self_attn.self_attn_query_content_proj "
        "self_attn.self_attn_key_content_proj self_attn.self_attn_value_proj > output_proj] "
        "xcross_attn.cross_attn[cross_attn.cross_attn_query_content_proj "
        "cross_attn.cross_attn_key_content_proj cross_attn.cross_attn_value_proj > output_proj] "
        + MLP,
        options={"backbone_config": ONE_SCALE, "num_queries": 10},
        inputs=image,
        without=OFF_INTERFACE,
    ),
    Family(
        "deformable_detr",
        "SenseTime/deformable-detr",
        place=f"encoder (encoder.layers.*) 0-1: {MLP}; "
        f"decoder (decoder.layers.*) 0-1: {SELF} {MLP}",
        options={"backbone_config": SCALES, "num_queries": 10},
        inputs=larger_image,
    ),
    Family(
        "deimv2",
        "Intellindust/DEIMv2_HGNetv2_N_COCO",
        place=f"aifi (encoder.aifi.*.layers.*) 0-1: {SELF} {LAYERS}; "
        f"decoder (decoder.layers.*) 0-1: {SELF} "
        "mlp.down_proj[mlp.gate_proj mlp.up_proj > mlp.down_proj]",
        options={**HYBRID, "backbone_config": HGNET},
        inputs=image,
    ),
    Family(
        "detr",
        "facebook/detr-resnet-50",
        place=f"{ENCODER}; decoder (decoder.layers.*) 0-1: {SELF} {CROSS} {MLP}",
        options={"backbone_config": ONE_SCALE, "num_queries": 10},
        inputs=image,
    ),
    Family(
        "lw_detr",
        "AnnaZhang/lwdetr_small_60e_coco",
        place="backbone (backbone.backbone.encoder.layer.*) 0-1: "
        "attention[q_proj k_proj v_proj > o_proj] "
        "intermediate.fc2[intermediate.fc1 > intermediate.fc2]; "
        f"decoder (decoder.layers.*) 0-1: {SELF} {MLP}",
        options={
            "backbone_config": {**VIT_SCALES, "image_size": 128},
            "projector_scale_factors": [1.0],
            "projector_in_channels": [32],
            "num_feature_levels": 1,
            "num_queries": 10,
        },
        inputs=larger_image,
    ),
    Family(
        "pp_doclayout_v2",
        "PaddlePaddle/PP-DocLayoutV2_safetensors",
        place=PADDLE,  # the transformer for the reading order is in the head
        options={
            **HYBRID,
            "backbone_config": HGNET,
            "class_thresholds": [0.0, 0.0],
            "class_order": [0, 1],
        },
        inputs=image,
        auto=DETECTION,
    ),
    Family(
        "pp_doclayout_v3",
        "PaddlePaddle/PP-DocLayoutV3_safetensors",
        place=PADDLE,
        options={
            **HYBRID,
            "backbone_config": HGNET,
            "mask_feature_channels": [8, 8],
            "x4_feat_dim": 8,
        },
        inputs=image,
        auto=DETECTION,
    ),
    Family(
        "pp_doclayout_v4",
        "PaddlePaddle/PP-DocLayoutV4_safetensors",
        place=PADDLE,
        options={**HYBRID, "backbone_config": HGNET},
        inputs=image,
        auto=DETECTION,
    ),
    Family(
        "rf_detr",
        "Roboflow/rf-detr-base",
        place="backbone (backbone.backbone.encoder.layer.*) 0-1: "
        f"attention[q_proj k_proj v_proj > o_proj] {MLP}; "
        f"decoder (decoder.layers.*) 0-1: {SELF} {MLP}",
        options={"backbone_config": {**VIT_SCALES, "patch_size": 16}, "num_queries": 10},
        inputs=image,
    ),
    Family(
        "rt_detr",
        "PekingU/rtdetr_r50vd",
        place=RT_DETR,
        options={**HYBRID, "backbone_config": {**SCALES, "model_type": "rt_detr_resnet"}},
        inputs=image,
    ),
    Family(
        "rt_detr_v2",
        "PekingU/rtdetr_v2_r18vd",
        place=RT_DETR,
        options={**HYBRID, "backbone_config": {**SCALES, "model_type": "rt_detr_resnet"}},
        inputs=image,
    ),
    Family(
        "table-transformer",
        "microsoft/table-transformer-detection",
        place="encoder (encoder.layers.*) 0-1: self_attn[q_proj k_proj v_proj > out_proj] "
        "fc2[fc1 > fc2]; decoder (decoder.layers.*) 0-1: "
        "self_attn[q_proj k_proj v_proj > out_proj] "
        "xencoder_attn[q_proj k_proj v_proj > out_proj] fc2[fc1 > fc2]",
        options={"backbone_config": ONE_SCALE, "num_queries": 10},
        inputs=image,
        without=OFF_INTERFACE,
    ),
    Family(
        "yolos",
        "hustvl/yolos-base",
        place="encoder (encoder.layer.*) 0-1: "
        "attention.attention[query key value > attention.output.dense] "
        "output.dense[intermediate.dense > output.dense]",
        options={"image_size": [64, 64]},
    ),
]
