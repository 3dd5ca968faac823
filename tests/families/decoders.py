"""Dense decoders of text."""

from families.family import Family

QKVO = "self_attn[q_proj k_proj v_proj > o_proj]"
GATED = "mlp.down_proj[mlp.gate_proj mlp.up_proj > mlp.down_proj]"
FUSED_GATED = "mlp.down_proj[mlp.gate_up_proj > mlp.down_proj]"
LLAMA = f"decoder (layers.*) causal 0-1: {QKVO} {GATED}"
UNGATED = f"decoder (layers.*) causal 0-1: {QKVO} mlp.down_proj[mlp.up_proj > mlp.down_proj]"
LATENT = f"decoder (layers.*) causal 0-1: self_attn[q_b_proj kv_b_proj > o_proj] {GATED}"
FAIRSEQ = "decoder (layers.*) causal 0-1: self_attn[q_proj k_proj v_proj > out_proj] fc2[fc1 > fc2]"
GPT = "decoder (h.*) causal 0-1: attn[c_attn > c_proj] mlp.c_proj[mlp.c_fc > mlp.c_proj]"
GPT_J = (
    "decoder (h.*) causal 0-1: attn[q_proj k_proj v_proj > out_proj] "
    "mlp.fc_out[mlp.fc_in > mlp.fc_out]"
)
BLOOM = (
    "decoder (h.*) causal 0-1: self_attention[query_key_value > dense] "
    "mlp.dense_4h_to_h[mlp.dense_h_to_4h > mlp.dense_4h_to_h]"
)
NEOX = BLOOM.replace("(h.", "(layers.").replace("self_attention", "attention")
SHARED_KEYS = (  # the last blocks attend to keys and values of earlier blocks
    f"decoder (layers.*) causal 0-1: {QKVO} {GATED}, 2-3: self_attn[q_proj ? > o_proj] {GATED}"
)
# A window shorter than the rows that the tests have.
WINDOW_FULL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
FULL_WINDOW = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}
GRANITE_SCALES = {
    "num_key_value_heads": 2,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.22,
}
LATENT_SIZES = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 4,
}
# Bytes and patches attend to each other; nothing follows from the entropy model but the patches.
BLT = (
    f"patcher (patcher.layers.*) causal 0-1: -; local_encoder (local_encoder.layers.*) causal 0: "
    f"{QKVO} {GATED}; local_encoder_cross_attn (local_encoder.cross_attn_layers.*) causal 0: "
    "x/local_encoder.cross_attn_layers.0[q_proj k_proj v_proj > o_proj]; "
    f"global (global_transformer.layers.*) causal 0-1: {QKVO} {GATED}; "
    "local_decoder_cross_attn (local_decoder.cross_attn_layers.*) causal "
    "0: x/local_decoder.cross_attn_layers.0[q_proj k_proj v_proj > o_proj], "
    "1: x/local_decoder.cross_attn_layers.1[q_proj k_proj v_proj > o_proj]; "
    f"local_decoder (local_decoder.layers.*) causal 0-1: {QKVO} {GATED}"
)
BLT_PART = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "head_dim": 8,
}
NO_PREFIX = dict.fromkeys(("Prefix", "UniPELT"), "attention interface")

