"""Time series."""

from families.family import Family

SAMPLED = {
    "prediction_length": 8,
    "context_length": 16,
    "num_time_features": 2,
    "num_static_categorical_features": 1,
    "cardinality": [8],
    "embedding_dimension": [2],
    "feature_size": 13,  # lags, embedding, features of time, mean and scale
}

MIXED = {"context_length": 64, "num_patches": 8, "d_model": 32, "num_input_channels": 3}

ENCODER_DECODER = (
    "encoder (encoder.layers.*) 0-1: self_attn[q_proj k_proj v_proj > out_proj] fc2[fc1 > fc2]; "
    "decoder (decoder.layers.*) causal 0-1: self_attn[q_proj k_proj v_proj > out_proj] "
    "xencoder_attn[q_proj k_proj v_proj > out_proj] fc2[fc1 > fc2]"
)

OFF_INTERFACE = dict.fromkeys(("Prefix", "UniPELT"), "attention interface")
MIXER = "feature_mixer.mlp.fc2[feature_mixer.mlp.fc1 > feature_mixer.mlp.fc2]"

FAMILIES = [
    Family(
        "autoformer",
        "huggingface/autoformer-tourism-monthly",
        # Its auto-correlations have no softmax over keys.
        place="encoder (encoder.layers.*) 0-1: fc2[fc1 > fc2]; "
        "decoder (decoder.layers.*) 0-1: fc2[fc1 > fc2]",
        options={**SAMPLED, "label_length": 4, "moving_average": 5},
        without={"LoRA": "'query'", **OFF_INTERFACE},
    ),
    Family(
        "informer",
        "huggingface/informer-tourism-monthly",
        place=ENCODER_DECODER,
        options={**SAMPLED, "lags_sequence": [1, 2, 3, 4, 5, 6, 7]},
    ),
    Family(
        "patchtsmixer",
        "ibm-granite/granite-timeseries-patchtsmixer",
        place=f"encoder (encoder.mlp_mixer_encoder.mixers.*) 0-1: {MIXER}",
        options=MIXED,
        without={"LoRA": "unknown site on patchtsmixer 'query'", **OFF_INTERFACE},
    ),
    Family(
        "patchtsmixer",
        "ibm/patchtsmixer-etth1-pretrain",
        place="encoder (encoder.mlp_mixer_encoder.mixers.*) 0-1: patch_mixer.self_attn_layer["
        f"q_proj k_proj v_proj > out_proj] {MIXER}",
        options={**MIXED, "self_attn": True, "self_attn_heads": 4},
        name="patchtsmixer-attention",
    ),
    Family(
        "patchtst",
        "ibm-granite/granite-timeseries-patchtst",
        place="encoder (encoder.layers.*) 0-1: self_attn[q_proj k_proj v_proj > out_proj] "
        "ff.3[ff.0 > ff.3]",
        options={
            "context_length": 64,
            "patch_length": 12,
            "patch_stride": 12,
            "num_input_channels": 3,
        },
    ),
    Family(
        "time_series_transformer",
        "huggingface/time-series-transformer-tourism-monthly",
        place=ENCODER_DECODER,
        options=SAMPLED,
    ),
    Family(
        "timesfm",
        "google/timesfm-2.0-500m-pytorch",
        place="decoder (layers.*) causal 0-1: self_attn[q_proj k_proj v_proj > o_proj] "
        "mlp.down_proj[mlp.gate_proj > mlp.down_proj]",
    ),
    Family(
        "timesfm2_5",
        "google/timesfm-2.5-200m-transformers",
        place="decoder (layers.*) causal 0-1: self_attn[q_proj k_proj v_proj > o_proj] "
        "mlp.fc2[mlp.fc1 > mlp.fc2]",
        options={"context_length": 128},
    ),
]
