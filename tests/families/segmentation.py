"""Segmenters, and other models that answer for every pixel: depth, poses, matched points."""

from families._inputs_vision import (
    image,
    image_and_task,
    image_pair,
    larger_image,
    pose_image,
    text_line,
)
from families.detection import HGNET
from families.family import Family

SWIN = {
    "image_size": 64,
    "embed_dim": 16,
    "depths": [1, 1, 2, 1],
    "num_heads": [2, 2, 4, 4],
    "window_size": 4,
    "hidden_size": 128,
}
SCALES = {
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
    "out_indices": [1, 2, 3, 4],
    "num_hidden_layers": 4,
}
ONE_SCALE = {"out_features": ["stage2"], "out_indices": [2]}
DINO = {"image_size": 28, **ONE_SCALE}
DEPTH_HEAD = {
    "neck_hidden_sizes": [8, 8, 16, 16],
    "fusion_hidden_size": 16,
    "head_hidden_size": 8,
    "reassemble_hidden_size": 32,
}
EOMT = {
    "image_size": 64,
    "num_queries": 10,
    "num_upscale_blocks": 1,
    "num_blocks": 1,
    "num_hidden_layers": 3,
}
MASKS = {
    "backbone_config": SWIN,
    "encoder_feedforward_dim": 64,
    "decoder_layers": 3,
    "num_queries": 10,
}
KEYPOINTS = {
    "encoder_hidden_sizes": [8, 8, 8, 8],
    "decoder_hidden_size": 16,
    "descriptor_decoder_dim": 32,
    "keypoint_threshold": 0.0,
    "max_keypoints": 12,
    "nms_radius": 1,
    "border_removal_distance": 1,
}
QKVO = "attention[q_proj k_proj v_proj > o_proj]"
MLP = "mlp.fc2[mlp.fc1 > mlp.fc2]"
Q_O, Q_OUT = "[q_proj k_proj v_proj > o_proj]", "[q_proj k_proj v_proj > out_proj]"
SWIN_PLACE = f"0-4: {QKVO} {MLP}"
_REASON = "does not use transformers' attention interface"
OFF_INTERFACE = {"Prefix": _REASON, "UniPELT": _REASON}
DEPTH, SEGMENTATION = "AutoModelForDepthEstimation", "AutoModelForUniversalSegmentation"
MATCHING = "AutoModelForKeypointMatching"

NO_FFN = dict.fromkeys(("Adapter", "UniPELT"), "'ffn'")
# The transformer is in the head, and the base without attention.
IN_THE_HEAD = dict.fromkeys(("LoRA", "Adapter", "Prefix", "UniPELT"), "no attention found")

