"""Encoder-decoders of text."""

from families._inputs_text import many_words
from families.family import Family

QKVO = "[q_proj k_proj v_proj > out_proj]"
FC = "fc2[fc1 > fc2]"
DECODER = f"decoder (decoder.layers.*) causal 0-1: self_attn{QKVO} xencoder_attn{QKVO} {FC}"
BART = f"encoder (encoder.layers.*) 0-1: self_attn{QKVO} {FC}; {DECODER}"
BERT_SELF = "attention.self[query key value > attention.output.dense]"
BERT_CROSS = "crossattention.self[query key value > crossattention.output.dense]"
BERT_FFN = "output.dense[intermediate.dense > output.dense]"
LONGFORMER = (
    "encoder (encoder.layers.*) 0-1: self_attn.longformer_self_attn[query key value > "
    f"self_attn.output] {FC}; {DECODER}"
)
SELF = "layer.0.SelfAttention[q k v > o]"
CROSS = "xlayer.1.EncDecAttention[q k v > o]"


def _t5(first: str, *ins: str) -> str:
    """T5 with the encoder's attention ``first`` and a feed-forward of the layers ``ins``."""

    def dense(number: int) -> str:
        host = f"layer.{number}.DenseReluDense"
        read = " ".join(f"{host}.{name}" for name in ins)
        return f"{host}.wo[{read} > {host}.wo]"

    return (
        f"encoder (encoder.block.*) 0-1: {first} {dense(1)}; "
        f"decoder (decoder.block.*) causal 0-1: {SELF} {CROSS} {dense(2)}"
    )


GATED = {
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu_new",
    "is_gated_act": True,
    "tie_word_embeddings": False,
}
LONG = {**GATED, "local_radius": 3, "global_block_size": 2}
OFF = {"Prefix": "does not use transformers' attention interface"}
OFF["UniPELT"] = OFF["Prefix"]
MARIAN = {
    "activation_function": "swish",
    "scale_embedding": True,
    "static_position_embeddings": True,
}
SWITCH = "layer.{0}.mlp.wo[layer.{0}.mlp.wi > layer.{0}.mlp.wo]"
GEMMA = "mlp.down_proj[mlp.gate_proj mlp.up_proj > mlp.down_proj]"
NLLB = f"self_attn{QKVO} ffn.fc2[ffn.fc1 > ffn.fc2]"
PROPHET = (
    "self_attn[query_proj key_proj value_proj > out_proj]",
    "xcross_attn[query_proj key_proj value_proj > out_proj]",
    "feed_forward.output[feed_forward.intermediate > feed_forward.output]",
)

