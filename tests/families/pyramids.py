"""Encoders of images in stages, each wider and of fewer tokens than the one before."""

from families._inputs_vision import image
from families.family import Family
from families.vision import BACKBONE, MLP, OFF_INTERFACE, QKVO, SMALL

SPLIT = (
    "attention.self[query key value > attention.output.dense] "
    "output.dense[intermediate.dense > output.dense]"
)
SWIN = {
    "image_size": 64,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "num_layers": 2,
    "hidden_size": 32,
}
STAGES = {"stage_names": ["stem", "stage1", "stage2"], **BACKBONE}
PYRAMID = {
    "image_size": 64,
    "num_encoder_blocks": 2,
    "depths": [2, 2],
    "hidden_sizes": [16, 32],
    "strides": [4, 2],
    "num_attention_heads": [1, 2],
}
LEVIT = {
    "a": "module[queries_keys_values.linear > projection.linear]",
    "f": "module.linear_down.linear[module.linear_up.linear > module.linear_down.linear]",
    "s": "/encoder.stages.0.layers.4[queries.linear keys_values.linear > projection.linear]",
}
NO_ATTENTION = dict.fromkeys(("LoRA", "Adapter", "Prefix", "UniPELT"), "no attention found")

FAMILIES = [
    Family(
        "cvt",
        "microsoft/cvt-13",
        place="encoder (encoder.stages.*.layers.*) 0-3: "
        "attention.attention[projection_query projection_key projection_value > "
        "attention.output.dense] output.dense[intermediate.dense > output.dense]",
        options={
            "patch_sizes": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [2, 1],
            "embed_dim": [16, 32],
            "num_heads": [1, 2],
            "depth": [2, 2],
            "mlp_ratio": [4.0, 4.0],
            "attention_drop_rate": [0.0, 0.0],
            "drop_rate": [0.0, 0.0],
            "drop_path_rate": [0.0, 0.0],
            "qkv_bias": [True, True],
            "cls_token": [False, True],
            "qkv_projection_method": ["dw_bn", "dw_bn"],
            "kernel_qkv": [3, 3],
            "padding_kv": [1, 1],
            "stride_kv": [2, 2],
            "padding_q": [1, 1],
            "stride_q": [1, 1],
        },
        inputs=image,
        without=OFF_INTERFACE,
    ),
    Family(
        "donut-swin",
        "naver-clova-ix/donut-base",
        place=f"encoder (encoder.layers.*.blocks.*) 0-3: {SPLIT}",
        options=SWIN,
        without=OFF_INTERFACE,
    ),
    Family(
        "focalnet",
        "microsoft/focalnet-tiny",
        place="encoder (encoder.stages.*.layers.*) 0-3: mlp.fc2[mlp.fc1 > mlp.fc2]",
        options={"image_size": 64, "embed_dim": 16, "depths": [2, 2], **BACKBONE},
        without={"LoRA": "query", "Prefix": "interface", "UniPELT": "interface"},
    ),
    Family(
        "glpn",
        "vinvino02/glpn-kitti",
        place="encoder (encoder.block.*.*) 0-3: "
        "attention.self[query key value > attention.output.dense] "
        "mlp.dense2[mlp.dense1 > mlp.dense2]",
        options={**PYRAMID, "sr_ratios": [2, 1], "patch_sizes": [7, 3], "mlp_ratios": [4, 4]},
        inputs=image,
        without=OFF_INTERFACE,
    ),
    Family(
        "hiera",
        "facebook/hiera-base-224",
        place="encoder (encoder.stages.*.layers.*) 0-3: attn[qkv > proj] "
        "mlp.fc2[mlp.fc1 > mlp.fc2]",
        options={
            "image_size": [64, 64],
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [1, 2],
            "num_query_pool": 1,
            "masked_unit_size": [2, 2],
            "masked_unit_attention": [True, False],
            "hidden_size": 32,
            **STAGES,
        },
        without=OFF_INTERFACE,
    ),
    Family(
        "levit",
        "facebook/levit-128S",
        place="encoder (encoder.stages.*.layers.*) "
        + ", ".join(f"{number}: {LEVIT[kind]}" for number, kind in enumerate("afafsfafaf")),
        options={
            "image_size": 64,
            "hidden_sizes": [16, 32],
            "num_attention_heads": [2, 4],
            "depths": [2, 2],
            "key_dim": [8, 8],
            "mlp_ratio": [2, 2],
            "attention_ratio": [2, 2],
            "down_ops": [["Subsample", 8, 2, 4, 2, 2]],
        },
        without=OFF_INTERFACE,
    ),
    Family(
        "maskformer-swin",
        "facebook/maskformer-swin-base-ade",
        place=f"encoder (encoder.layers.*.blocks.*) 0-3: {SPLIT}",
        options={**SWIN, **STAGES},
        without=OFF_INTERFACE,
    ),
    Family(
        "mobilevit",
        "apple/mobilevit-small",
        place="encoder (encoder.layer.*.transformer.layer.*) 0-8: "
        "attention.attention[query key value > attention.output.dense] "
        "output.dense[intermediate.dense > output.dense]",
        options={
            "image_size": 128,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [4, 8, 8, 16, 16, 16, 32],
        },
        without=OFF_INTERFACE,
    ),
    Family(
        "mobilevitv2",
        "apple/mobilevitv2-1.0-imagenet1k-256",
        options=SMALL,
        without=NO_ATTENTION,
    ),
    Family(
        "pvt",
        "Xrenya/pvt-tiny-224",
        place="encoder (encoder.block.*.*) 0-3: "
        "attention.self[query key value > attention.output.dense] "
        "mlp.dense2[mlp.dense1 > mlp.dense2]",
        options={
            **PYRAMID,
            "sequence_reduction_ratios": [2, 1],
            "patch_sizes": [4, 2],
            "mlp_ratios": [8, 4],
        },
        without=OFF_INTERFACE,
    ),
    Family(
        "pvt_v2",
        "OpenGVLab/pvt_v2_b0",
        place="encoder (encoder.layers.*.blocks.*) 0-3: "
        "attention[query key value > proj] mlp.dense2[mlp.dense1 > mlp.dense2]",
        options={
            **PYRAMID,
            "sr_ratios": [2, 1],
            "patch_sizes": [7, 3],
            "mlp_ratios": [8, 4],
            "out_features": ["stage2"],
            "out_indices": [1],
        },
        without=OFF_INTERFACE,
    ),
    Family(
        "pvt_v2",
        "OpenGVLab/pvt_v2_b2_linear",
        place="encoder (encoder.layers.*.blocks.*) 0-3: "
        "attention[query key value > proj] mlp.dense2[mlp.dense1 > mlp.dense2]",
        options={
            **PYRAMID,
            "linear_attention": True,
            "sr_ratios": [2, 1],
            "patch_sizes": [7, 3],
            "mlp_ratios": [8, 4],
            "out_features": ["stage2"],
            "out_indices": [1],
        },
        without=OFF_INTERFACE,
        name="pvt_v2-linear",
    ),
    Family(
        "segformer",
        "nvidia/segformer-b0-finetuned-ade-512-512",
        place=f"encoder (stages.*.blocks.*) 0-3: {QKVO} {MLP}",
        options={**PYRAMID, "sr_ratios": [2, 1], "patch_sizes": [7, 3], "mlp_ratios": [4, 4]},
        inputs=image,
    ),
    Family("swiftformer", "MBZUAI/swiftformer-xs", options=SMALL, without=NO_ATTENTION),
    Family(
        "swin",
        "microsoft/swin-tiny-patch4-window7-224",
        place=f"encoder (encoder.layers.*.blocks.*) 0-3: {QKVO} {MLP}",
        options={**SWIN, **STAGES},
    ),
    Family(
        "swin2sr",
        "caidas/swin2sr-classicalsr-x2-64",
        place=f"encoder (encoder.stages.*.layers.*) 0-3: {SPLIT}",
        options={**SWIN, "image_size": 16, "embed_dim": 32},
        without=OFF_INTERFACE,
    ),
    Family(
        "swinv2",
        "microsoft/swinv2-tiny-patch4-window8-256",
        place=f"encoder (encoder.layers.*.blocks.*) 0-3: {SPLIT}",
        options={**SWIN, **STAGES},
        without=OFF_INTERFACE,
    ),
]
