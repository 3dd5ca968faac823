"""Models of pages: text with its place, and images of text to text."""

import torch

from families._inputs_multimodal import WORDS
from families.family import Family

BERT = (
    "attention.self[query key value > attention.output.dense] "
    "output.dense[intermediate.dense > output.dense]"
)
BOXES = torch.tensor([[[n, n, n + 10, n + 5] for n in range(len(WORDS))]])

OFF = dict.fromkeys(("Prefix", "UniPELT"), "does not use transformers' attention interface")

FAMILIES = [
    Family(
        "layoutlm",
        "microsoft/layoutlm-base-uncased",
        f"encoder (encoder.layer.*) 0-1: {BERT}",
        {"max_2d_position_embeddings": 64},
    ),
    Family(
        "layoutlmv3",
        "microsoft/layoutlmv3-base",
        f"encoder (encoder.layer.*) 0-1: {BERT}",
        {"input_size": 64, "coordinate_size": 5, "shape_size": 6, "max_2d_position_embeddings": 64},
    ),
    Family(
        "mgp-str",
        "alibaba-damo/mgp-str-base",
        "encoder (mgp_str.encoder.blocks.*) 0-1: attn[qkv > proj] mlp.fc2[mlp.fc1 > mlp.fc2]",
        {"image_size": [32, 32]},
        without=OFF,
    ),
    Family(
        "pix2struct",
        "google/pix2struct-base",
        "encoder (encoder.encoder.layer.*) 0-1: attention[query key value > output] "
        "mlp.wo[mlp.wi_0 mlp.wi_1 > mlp.wo]; decoder (decoder.layer.*) causal 0-1: "
        "self_attention.attention[query key value > output] "
        "xencoder_decoder_attention.attention[query key value > output] "
        "mlp.DenseReluDense.wo[mlp.DenseReluDense.wi_0 mlp.DenseReluDense.wi_1 > "
        "mlp.DenseReluDense.wo]",
        {"vision_config": {"seq_len": 64, "patch_embed_hidden_size": 48}},
        auto="AutoModelForImageTextToText",
    ),
    Family(
        "pp_chart2table",
        "PaddlePaddle/PP-Chart2Table_safetensors",
        "vision (model.vision_tower.layers.*) 0-1: attn[qkv > proj] mlp.lin2[mlp.lin1 > "
        "mlp.lin2]; text (model.language_model.layers.*) causal 0-1: self_attn[q_proj "
        "k_proj v_proj > o_proj] mlp.down_proj[mlp.gate_proj mlp.up_proj > mlp.down_proj]",
        {
            "vision_config": {
                "image_size": 128,
                "window_size": 4,
                "global_attn_indexes": [1],
                "output_channels": 32,
            }
        },
        auto="AutoModelForImageTextToText",
    ),
    Family(
        "pp_formulanet",
        "PaddlePaddle/PP-FormulaNet_plus-L_safetensors",
        "encoder (model.encoder.layers.*) 0-1: attn[qkv > proj] mlp.lin2[mlp.lin1 > "
        "mlp.lin2]; decoder (model.decoder.layers.*) causal 0-1: self_attn[q_proj k_proj "
        "v_proj > out_proj] xencoder_attn[q_proj k_proj v_proj > out_proj] fc2[fc1 > fc2]",
        {
            "vision_config": {
                "image_size": 128,
                "window_size": 4,
                "global_attn_indexes": [1],
                "output_channels": 32,
                "post_conv_in_channels": 32,
                "post_conv_mid_channels": 32,
                "post_conv_out_channels": 32,
                "decoder_hidden_size": 32,
            }
        },
        auto="AutoModelForImageTextToText",
    ),
    Family(
        "udop",
        "microsoft/udop-large",
        "encoder (encoder.block.*) 0-1: layer.0.SelfAttention[q k v > o] "
        "layer.1.DenseReluDense.wo[layer.1.DenseReluDense.wi > "
        "layer.1.DenseReluDense.wo]; decoder (decoder.block.*) causal 0-1: "
        "layer.0.SelfAttention[q k v > o] xlayer.1.EncDecAttention[q k v > o] "
        "layer.2.DenseReluDense.wo[layer.2.DenseReluDense.wi > layer.2.DenseReluDense.wo]",
        {"image_size": 64, "max_2d_position_embeddings": 64},
    ),
    Family(
        "vision-encoder-decoder",
        "naver-clova-ix/donut-base",
        f"encoder (encoder.encoder.layers.*.blocks.*) 0-2: {BERT}; decoder "
        "(decoder.model.decoder.layers.*) causal 0-1: self_attn[q_proj k_proj v_proj > "
        "out_proj] xencoder_attn[q_proj k_proj v_proj > out_proj] fc2[fc1 > fc2]",
        {
            "encoder": {
                "model_type": "donut-swin",
                "image_size": 64,
                "patch_size": 4,
                "embed_dim": 8,
                "depths": [1, 2],
                "num_attention_heads": [1, 2],
                "num_heads": [1, 2],
                "window_size": 4,
                "num_layers": 2,
                "hidden_size": 16,
            },
            "decoder": {
                "model_type": "mbart",
                "d_model": 32,
                "decoder_layers": 2,
                "decoder_attention_heads": 4,
                "decoder_ffn_dim": 64,
                "scale_embedding": True,
                "classifier_dropout": 0.0,
                "hidden_size": 32,
                "num_hidden_layers": 2,
            },
        },
        auto="AutoModelForImageTextToText",
        name="donut",
    ),
    Family(
        "vision-encoder-decoder",
        "microsoft/trocr-base-handwritten",
        "encoder (encoder.layers.*) 0-1: attention[q_proj k_proj v_proj > o_proj] "
        "mlp.fc2[mlp.fc1 > mlp.fc2]; decoder (decoder.model.decoder.layers.*) causal 0-1: "
        "self_attn[q_proj k_proj v_proj > out_proj] xencoder_attn[q_proj k_proj v_proj > "
        "out_proj] fc2[fc1 > fc2]",
        {
            "encoder": {"image_size": 64, "model_type": "deit", "qkv_bias": False},
            "decoder": {
                "model_type": "trocr",
                "d_model": 32,
                "decoder_layers": 2,
                "decoder_attention_heads": 4,
                "decoder_ffn_dim": 64,
                "scale_embedding": False,
                "cross_attention_hidden_size": 32,
            },
        },
        auto="AutoModelForImageTextToText",
        name="trocr",
    ),
    Family(
        "vision-encoder-decoder",
        "nlpconnect/vit-gpt2-image-captioning",
        "encoder (encoder.layers.*) 0-1: attention[q_proj k_proj v_proj > o_proj] "
        "mlp.fc2[mlp.fc1 > mlp.fc2]; decoder (decoder.transformer.h.*) causal 0-1: "
        "attn[c_attn > c_proj] xcrossattention[q_attn c_attn > c_proj] "
        "mlp.c_proj[mlp.c_fc > mlp.c_proj]",
        {
            "encoder": {"image_size": 64},
            "decoder": {
                "model_type": "gpt2",
                "n_embd": 32,
                "n_head": 4,
                "n_layer": 2,
                "n_positions": 64,
                "add_cross_attention": True,
            },
        },
        auto="AutoModelForImageTextToText",
        name="vit-gpt2",
    ),
]
