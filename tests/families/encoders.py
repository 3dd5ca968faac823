"""Encoders of text, and models that are built on one."""

from families._inputs_multimodal import pictured
from families._inputs_text import (
    boxed,
    laid_out,
    many_words,
    residues,
    spoken,
    states,
    with_entities,
    with_placed_regions,
    with_regions,
)
from families.family import Family

FFN = "output.dense[intermediate.dense > output.dense]"
LAYER = f"attention.self[query key value > attention.output.dense] {FFN}"
BERT = f"encoder (encoder.layer.*) 0-1: {LAYER}"
QKVO = "self_attn[q_proj k_proj v_proj > o_proj]"
GATED = f"{QKVO} mlp.down_proj[mlp.gate_proj mlp.up_proj > mlp.down_proj]"
LLAMA = f"encoder (layers.*) 0-1: {GATED}"
SIGLIP = "self_attn[q_proj k_proj v_proj > out_proj] mlp.fc2[mlp.fc1 > mlp.fc2]"
FUNNEL = "attention[q_head k_head v_head > post_proj] ffn.linear_2[ffn.linear_1 > ffn.linear_2]"
XLM = (
    "encoder (attentions.*) 0: /attentions.0[q_lin k_lin v_lin > out_lin], "
    "1: /attentions.1[q_lin k_lin v_lin > out_lin]"
)
CLVP_TEXT = "self_attn[q_proj k_proj v_proj > out_proj] mlp.fc2[mlp.fc1.proj > mlp.fc2]"

OFF = {"Prefix": "does not use transformers' attention interface"}
OFF["UniPELT"] = OFF["Prefix"]


NO_FFN = {**OFF, "Adapter": "unknown site", "UniPELT": "unknown site"}
NO_ATTENTION = dict.fromkeys(("LoRA", "Adapter", "Prefix", "UniPELT"), "no attention found")

BIG_BIRD = {"block_size": 4, "num_random_blocks": 1}
SMALL_WINDOW = {"sliding_window": 2}
DEBERTA = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
}
DEBERTA_V3 = {
    **DEBERTA,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
}
BROS = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "dim_bbox_sinusoid_emb_2d": 16,
    "dim_bbox_sinusoid_emb_1d": 2,
    "dim_bbox_projection": 16,
}
CLVP = {"hidden_size": 128, "num_attention_heads": 2, "projection_dim": 128}
ESM = {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1, "token_dropout": True}
IMAGE = {"image_size": 64, "patch_size": 16}
MOBILE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "embedding_size": 16,
    "intra_bottleneck_size": 16,
    "true_hidden_size": 16,
}
ROC = {
    "pronunciation_embed_dim": 32,
    "pronunciation_vocab_size": 90,
    "shape_embed_dim": 24,
    "shape_vocab_size": 128,
}

# The first block of a stage is given its pooled queries beside the keys.
POOLED = (
    f"encoder (encoder.blocks.*.*) 0-1: {FUNNEL}, 2: x{FUNNEL}, 3: {FUNNEL}, 4: x{FUNNEL}, "
    f"5: {FUNNEL}"
)
# Attention that no softmax of products shows: of parameters (XLNet), or in a function of its own.
NO_QUERY = {"LoRA": "'query'", **OFF}