FAMILIES = [
    Family(
        "chmv2",
        "facebook/dinov3-vitl16-chmv2-dpt-head",
        place=f"encoder (backbone.model.layer.*) 0-3: {QKVO} "
        "mlp.down_proj[mlp.up_proj > mlp.down_proj]",
        options={
            "backbone_config": {"image_size": 64, **SCALES},
            "post_process_channels": [8, 8, 16, 16],
            "fusion_hidden_size": 16,
            "head_hidden_size": 8,
            "number_output_channels": 8,
        },
        inputs=image,
        auto=DEPTH,
    ),
    Family(
        "depth_anything",
        "LiheYoung/depth-anything-small-hf",
        place=f"encoder (backbone.encoder.layer.*) 0-3: {QKVO} {MLP}",
        options={"backbone_config": {"image_size": 56, **SCALES}, **DEPTH_HEAD},
        auto=DEPTH,
    ),
    Family(
        "depth_pro",
        "apple/DepthPro",
        place="patch "
        f"(depth_pro.encoder.patch_encoder.model.encoder.layer.*) 0-1: {QKVO} {MLP}; "
        "image "
        f"(depth_pro.encoder.image_encoder.model.encoder.layer.*) 0-1: {QKVO} {MLP}",
        options={
            "patch_size": 28,
            "image_model_config": DINO,
            "patch_model_config": DINO,
            "fov_model_config": DINO,
            "fusion_hidden_size": 16,
            "intermediate_hook_ids": [1, 0],
            "intermediate_feature_dims": [16, 16],
            "scaled_images_feature_dims": [32, 32, 16],
        },
        inputs=larger_image,
        auto=DEPTH,
    ),
    Family(
        "efficientloftr",
        "zju-community/efficientloftr",
        # Its two images are rows, and its feed-forwards read twice the width.
        place="encoder (local_feature_transformer.layers.*) 0-1: "
        f"self_attention.attention{Q_O} cross_attention.attention{Q_O}",
        without=NO_FFN,
        options={
            "out_features": [8, 8, 16, 32],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_in_channels": [1, 8, 8, 16],
            "stage_block_stride": [[2], [1], [2], [2]],
            "stage_block_out_channels": [[8], [8], [16], [32]],
            "stage_block_in_channels": [[1], [8], [8], [16]],
            "fine_fusion_dims": [32, 16, 8],
            "num_attention_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
        },
        inputs=image_pair,
    ),
    Family(
        "eomt",
        "tue-mps/coco_panoptic_eomt_large_640",
        place=f"encoder (layers.*) 0-2: attention{Q_OUT} {MLP}",
        options=EOMT,
        inputs=image,
        auto=SEGMENTATION,
    ),
    Family(
        "eomt_dinov3",
        "tue-mps/coco_panoptic_eomt_large_640_dinov3",
        # Its queries are hidden from patches that they see.
        place=f"decoder (layers.*) causal 0-2: {QKVO} mlp.down_proj[mlp.up_proj > mlp.down_proj]",
        options=EOMT,
        inputs=image,
        auto=SEGMENTATION,
    ),
    Family(
        "lightglue",
        "ETH-CVG/lightglue_superpoint",
        place="decoder (transformer_layers.*) causal 0-1: "
        f"self_attention{Q_O} cross_attention{Q_O}",
        without=NO_FFN,
        options={
            "keypoint_detector_config": KEYPOINTS,
            "descriptor_dim": 32,
            "depth_confidence": -1.0,
            "width_confidence": -1.0,
        },
        inputs=image_pair,
        auto=MATCHING,
    ),
    Family(
        "mask2former",
        "facebook/mask2former-swin-small-coco-instance",
        place="pixel_level_module_swin "
        f"(model.pixel_level_module.encoder.swin.encoder.layers.*.blocks.*) {SWIN_PLACE}; "
        "pixel_level_module_decoder "
        "(model.pixel_level_module.decoder.encoder.layers.*) 0-1: fc2[fc1 > fc2]; "
        "transformer_module (model.transformer_module.decoder.layers.*) 0-1: "
        f"self_attn{Q_OUT} fc2[fc1 > fc2]",
        options={**MASKS, "feature_size": 32, "mask_feature_size": 32},
        inputs=image,
        auto=SEGMENTATION,
    ),
    Family(
        "maskformer",
        "facebook/maskformer-swin-base-ade",
        place="encoder (model.pixel_level_module.encoder.model.encoder.layers.*.blocks.*) 0-4: "
        "attention.self[query key value > attention.output.dense] "
        "output.dense[intermediate.dense > output.dense]; "
        "decoder (model.transformer_module.decoder.layers.*) 0-1: "
        f"self_attn{Q_O} xencoder_attn{Q_O} {MLP}",
        options={"backbone_config": SWIN, "fpn_feature_size": 32, "mask_feature_size": 32},
        inputs=image,
        auto="AutoModelForInstanceSegmentation",
    ),
    Family(
        "oneformer",
        "shi-labs/oneformer_ade20k_swin_tiny",
        place="pixel_level_module_swin "
        f"(model.pixel_level_module.encoder.swin.encoder.layers.*.blocks.*) {SWIN_PLACE}; "
        "pixel_level_module_decoder "
        "(model.pixel_level_module.decoder.encoder.layers.*) 0-1: fc2[fc1 > fc2]; "
        "transformer_module_query "
        "(model.transformer_module.decoder.query_transformer.decoder.layers.*) 0-1: "
        "linear2[linear1 > linear2]; "
        "transformer_module (model.transformer_module.decoder.layers.*) 0-1: "
        f"self_attn.self_attn{Q_OUT} ffn.linear2[ffn.linear1 > ffn.linear2]",
        options={**MASKS, "conv_dim": 32, "mask_dim": 32},
        inputs=image_and_task,
        auto=SEGMENTATION,
    ),
    Family(
        "pp_ocrv5_mobile_rec",
        "PaddlePaddle/PP-OCRv5_mobile_rec_safetensors",
        without=IN_THE_HEAD,
        options={"head_out_channels": 16},
        inputs=text_line,
        auto="AutoModelForTextRecognition",
    ),
    Family(
        "pp_ocrv5_server_rec",
        "PaddlePaddle/PP-OCRv5_server_rec_safetensors",
        without=IN_THE_HEAD,
        options={"backbone_config": HGNET, "head_out_channels": 16},
        inputs=text_line,
        auto="AutoModelForTextRecognition",
    ),
    Family(
        "pp_ocrv6_small_rec",
        "PaddlePaddle/PP-OCRv6_small_rec_safetensors",
        without=IN_THE_HEAD,
        options={"head_out_channels": 16},
        inputs=text_line,
        auto="AutoModelForTextRecognition",
    ),
    Family(
        "prompt_depth_anything",
        "depth-anything/prompt-depth-anything-vits-hf",
        place=f"encoder (backbone.encoder.layer.*) 0-3: {QKVO} {MLP}",
        options={"backbone_config": {"image_size": 56, **SCALES}, **DEPTH_HEAD},
        auto=DEPTH,
    ),
    Family(
        "superglue",
        "magic-leap-community/superglue_indoor",
        place="encoder (gnn.layers.*) 0: attention.self[query key value > attention.output.dense], "
        "1: xattention.self[query key value > attention.output.dense]",
        options={
            "keypoint_detector_config": KEYPOINTS,
            "keypoint_encoder_sizes": [8, 8, 32],
            "gnn_layers_types": ["self", "cross"],
            "sinkhorn_iterations": 3,
        },
        inputs=image_pair,
        without={**OFF_INTERFACE, **NO_FFN},
        auto=MATCHING,
    ),
    Family(
        "tipsv2_dpt",
        "google/tipsv2-b14-dpt",
        place=f"encoder (backbone.encoder.layer.*) 0-3: {QKVO} {MLP}",
        options={
            "backbone_config": {"image_size": 56, **SCALES},
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16,
            "num_depth_bins": 8,
        },
        auto=DEPTH,
    ),
    Family(
        "upernet",
        "openmmlab/upernet-swin-tiny",
        place=f"encoder (backbone.swin.encoder.layers.*.blocks.*) {SWIN_PLACE}",
        options={
            "backbone_config": {"model_type": "swin", **SWIN, **SCALES},
            "hidden_size": 32,
            "auxiliary_in_channels": 64,
            "auxiliary_channels": 16,
        },
        inputs=image,
        auto="AutoModelForSemanticSegmentation",
    ),
    Family(
        "vitpose",
        "usyd-community/vitpose-base-simple",
        place="encoder (backbone.encoder.layer.*) 0-1: "
        f"attention.attention[query key value > attention.output.dense] {MLP}",
        options={"backbone_config": {"image_size": [64, 32], **ONE_SCALE}},
        auto="AutoModelForPoseEstimation",
    ),
    Family(
        "vitpose",
        "usyd-community/vitpose-plus-base",
        # Its experts give some of the channels.
        place="encoder (backbone.encoder.layer.*) 0-1: "
        "attention.attention[query key value > attention.output.dense]",
        without=NO_FFN,
        options={
            "backbone_config": {
                "image_size": [64, 32],
                "num_experts": 6,
                "part_features": 8,
                **ONE_SCALE,
            }
        },
        inputs=pose_image,
        auto="AutoModelForPoseEstimation",
        name="vitpose-plus",
    ),
    Family(
        "zoedepth",
        "Intel/zoedepth-nyu",
        place=f"encoder (backbone.beit.layers.*) 0-3: {QKVO} {MLP}",
        options={
            "backbone_config": {"image_size": 64, **SCALES},
            "bottleneck_features": 16,
            **DEPTH_HEAD,
        },
        auto=DEPTH,
    ),
]
