"""Encoders of images whose blocks all have one width."""

from families._inputs_vision import all_words, prompted_image
from families.family import Family

SMALL = {"image_size": 64}
BACKBONE = {"out_features": ["stage2"], "out_indices": [2]}
QKVO = "attention[q_proj k_proj v_proj > o_proj]"
MLP = "mlp.fc2[mlp.fc1 > mlp.fc2]"
VIT = f"encoder (layers.*) 0-1: {QKVO} {MLP}"
DINO = f"encoder (encoder.layer.*) 0-1: {QKVO} {MLP}"
CLIP = (
    "encoder (encoder.layers.*) 0-1: self_attn[q_proj k_proj v_proj > out_proj] "
    "mlp.fc2[mlp.fc1 > mlp.fc2]"
)
OLD = (
    "attention.attention[query key value > attention.output.dense] "
    "output.dense[intermediate.dense > output.dense]"
)
_REASON = "does not use transformers' attention interface"
OFF_INTERFACE = {"Prefix": _REASON, "UniPELT": _REASON}

FAMILIES = [
    Family(
        "beit",
        "microsoft/beit-base-patch16-224",
        place=VIT,
        options={**SMALL, **BACKBONE, "use_relative_position_bias": True},
    ),
    Family(
        "beit",
        "microsoft/beit-base-patch16-224-pt22k",
        place=VIT,
        options={
            **SMALL,
            **BACKBONE,
            "use_shared_relative_position_bias": True,
            "use_mask_token": True,
            "use_mean_pooling": False,
        },
        name="beit-pt22k",
    ),
    Family("chinese_clip_vision_model", "OFA-Sys/chinese-clip-vit-base-patch16", CLIP, SMALL),
    Family(
        "data2vec-vision",
        "facebook/data2vec-vision-base-ft1k",
        place=f"encoder (encoder.layer.*) 0-1: {OLD}",
        options={**SMALL, "use_relative_position_bias": True},
        without=OFF_INTERFACE,
    ),
    Family("deit", "facebook/deit-base-distilled-patch16-224", VIT, SMALL),
    Family("dinov2", "facebook/dinov2-base", DINO, {"image_size": 56, **BACKBONE}),
    Family(
        "dinov2",
        "facebook/dinov2-giant",
        place=f"encoder (encoder.layer.*) 0-1: {QKVO} "
        "mlp.down_proj[mlp.gate_proj mlp.up_proj > mlp.down_proj]",
        options={"image_size": 56, "use_swiglu_ffn": True, **BACKBONE},
        name="dinov2-giant",
    ),
    Family(
        "dinov2_with_registers",
        "facebook/dinov2-with-registers-base",
        place=DINO,
        options={"image_size": 56, "patch_size": 14, **BACKBONE},
    ),
    Family(
        "dinov3_vit",
        "facebook/dinov3-vits16-pretrain-lvd1689m",
        place=f"encoder (model.layer.*) 0-1: {QKVO} mlp.down_proj[mlp.up_proj > mlp.down_proj]",
        options={**SMALL, **BACKBONE, "num_register_tokens": 4},
    ),
    Family(
        "dinov3_vit",
        "facebook/dinov3-vith16plus-pretrain-lvd1689m",
        place=f"encoder (model.layer.*) 0-1: {QKVO} "
        "mlp.down_proj[mlp.gate_proj mlp.up_proj > mlp.down_proj]",
        options={
            **SMALL,
            **BACKBONE,
            "num_register_tokens": 4,
            "use_gated_mlp": True,
            "hidden_act": "silu",
        },
        name="dinov3_vit-plus",
    ),
    Family("dpt", "Intel/dpt-large", f"encoder (encoder.layer.*) 0-1: {OLD}", SMALL),
    Family("ijepa", "facebook/ijepa_vith14_1k", VIT, {"image_size": 56}),
    Family(
        "imagegpt",
        "openai/imagegpt-small",
        place="decoder (h.*) causal 0-1: attn[c_attn > c_proj] mlp.c_proj[mlp.c_fc > mlp.c_proj]",
        without=OFF_INTERFACE,
    ),
    Family(
        "internvl_vision",
        "OpenGVLab/InternVL3-1B-hf",
        place="encoder (encoder.layer.*) 0-1: attention[q_proj k_proj v_proj > projection_layer] "
        + MLP,
        options={"image_size": [56, 56]},
    ),
    Family(
        "mlcd", "DeepGlint-AI/mlcd-vit-bigG-patch14-336", CLIP, {"image_size": 56, "patch_size": 14}
    ),
    Family("mlcd_vision_model", "DeepGlint-AI/mlcd-vit-bigG-patch14-336", CLIP, {"image_size": 56}),
    Family(
        "perceiver",
        "deepmind/language-perceiver",
        place="encoder (perceiver.encoder.self_attends.*) 0-1: "
        "attention.self[query key value > attention.output.dense] "
        "mlp.dense2[mlp.dense1 > mlp.dense2]",
        options={
            "d_model": 32,
            "d_latents": 48,
            "num_latents": 8,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
            "qk_channels": 16,
            "v_channels": 48,
        },
        inputs=all_words,
        without=OFF_INTERFACE,
        auto="AutoModelForMaskedLM",
    ),
    Family("pixio", "facebook/pixio-huge", VIT, {**SMALL, **BACKBONE}),
    Family("radio", "nvidia/C-RADIOv4-H", DINO, {**SMALL, "max_img_size": 128}),
    Family(
        "sapiens2",
        "facebook/sapiens2-pretrain-0.4b",
        place=f"encoder (model.layer.*) 0-1: {QKVO} "
        "mlp.down_proj[mlp.gate_proj mlp.up_proj > mlp.down_proj]",
        options={**SMALL, **BACKBONE, "num_key_value_heads_per_layer": [4, 2]},
    ),
    Family(
        "seggpt",
        "BAAI/seggpt-vit-large",
        place="encoder (encoder.layers.*) 0-1: attention[qkv > proj] mlp.lin2[mlp.lin1 > mlp.lin2]",
        options={
            "image_size": [64, 32],
            "pretrain_image_size": 32,
            "merge_index": 0,
            "intermediate_hidden_state_indices": [0, 1],
        },
        inputs=prompted_image,
        without=OFF_INTERFACE,
    ),
    Family("tipsv2_vision_model", "google/tipsv2-b14", DINO, {"image_size": 56, **BACKBONE}),
    Family("vit", "google/vit-base-patch16-224", VIT, SMALL),
    Family("vit_mae", "facebook/vit-mae-base", VIT, SMALL),
    Family("vit_msn", "facebook/vit_msn_base", VIT, SMALL),
    Family(
        "vitdet",
        "google/vitdet-base-patch16-224",
        place="encoder (encoder.layer.*) 0-1: attention[qkv > proj] mlp.fc2[mlp.fc1 > mlp.fc2]",
        options={
            **SMALL,
            **BACKBONE,
            "pretrain_image_size": 64,
            "window_block_indices": [0],
            "window_size": 2,
            "use_relative_position_embeddings": True,
        },
        without=OFF_INTERFACE,
    ),
    Family(
        "vitmatte",
        "hustvl/vitmatte-small-composition-1k",
        place=f"encoder (backbone.encoder.layer.*) 0-1: attention[qkv > proj] {MLP}",
        options={
            "hidden_size": 32,
            "backbone_config": {
                **SMALL,
                **BACKBONE,
                "num_channels": 4,
                "window_size": 2,
                "window_block_indices": [0],
                "residual_block_indices": [1],
                "use_relative_position_embeddings": True,
            },
            "convstream_hidden_sizes": [16, 16, 16],
            "fusion_hidden_sizes": [32, 32, 32, 32],
        },
        auto="AutoModelForImageMatting",
        without=OFF_INTERFACE,
    ),
]
