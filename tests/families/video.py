"""Encoders of video."""

from families.family import Family
from families.vision import MLP, OFF_INTERFACE, OLD, QKVO, VIT

FAMILIES = [
    Family(
        "timesformer",
        "facebook/timesformer-base-finetuned-k400",
        place="encoder (encoder.layer.*) 0-1: "
        "temporal_attention.attention[qkv > temporal_attention.output.dense] "
        "attention.attention[qkv > attention.output.dense] "
        "output.dense[intermediate.dense > output.dense]",
        options={"image_size": 32, "num_frames": 2},
        without=OFF_INTERFACE,
    ),
    Family(
        "videomae",
        "MCG-NJU/videomae-base",
        place=f"encoder (encoder.layer.*) 0-1: {OLD}",
        options={"image_size": 32, "num_frames": 2},
    ),
    Family(
        "videomt",
        "tue-mps/videomt-dinov2-small-ytvis2019",
        place="encoder (layers.*) 0-2: attention[q_proj k_proj v_proj > out_proj] " + MLP,
        options={
            "image_size": 56,
            "num_queries": 10,
            "num_upscale_blocks": 1,
            "num_blocks": 1,
            "num_hidden_layers": 3,
        },
        auto="AutoModelForUniversalSegmentation",
    ),
    Family(
        "videoprism_vision_model",
        "google/videoprism-base-f16r288",
        place=f"spatial (spatial_layers.*) 0-1: {QKVO} {MLP}; "
        f"temporal (temporal_layers.*) 0-1: {QKVO} {MLP}",
        options={
            "image_size": 36,
            "num_frames": 2,
            "num_spatial_layers": 2,
            "num_temporal_layers": 2,
        },
    ),
    Family("vivit", "google/vivit-b-16x2-kinetics400", VIT, {"image_size": 32, "num_frames": 4}),
    Family(
        "vjepa2",
        "facebook/vjepa2-vitl-fpc64-256",
        place="encoder (encoder.layer.*) 0-1: attention[query key value > proj] "
        "mlp.fc2[mlp.fc1 > mlp.fc2]; "
        "predictor (predictor.layer.*) 0-1: -",  # beside the output of the model
        options={
            "crop_size": 32,
            "frames_per_clip": 4,
            "mlp_ratio": 2,
            "pred_hidden_size": 24,
            "pred_num_attention_heads": 4,
            "pred_num_hidden_layers": 2,
        },
    ),
]