FAMILIES = [
    Family("bart", "facebook/bart-large", BART),
    Family(
        "bigbird_pegasus",
        "google/bigbird-pegasus-large-arxiv",
        place="encoder (encoder.layers.*) 0-1: self_attn.self[query key value > "
        f"self_attn.output] {FC}; {DECODER}",
        options={"block_size": 4, "num_random_blocks": 1},
        inputs=many_words,
    ),
    Family(
        "bigbird_pegasus",
        "google/bigbird-pegasus-large-arxiv",
        place="encoder (encoder.layers.*) 0-1: self_attn.self[query key value > "
        f"self_attn.output] {FC}; {DECODER}",
        options={"attention_type": "original_full"},
        name="bigbird_pegasus-full",
    ),
    Family("blenderbot", "facebook/blenderbot-400M-distill", BART, {"scale_embedding": True}),
    Family("blenderbot-small", "facebook/blenderbot_small-90M", BART, {"scale_embedding": True}),
    Family(
        "encoder-decoder",
        "google/bert2bert_L-24_wmt_de_en",
        place=f"encoder (encoder.encoder.layer.*) 0-1: {BERT_SELF} {BERT_FFN}; decoder "
        f"(decoder.bert.encoder.layer.*) causal 0-1: {BERT_SELF} x{BERT_CROSS} {BERT_FFN}",
        options={
            "encoder": {"model_type": "bert-generation"},
            "decoder": {
                "model_type": "bert-generation",
                "is_decoder": True,
                "add_cross_attention": True,
            },
        },
        auto="AutoModelForSeq2SeqLM",
    ),
    Family(
        "encoder-decoder",
        "patrickvonplaten/bert2gpt2-cnn_dailymail-fp16",
        place=f"encoder (encoder.encoder.layer.*) 0-1: {BERT_SELF} {BERT_FFN}; decoder "
        "(decoder.transformer.h.*) causal 0-1: attn[c_attn > c_proj] "
        "xcrossattention[q_attn c_attn > c_proj] mlp.c_proj[mlp.c_fc > mlp.c_proj]",
        options={
            "decoder": {
                "model_type": "gpt2",
                "n_embd": 32,
                "n_head": 4,
                "n_layer": 2,
                "n_positions": 64,
                "add_cross_attention": True,
            }
        },
        auto="AutoModelForSeq2SeqLM",
        name="bert2gpt2",
    ),
    Family(
        "fsmt",
        "facebook/wmt19-en-de",
        BART,
        {"src_vocab_size": 128, "tgt_vocab_size": 128},
        without=OFF,
    ),
    Family("led", "allenai/led-base-16384", LONGFORMER, {"attention_window": [4, 4]}, without=OFF),
    Family(
        "longt5",
        "google/long-t5-tglobal-base",
        place=_t5("layer.0.TransientGlobalSelfAttention[q k v > o]", "wi_0", "wi_1"),
        options={**LONG, "encoder_attention_type": "transient-global"},
    ),
    Family(
        "longt5",
        "google/long-t5-local-base",
        place=_t5("layer.0.LocalSelfAttention[q k v > o]", "wi_0", "wi_1"),
        options=LONG,
        name="longt5-local",
    ),
    Family("m2m_100", "facebook/m2m100_418M", BART),
    Family("marian", "Helsinki-NLP/opus-mt-en-de", BART, MARIAN),
    Family("mbart", "facebook/mbart-large-50", BART, {"scale_embedding": True}),
    Family("mt5", "google/mt5-small", _t5(SELF, "wi_0", "wi_1")),
    Family("mvp", "RUCAIBox/mvp", BART, without=OFF),
    Family(
        "mvp",
        "RUCAIBox/mvp-summarization",
        BART,
        {"use_prompt": True, "prompt_length": 3, "prompt_mid_dim": 16},
        without=OFF,
        name="mvp-prompt",
    ),
    Family(
        "nllb-moe",
        "facebook/nllb-moe-54b",
        place=f"encoder (encoder.layers.*) 0: {NLLB}, 1: self_attn{QKVO} ffn; "
        f"decoder (decoder.layers.*) causal 0: self_attn{QKVO} xcross_attention{QKVO} "
        f"ffn.fc2[ffn.fc1 > ffn.fc2], 1: self_attn{QKVO} xcross_attention{QKVO} ffn",
        options={"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    ),
    Family(
        "pegasus",
        "google/pegasus-xsum",
        BART,
        {"activation_function": "relu", "scale_embedding": True},
    ),
    Family(
        "pegasus_x",
        "google/pegasus-x-base",
        BART,
        {"activation_function": "relu", "block_size": 4, "num_global_tokens": 3},
    ),
    Family("plbart", "uclanlp/plbart-base", BART),
    Family(
        "prophetnet",
        "microsoft/prophetnet-large-uncased",
        place=f"encoder (encoder.layers.*) 0-1: {PROPHET[0]} {PROPHET[2]}; "
        f"decoder (decoder.layers.*) causal 0-1: {' '.join(PROPHET)}",
        options={"num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4},
        without=OFF,
    ),
    Family(
        "switch_transformers",
        "google/switch-base-8",
        place=f"encoder (encoder.block.*) 0: {SELF} {SWITCH.format(1)}, 1: {SELF} layer.1.mlp; "
        f"decoder (decoder.block.*) causal 0: {SELF} {CROSS} {SWITCH.format(2)}, "
        f"1: {SELF} {CROSS} layer.2.mlp",
        options={"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
    Family("t5", "google-t5/t5-small", _t5(SELF, "wi")),
    Family("t5", "google/flan-t5-base", _t5(SELF, "wi_0", "wi_1"), GATED, name="flan-t5"),
    Family(
        "t5gemma",
        "google/t5gemma-2b-2b-prefixlm",
        place=f"encoder (encoder.layers.*) 0-1: self_attn[q_proj k_proj v_proj > o_proj] {GEMMA}; "
        "decoder (decoder.layers.*) causal 0-1: self_attn[q_proj k_proj v_proj > o_proj] "
        f"xcross_attn[q_proj k_proj v_proj > o_proj] {GEMMA}",
        options={"encoder": {"sliding_window": 3}, "decoder": {"sliding_window": 3}},
    ),
    Family("umt5", "google/umt5-small", _t5(SELF, "wi_0", "wi_1")),
]