FAMILIES = [
    Family(
        "apertus", "swiss-ai/Apertus-8B-2509", place=UNGATED, options={"num_key_value_heads": 2}
    ),
    Family(
        "apertus1p5_text",
        "swiss-ai/Apertus-v1.5-8B",
        place=UNGATED,
        options={"num_key_value_heads": 2},
    ),
    Family("arcee", "arcee-ai/AFM-4.5B", place=UNGATED, options={"num_key_value_heads": 2}),
    Family("biogpt", "microsoft/biogpt", place=FAIRSEQ),
    Family("bitnet", "microsoft/bitnet-b1.58-2B-4T", place=LLAMA),
    Family("bloom", "bigscience/bloom-560m", place=BLOOM, without=NO_PREFIX),
    Family(
        "blt",
        "itazap/blt-1b-hf",
        place=BLT,
        options={
            "encoder_hash_byte_group_vocab": 50,
            "num_hidden_layers": 2,  # of a cache
            "patcher_config": BLT_PART,
            "encoder_config": {**BLT_PART, "hidden_size_global": 64, "num_hidden_layers": 1},
            "decoder_config": {**BLT_PART, "hidden_size_global": 64},
            "global_config": {**BLT_PART, "hidden_size": 64, "head_dim": 16},
        },
    ),
    Family(
        "codegen",
        "Salesforce/codegen-350M-mono",
        place=GPT_J.replace("q_proj k_proj v_proj", "qkv_proj"),
        options={"rotary_dim": 4},
    ),
    Family("cohere", "CohereLabs/c4ai-command-r-v01", place=LLAMA),
    Family(
        "cohere2",
        "CohereLabs/c4ai-command-r7b-12-2024",
        place=LLAMA,
        options={**WINDOW_FULL, "num_key_value_heads": 2},
    ),
    Family(
        "cohere_compass_text",
        "CohereLabs/North-Micro-Vision-Instruct",
        place=LLAMA,
        options={
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            }
        },
    ),
    Family(
        "cpmant",
        "openbmb/cpm-ant-10b",
        place="encoder (encoder.layers.*) 0-1: "
        "self_att.self_attention[project_q project_k project_v > attention_out] "
        "ffn.ffn.w_out[ffn.ffn.w_in.w_0 ffn.ffn.w_in.w_1 > ffn.ffn.w_out]",
        options={"dim_head": 8, "dim_ff": 64, "prompt_length": 4},
        without=NO_PREFIX,
    ),
    Family(
        "ctrl",
        "Salesforce/ctrl",
        place="decoder (h.*) causal 0-1: multi_head_attention[Wq Wk Wv > dense] "
        "ffn.2[ffn.0 > ffn.2]",
        options={"dff": 64},
    ),
    Family("cwm", "facebook/cwm", place=LLAMA, options=FULL_WINDOW),
    Family("diffllama", "kajuma/DiffLlama-0.3B-handcut", place=LLAMA),
    Family("doge", "SmallDoge/Doge-320M", place=LLAMA, options={"num_key_value_heads": 2}),
    Family(
        "dory",
        "nvidia/NVIDIA-Nemotron-Labs-Dory1.0-4B-BF16",
        place=LLAMA.replace("0-1", "0-3"),
        options={  # each block counts twice, as attention and mlp
            "num_hidden_layers": 8,
            "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp"] * 2,
            "sliding_window": 4,
            "n_input_layers": 2,
            "n_recurrent_layers": 4,
            "n_output_layers": 2,
        },
    ),
    Family("ernie4_5", "baidu/ERNIE-4.5-0.3B-PT", place=LLAMA),
    Family(
        "exaone",
        "LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct",
        place=LLAMA,
        options={
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_theta": 1e6,
            },
        },
    ),
    Family(
        "exaone4",
        "LGAI-EXAONE/EXAONE-4.0-32B",
        place=LLAMA,
        options={**WINDOW_FULL, "num_key_value_heads": 2},
    ),
    Family(
        "falcon",
        "tiiuae/falcon-7b",
        place=BLOOM,
        options={"multi_query": True, "parallel_attn": True, "num_kv_heads": 4},
        without=NO_PREFIX,
    ),
    Family(
        "falcon",
        "tiiuae/falcon-40b",
        name="falcon-40b",
        place=BLOOM,
        options={"new_decoder_architecture": True, "num_kv_heads": 2},
        without=NO_PREFIX,
    ),
    Family(
        "falcon",
        "tiiuae/falcon-rw-1b",
        name="falcon-rw",
        place=BLOOM,
        options={
            "multi_query": False,
            "parallel_attn": False,
            "alibi": True,
            "bias": True,
            "num_kv_heads": 4,
        },
        without=NO_PREFIX,
    ),
    Family("gemma", "google/gemma-2b", place=LLAMA, options={"num_key_value_heads": 1}),
    Family("gemma2", "google/gemma-2-2b", place=LLAMA, options=WINDOW_FULL),
    Family("gemma3_text", "google/gemma-3-1b-pt", place=LLAMA, options=WINDOW_FULL),
    Family(
        "gemma3n_text",
        "google/gemma-3n-E4B",
        place=SHARED_KEYS,
        options={
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 4,
            "num_kv_shared_layers": 2,
            "intermediate_size": [64] * 4,
            "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
            "laurel_rank": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 128,
        },
    ),
    Family(
        "gemma4_text",
        "google/gemma-4-e2b-it",
        place=SHARED_KEYS,
        options={
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 4,
            "per_layer_config": {1: {"head_dim": 16}, 3: {"head_dim": 16}},
            "num_kv_shared_layers": 2,
            "num_key_value_heads": 1,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 128,
        },
    ),
    Family(
        "gemma4_text",
        "google/gemma-4-31B",
        name="gemma4_text-31b",
        place=f"decoder (layers.*) causal 0: {QKVO} {GATED}, "
        f"1: self_attn[q_proj k_proj > o_proj] {GATED}",
        options={
            **WINDOW_FULL,
            "per_layer_config": {1: {"head_dim": 16, "num_key_value_heads": 1}},
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
        },
    ),
    Family(
        "gemma4_unified_text",
        "google/gemma-4-12B-it",
        place=LLAMA,
        options={**WINDOW_FULL, "per_layer_config": {1: {"head_dim": 16}}},
    ),
    Family("glm", "zai-org/glm-4-9b-chat-hf", place=LLAMA.replace(GATED, FUSED_GATED)),
    Family("glm4", "zai-org/GLM-4-9B-0414", place=LLAMA.replace(GATED, FUSED_GATED)),
    Family("gpt-sw3", "AI-Sweden-Models/gpt-sw3-126m", place=GPT),
    Family("gpt2", "openai-community/gpt2", place=GPT),
    Family("gpt_bigcode", "bigcode/gpt_bigcode-santacoder", place=GPT),
    Family(
        "gpt_neo",
        "EleutherAI/gpt-neo-1.3B",
        place="decoder (h.*) causal 0-1: attn.attention[q_proj k_proj v_proj > out_proj] "
        "mlp.c_proj[mlp.c_fc > mlp.c_proj]",
        options={
            "attention_types": [[["global", "local"], 1]],
            "attention_layers": ["global", "local"],
            "window_size": 4,
        },
        without=NO_PREFIX,
    ),
    Family("gpt_neox", "EleutherAI/pythia-160m", place=NEOX),
    Family(
        "gpt_neox",
        "togethercomputer/RedPajama-INCITE-Base-3B-v1",
        name="gpt_neox-sequential",
        place=NEOX,
        options={"use_parallel_residual": False},
    ),
    Family("gpt_neox_japanese", "abeja/gpt-neox-japanese-2.7b", place=NEOX, without=NO_PREFIX),
    Family("gptj", "EleutherAI/gpt-j-6b", place=GPT_J, options={"rotary_dim": 4}),
    Family("granite", "ibm-granite/granite-3.3-2b-base", place=LLAMA, options=GRANITE_SCALES),
    Family(
        "granite_swa",
        "ibm-granite/granite-swash-2b",
        place=LLAMA,
        options={**GRANITE_SCALES, **FULL_WINDOW},
    ),
    Family("helium", "kyutai/helium-1-2b", place=LLAMA, options={"num_key_value_heads": 2}),
    Family(
        "hrm_text",
        "sapientinc/HRM-Text-1B",
        place="; ".join(
            f"{name} ({name}.layers.*) causal 0-1: {QKVO} {GATED}"
            for name in ("L_module", "H_module")
        ),
        options={"num_layers_per_stack": 2, "num_hidden_layers": 16},
    ),
    Family(
        "hunyuan_v1_dense",
        "tencent/Hunyuan-7B-Instruct",
        place=LLAMA,
        options={"head_dim": 8, "num_key_value_heads": 2},
    ),
    Family("hyperclovax", "naver-hyperclovax/HyperCLOVAX-SEED-Think-14B", place=LLAMA),
    Family(
        "internlm3",
        "internlm/internlm3-8b-instruct",
        place=LLAMA,
        options={
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "dynamic", "factor": 6.0, "rope_theta": 5e7},
        },
    ),
    Family("iquestcoder", "IQuestLab/IQuest-Coder-V1-40B-Instruct", place=LLAMA),
    Family("jais2", "inceptionai/Jais-2-8B-Chat", place=UNGATED),
    Family("llama", "meta-llama/Llama-2-7b-hf", place=LLAMA),
    Family(
        "llama",
        "meta-llama/Llama-3.2-1B",
        name="llama-3",
        place=LLAMA,
        options={
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    Family("minicpm3", "openbmb/MiniCPM3-4B", place=LATENT, options=LATENT_SIZES),
    Family(
        "ministral",
        "mistralai/Ministral-8B-Instruct-2410",
        place=LLAMA,
        options={**FULL_WINDOW, "head_dim": 8},
    ),
    Family("ministral3", "mistralai/Ministral-3-8B-Base-2512", place=LLAMA),
    Family("mistral", "mistralai/Mistral-7B-v0.1", place=LLAMA, options={"sliding_window": 4}),
    Family(
        "modernbert-decoder",
        "jhu-clsp/ettin-decoder-17m",
        place="decoder (layers.*) causal 0-1: attn[q_proj k_proj v_proj > Wo] "
        "mlp.Wo[mlp.Wi > mlp.Wo]",
        options=FULL_WINDOW,
    ),
    Family("molmo2_text", "allenai/Molmo2-8B", place=LLAMA),
    Family(
        "mpt",
        "mosaicml/mpt-7b",
        place="decoder (blocks.*) causal 0-1: attn[Wqkv > out_proj] "
        "ffn.down_proj[ffn.up_proj > ffn.down_proj]",
        without=NO_PREFIX,
    ),
    Family(
        "nanochat",
        "karpathy/nanochat-d32",
        place=f"decoder (layers.*) causal 0-1: {QKVO} mlp.fc2[mlp.fc1 > mlp.fc2]",
    ),
    Family(
        "nemotron",
        "nvidia/Minitron-4B-Base",
        place=UNGATED,
        options={"head_dim": 8, "num_key_value_heads": 2},
    ),
    Family("olmo", "allenai/OLMo-1.7-7B-hf", place=LLAMA, options={"clip_qkv": 8.0}),
    Family("olmo2", "allenai/OLMo-2-1124-7B", place=LLAMA),
    Family("olmo3", "allenai/Olmo-3-1025-7B", place=LLAMA, options=WINDOW_FULL),
    Family("openai-gpt", "openai-community/openai-gpt", place=GPT, without=NO_PREFIX),
    Family("opt", "facebook/opt-125m", place=FAIRSEQ.replace("(layers", "(decoder.layers")),
    Family(
        "opt",
        "facebook/opt-350m",
        name="opt-350m",
        place=FAIRSEQ.replace("(layers", "(decoder.layers"),
        options={"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    ),
    Family(
        "persimmon",
        "adept/persimmon-8b-base",
        place=NEOX.replace(": attention", ": self_attn"),
    ),
    Family(
        "phi",
        "microsoft/phi-2",
        place="decoder (layers.*) causal 0-1: self_attn[q_proj k_proj v_proj > dense] "
        "mlp.fc2[mlp.fc1 > mlp.fc2]",
    ),
    Family(
        "phi3",
        "microsoft/Phi-3-mini-4k-instruct",
        place=f"decoder (layers.*) causal 0-1: self_attn[qkv_proj > o_proj] {FUSED_GATED}",
        options={"sliding_window": 4},
    ),
    Family("qwen2", "Qwen/Qwen2.5-0.5B", place=LLAMA, options={"num_key_value_heads": 2}),
    Family("qwen3", "Qwen/Qwen3-8B", place=LLAMA, options={"num_key_value_heads": 2}),
    Family("seed_oss", "ByteDance-Seed/Seed-OSS-36B-Base", place=LLAMA),
    Family("smollm3", "HuggingFaceTB/SmolLM3-3B", place=LLAMA, options={"no_rope_layers": [1, 0]}),
    Family("stablelm", "stabilityai/stablelm-3b-4e1t", place=LLAMA),
    Family(
        "stablelm",
        "stabilityai/stablelm-2-12b",
        name="stablelm-2",
        place=LLAMA,
        options={
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "num_key_value_heads": 2,
        },
    ),
    Family(
        "starcoder2",
        "bigcode/starcoder2-3b",
        place=f"decoder (layers.*) causal 0-1: {QKVO} mlp.c_proj[mlp.c_fc > mlp.c_proj]",
        options={"sliding_window": 4},
    ),
    Family("vaultgemma", "google/vaultgemma-1b", place=LLAMA, options=WINDOW_FULL),
    Family("xglm", "facebook/xglm-564M", place=FAIRSEQ, without=NO_PREFIX),
    Family("youtu", "tencent/Youtu-LLM-2B", place=LATENT, options=LATENT_SIZES),
]