FAMILIES = [
    Family(
        "albert",
        "albert/albert-base-v2",
        place="encoder (encoder.albert_layer_groups.*.albert_layers.*) 0: "
        "attention[query key value > dense] ffn_output[ffn > ffn_output]",
        options={"embedding_size": 16},
    ),
    Family("bert", "google-bert/bert-base-uncased", BERT),
    Family("bert-generation", "google/bert_for_seq_generation_L-24_bbc_encoder", BERT),
    Family(
        "big_bird", "google/bigbird-roberta-base", BERT, BIG_BIRD, inputs=many_words, without=OFF
    ),
    Family(
        "big_bird",
        "google/bigbird-roberta-base",
        BERT,
        {"attention_type": "original_full"},
        name="big_bird-full",
        without=OFF,
    ),
    Family(
        "bros",
        "jinho8345/bros-base-uncased",
        BERT,
        BROS,
        inputs=boxed,
        without=OFF,
    ),
    Family("camembert", "almanach/camembert-base", BERT),
    Family(
        "canine",
        "google/canine-s",
        place=f"initial_char (initial_char_encoder.layer.*) 0: {LAYER}; {BERT}; "
        f"final_char (final_char_encoder.layer.*) 0: {LAYER}",
        options={"num_hash_buckets": 64, "local_transformer_stride": 4},
        without=OFF,
    ),
    Family(
        "clvp",
        "susnato/clvp_dev",
        place="conditioning (conditioning_encoder.mel_attn_blocks.*) 0-1: -; "
        "speech_decoder (speech_decoder_model.model.decoder.layers.*) causal 0-1: -; "
        f"speech_encoder (speech_encoder_model.layers.*) 0-1: {CLVP_TEXT}; "
        f"text_encoder (text_encoder_model.layers.*) causal 0-1: {CLVP_TEXT}",
        options={
            "decoder_config": {"num_mel_attn_blocks": 2, "n_inner": 64},
            "text_config": CLVP,
            "speech_config": CLVP,
            "projection_dim": 128,
        },
        inputs=spoken,
        without=OFF,
    ),
    Family("convbert", "YituTech/conv-bert-base", BERT, {"embedding_size": 16}, without=OFF),
    Family(
        "convbert",
        "YituTech/conv-bert-medium-small",
        place="encoder (encoder.layer.*) 0-1: "
        "attention.self[query key value > attention.output.dense]",
        options={"embedding_size": 16, "num_groups": 2},
        without=NO_FFN,
        name="convbert-medium-small",
    ),
    Family("data2vec-text", "facebook/data2vec-text-base", BERT),
    Family(
        "deberta",
        "microsoft/deberta-base",
        place="encoder (encoder.layer.*) 0-1: "
        f"attention.self[in_proj > attention.output.dense] {FFN}",
        options={**DEBERTA, "pos_att_type": ["c2p", "p2c"]},
        without=OFF,
    ),
    Family(
        "deberta-v2",
        "microsoft/deberta-v2-xlarge",
        place="encoder (encoder.layer.*) 0-1: "
        f"attention.self[query_proj key_proj value_proj > attention.output.dense] {FFN}",
        options={**DEBERTA_V3, "conv_kernel_size": 3, "conv_act": "gelu"},
        without=OFF,
    ),
    Family(
        "deberta-v2",
        "microsoft/deberta-v3-base",
        place="encoder (encoder.layer.*) 0-1: "
        f"attention.self[query_proj key_proj value_proj > attention.output.dense] {FFN}",
        options=DEBERTA_V3,
        without=OFF,
        name="deberta-v3",
    ),
    Family(
        "decision_transformer",
        "edbeeching/decision-transformer-gym-hopper-medium",
        place="encoder (encoder.h.*) causal 0-1: attn[c_attn > c_proj] "
        "mlp.c_proj[mlp.c_fc > mlp.c_proj]",
        options={"state_dim": 11, "act_dim": 3, "max_ep_len": 64},
        inputs=states,
    ),
    Family(
        "distilbert",
        "distilbert/distilbert-base-uncased",
        place="encoder (transformer.layer.*) 0-1: attention[q_lin k_lin v_lin > out_lin] "
        "ffn.lin2[ffn.lin1 > ffn.lin2]",
        options={"hidden_dim": 64},
    ),
    Family(
        "dpr",
        "facebook/dpr-question_encoder-single-nq-base",
        BERT.replace("encoder.layer", "question_encoder.bert_model.encoder.layer"),
    ),
    Family(
        "dpr",
        "facebook/dpr-reader-single-nq-base",
        BERT.replace("encoder.layer", "span_predictor.encoder.bert_model.encoder.layer"),
        auto="DPRReader",
        name="dpr-reader",
    ),
    Family("electra", "google/electra-small-discriminator", BERT, {"embedding_size": 16}),
    Family(
        "embedding_gemma2_text",
        "google/embeddinggemma-2",
        place=LLAMA,
        options={
            **SMALL_WINDOW,
            "embedding_dim": 48,
            "layer_types": ["sliding_attention", "full_attention"],
            "per_layer_config": {"1": {"head_dim": 16, "num_key_value_heads": 1}},
        },
    ),
    Family("ernie", "nghuyong/ernie-3.0-base-zh", BERT, {"use_task_id": True}),
    Family(
        "esm",
        "facebook/esm2_t12_35M_UR50D",
        BERT,
        {**ESM, "position_embedding_type": "rotary", "emb_layer_norm_before": False},
        inputs=residues,
    ),
    Family(
        "esm",
        "facebook/esm1b_t33_650M_UR50S",
        BERT,
        {**ESM, "emb_layer_norm_before": True},
        inputs=residues,
        name="esm-1b",
    ),
    Family("esmc", "biohub/ESMC-6B", LLAMA),
    Family("eurobert", "EuroBERT/EuroBERT-210m", LLAMA),
    Family(
        "flaubert",
        "flaubert/flaubert_base_cased",
        place=XLM,
        without=NO_FFN,
    ),
    Family(
        "fnet",
        "google/fnet-base",
        place="encoder (encoder.layer.*) causal 0-1: "
        "output.dense[intermediate.dense > output.dense]",
        without=NO_QUERY,
    ),
    Family(
        "funnel",
        "funnel-transformer/small",
        place=f"{POOLED}; decoder (decoder.layers.*) 0-1: {FUNNEL}",
        options={"architectures": ["FunnelModel"], "block_sizes": [2, 2, 2], "d_head": 8},
        without=OFF,
    ),
    Family(
        "funnel",
        "funnel-transformer/small-base",
        place=POOLED,
        options={"architectures": ["FunnelBaseModel"], "block_sizes": [2, 2, 2], "d_head": 8},
        without=OFF,
        name="funnel-base",
    ),
    Family("gte", "alibaba-nlp-community/gte-multilingual-base", LLAMA),
    Family("ibert", "kssteven/ibert-roberta-base", BERT, without=OFF),
    Family(
        "jina_embeddings_v3",
        "jinaai/jina-embeddings-v3-hf",
        place=f"encoder (layers.*) 0-1: {QKVO} mlp.fc2[mlp.fc1 > mlp.fc2]",
    ),
    Family(
        "lilt",
        "SCUT-DLVCLab/lilt-roberta-en-base",
        BERT,
        {"hidden_size": 48, "intermediate_size": 96},
        inputs=laid_out,
        without=OFF,
    ),
    Family(
        "longformer",
        "allenai/longformer-base-4096",
        BERT,
        {"attention_window": [4, 4]},
        without=OFF,
    ),
    Family("luke", "studio-ousia/luke-base", BERT, {"entity_emb_size": 16}, without=OFF),
    Family(
        "luke",
        "studio-ousia/luke-base",
        BERT,
        {"entity_emb_size": 16},
        inputs=with_entities,
        without=OFF,
        name="luke-entities",
    ),
    Family(
        "lxmert",
        "unc-nlp/lxmert-base-uncased",
        place=f"encoder (encoder.layer.*) 0-1: {LAYER}; r (encoder.r_layers.*) 0-1: {LAYER}; "
        "x (encoder.x_layers.*) 0-1: xvisual_attention.att[query key value > "
        "visual_attention.output.dense] lang_self_att.self[query key value > "
        "lang_self_att.output.dense] visn_self_att.self[query key value > "
        "visn_self_att.output.dense]",
        options={
            "l_layers": 2,
            "r_layers": 2,
            "x_layers": 2,
            "visual_feat_dim": 24,
            "num_hidden_layers": {"vision": 2, "cross_encoder": 2, "language": 2},
        },
        inputs=with_placed_regions,
        without=OFF,
    ),
    Family(
        "markuplm",
        "microsoft/markuplm-base",
        BERT,
        {"max_depth": 4, "xpath_unit_hidden_size": 8},
    ),
    Family("megatron-bert", "nvidia/megatron-bert-uncased-345m", BERT, without=OFF),
    Family("mobilebert", "google/mobilebert-uncased", BERT, MOBILE),
    Family(
        "modernbert",
        "answerdotai/ModernBERT-base",
        place="encoder (layers.*) 0-1: attn[Wqkv > Wo] mlp.Wo[mlp.Wi > mlp.Wo]",
        options={"intermediate_size": 48, "local_attention": 4},
    ),
    Family(
        "modernvbert",
        "ModernVBERT/modernvbert",
        place=f"vision (vision_model.encoder.layers.*) 0-1: {SIGLIP}; "
        "text (text_model.layers.*) 0-1: attn[Wqkv > Wo] mlp.Wo[mlp.Wi > mlp.Wo]",
        options={
            "vision_config": IMAGE,
            "text_config": {"local_attention": 4, "intermediate_size": 48},
            "pixel_shuffle_factor": 2,
        },
        inputs=pictured(1, 1, 3, 64, 64, tokens=4),
    ),
    Family(
        "mpnet",
        "microsoft/mpnet-base",
        place=f"encoder (encoder.layer.*) 0-1: attention.attn[q k v > o] {FFN}",
        without=OFF,
    ),
    Family(
        "mra",
        "uw-madison/mra-base-512-4",
        place="encoder (encoder.layer.*) causal 0-1: " + FFN,
        without={**OFF, "LoRA": "unknown site"},
    ),
    Family(
        "neomme",
        "Hcompany/NeoMME-260M",
        place="encoder (layers.*) 0-1: self_attn[q_proj k_proj v_proj > output_projection.o_proj] "
        "mlp.down_proj[mlp.up_proj > mlp.down_proj]",
        options={
            **SMALL_WINDOW,
            "embedding_rank": 16,
            "head_dim": 16,
            "patch_size": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "per_layer_config": {"1": {"sliding_window": None}},
        },
    ),
    Family("nomic_bert", "nomic-ai/nomic-embed-text-v1.5", LLAMA),
    Family("nystromformer", "uw-madison/nystromformer-512", BERT, without=OFF),
    Family(
        "openai_privacy_filter",
        "openai/privacy-filter",
        place=f"encoder (layers.*) 0-1: {QKVO} mlp",
        options={**SMALL_WINDOW, "intermediate_size": 32},
    ),
    Family(
        "reformer",
        "google/reformer-enwik8",
        options={
            "attention_head_size": 8,
            "attn_layers": ["local", "lsh"],
            "axial_pos_embds_dim": [8, 24],
            "axial_pos_shape": [8, 8],
            "local_attn_chunk_length": 4,
            "lsh_attn_chunk_length": 4,
            "num_buckets": 2,
            "hash_seed": 0,
        },
        without=NO_ATTENTION,
    ),
    Family(
        "rembert",
        "google/rembert",
        BERT,
        {"input_embedding_size": 16, "output_embedding_size": 48},
        without=OFF,
    ),
    Family("roberta", "FacebookAI/roberta-base", BERT),
    Family("roberta-prelayernorm", "andreasmadsen/efficient_mlm_m0.40", BERT),
    Family("roc_bert", "weiweishi/roc-bert-base-zh", BERT, ROC),
    Family("roformer", "junnyu/roformer_chinese_base", BERT, without=OFF),
    Family("splinter", "tau/splinter-base", BERT),
    Family(
        "squeezebert",
        "squeezebert/squeezebert-uncased",
        without=NO_ATTENTION,
    ),
    Family(
        "t5gemma2_encoder",
        "google/t5gemma-2-270m-270m",
        place=f"vision (vision_tower.encoder.layers.*) 0-1: {SIGLIP}; "
        f"text (text_model.layers.*) 0-1: {GATED}",
        options={
            "vision_config": IMAGE,
            "text_config": {
                **SMALL_WINDOW,
                "dropout_rate": 0.0,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "mm_tokens_per_image": 4,
        },
        inputs=pictured(1, 3, 64, 64, tokens=4),
    ),
    Family("tapas", "google/tapas-base", BERT, without=OFF),
    Family(
        "ultrabert",
        "dmis-lab/UltraBERT-150M",
        LLAMA,
        {**SMALL_WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    Family(
        "ultravbert",
        "athrael-soju/UltraVBERT",
        place=f"vision (vision_model.encoder.layers.*) 0-1: {SIGLIP}; "
        f"text (text_model.layers.*) 0-1: {GATED}",
        options={
            "vision_config": IMAGE,
            "text_config": {
                **SMALL_WINDOW,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "pixel_shuffle_factor": 2,
        },
        inputs=pictured(1, 1, 3, 64, 64, tokens=4),
    ),
    Family(
        "visual_bert",
        "uclanlp/visualbert-vqa-coco-pre",
        BERT,
        {"visual_embedding_dim": 48},
        inputs=with_regions,
        without=OFF,
    ),
    Family("xlm", "FacebookAI/xlm-mlm-en-2048", XLM, without=NO_FFN),
    Family("xlm-roberta", "FacebookAI/xlm-roberta-base", BERT),
    Family("xlm-roberta-xl", "facebook/xlm-roberta-xl", BERT),
    Family(
        "xlnet",
        "xlnet/xlnet-base-cased",
        place="encoder (layer.*) causal 0-1: ff.layer_2[ff.layer_1 > ff.layer_2]",
        options={"d_head": 8},
        without=NO_QUERY,
    ),
    Family(
        "xmod",
        "facebook/xmod-base",
        BERT,
        {"languages": ["en_XX", "de_DE"], "default_language": "de_DE"},
    ),
    Family(
        "yoso",
        "uw-madison/yoso-4096",
        place="encoder (encoder.layer.*) causal 0-1: "
        "output.dense[intermediate.dense > output.dense]",
        without=NO_QUERY,
    ),
]
