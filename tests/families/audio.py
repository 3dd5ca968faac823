"""Encoders and recognisers of speech and other sound."""

import torch

from families._inputs_audio import WORDS, noise, with_sound
from families.family import Family

CONVOLUTIONS = {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16}
LARGE = {
    **CONVOLUTIONS,
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
}
CONFORMER_LARGE = {
    **CONVOLUTIONS,
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "hidden_act": "swish",
}

WAV2VEC2 = (
    "encoder (encoder.layers.*) 0-1: attention[q_proj k_proj v_proj > out_proj] "
    "feed_forward.output_dense[feed_forward.intermediate_dense > feed_forward.output_dense]"
)
CONFORMER = (
    "encoder (encoder.layers.*) 0-1: self_attn[q_proj k_proj v_proj > o_proj] "
    "feed_forward2.linear2[feed_forward2.linear1 > feed_forward2.linear2]"
)
ENCODER_DECODER = (
    "encoder (encoder.layers.*) 0-1: self_attn[q_proj k_proj v_proj > out_proj] fc2[fc1 > fc2]; "
    "decoder (decoder.layers.*) causal 0-1: self_attn[q_proj k_proj v_proj > out_proj] "
    "xencoder_attn[q_proj k_proj v_proj > out_proj] fc2[fc1 > fc2]"
)
WAV2VEC2_CONFORMER = (
    "encoder (encoder.layers.*) 0-1: self_attn[linear_q linear_k linear_v > linear_out] "
    "ffn2.output_dense[ffn2.intermediate_dense > ffn2.output_dense]"
)
BERT = (
    "attention.self[query key value > attention.output.dense] "
    "output.dense[intermediate.dense > output.dense]"
)
MLP = "self_attn[q_proj k_proj v_proj > o_proj] mlp.fc2[mlp.fc1 > mlp.fc2]"
MLP_ENCODER = f"encoder (layers.*) 0-1: {MLP}"
CAUSAL_DECODER = (
    "decoder (decoder.layers.*) causal 0-1: self_attn[q_proj k_proj v_proj > o_proj] "
    "xencoder_attn[q_proj k_proj v_proj > o_proj] mlp.fc2[mlp.fc1 > mlp.fc2]"
)
STREAMING = CONFORMER.replace(" 0-1", " causal 0-1")
CHUNKS = {"encoder_config": {"subsampling_conv_channels": 16, "default_num_lookahead_tokens": 1}}
HEARING = {"audio_token_id": 120, "audio_config": {"num_mel_bins": 16}}
DAC = {"encoder_hidden_size": 8, "codebook_dim": 8, "codebook_size": 16}
WHISPER = "self_attn[q_proj k_proj v_proj > out_proj] fc2[fc1 > fc2]"
WHISPER_ENCODER = f"encoder (layers.*) 0-1: {WHISPER}"
LLAMA = (
    "self_attn[q_proj k_proj v_proj > o_proj] "
    "mlp.down_proj[mlp.gate_proj mlp.up_proj > mlp.down_proj]"
)
LANGUAGE = f"text (language_model.layers.*) causal 0-1: {LLAMA}"
VIBE = {"hidden_size": 8, "num_filters": 4, "downsampling_ratios": [2, 2], "depths": [1, 1, 1]}
HEARING_PLACE = f"audio (audio_tower.layers.*) 0-1: {WHISPER}; {LANGUAGE}"
OFF_INTERFACE = dict.fromkeys(("Prefix", "UniPELT"), "attention interface")
MOONSHINE_STREAMING = f"encoder (encoder.layers.*) causal 0-1: {MLP}; {CAUSAL_DECODER}"
MOONSHINE = f"encoder (encoder.layers.*) 0-1: {MLP}; {CAUSAL_DECODER}"
GRANITE = {
    "audio_token_index": 120,
    "audio_token_id": 120,
    "encoder_config": {
        "input_dim": 16,
        "num_heads": 4,
        "dim_head": 8,
        "context_size": 8,
        "max_pos_emb": 16,
    },
    "projector_config": {"encoder_hidden_size": 32, "cross_attention_frequency": 1},
}
GRANITE_PLACE = (
    "encoder (encoder.layers.*) 0-1: attn[to_q to_kv > to_out] "
    "ff2.down_proj[ff2.up_proj > ff2.down_proj]; projector (projector.qformer.encoder.layer.*) "
    "0-1: attention.attention[query key value > attention.output.dense] "
    "xcrossattention.attention[query key value > crossattention.output.dense] "
    f"output_query.dense[intermediate_query.dense > output_query.dense]; {LANGUAGE}"
)

FAMILIES = [
    Family(
        "audio-spectrogram-transformer",
        "MIT/ast-finetuned-audioset-10-10-0.4593",
        place="encoder (layers.*) 0-1: attention[q_proj k_proj v_proj > o_proj] "
        "mlp.fc2[mlp.fc1 > mlp.fc2]",
        options={"max_length": 64, "num_mel_bins": 32},
    ),
    Family(
        "audioflamingo3",
        "nvidia/audio-flamingo-3-hf",
        place=HEARING_PLACE,
        options=HEARING,
    ),
    Family(
        "audioflamingo3_encoder",
        "nvidia/audio-flamingo-3-hf",
        place=WHISPER_ENCODER,
        options={"num_mel_bins": 16},
    ),
    Family(
        "canary",
        "nvidia/canary-1b-v2",
        place=f"{CONFORMER}; {CAUSAL_DECODER}",
        options={"encoder_config": {"subsampling_conv_channels": 32}},
        # as many frames as words: cross-attention is not found by different numbers of tokens
        inputs=lambda model: {"input_features": noise(1, 64, 128), "decoder_input_ids": WORDS},
    ),
    Family(
        "clap",
        "laion/clap-htsat-unfused",
        place=f"audio (audio_model.audio_encoder.layers.*.blocks.*) 0-3: {BERT}; "
        f"text (text_model.encoder.layer.*) 0-1: {BERT}",
        options={
            "audio_config": {
                "spec_size": 64,
                "num_mel_bins": 16,
                "depths": [2, 2],
                "num_attention_heads": [2, 4],
                "num_hidden_layers": 2,
                "patch_embeds_hidden_size": 16,
                "hidden_size": 32,
                "window_size": 4,
            }
        },
    ),
    Family(
        "cohere_asr",
        "CohereLabs/cohere-transcribe-03-2026",
        place=f"{CONFORMER}; {CAUSAL_DECODER}",
        options={"encoder_config": {"subsampling_conv_channels": 32}},
    ),
    Family(
        "data2vec-audio",
        "facebook/data2vec-audio-base",
        place=WAV2VEC2,
        options={"conv_dim": [32] * 7},
    ),
    Family(
        "fun_asr_nano",
        "FunAudioLLM/Fun-ASR-Nano-2512-hf",
        place=f"audio (audio_tower.layers.*) 0-1: {MLP}; "
        f"multi_modal_projector (multi_modal_projector.layers.*) 0-1: {MLP}; {LANGUAGE}",
        options={
            "audio_token_id": 120,
            "audio_config": {"num_timestamp_prediction_layers": 1},
            "adaptor_config": {"intermediate_size": 8, "projector_hidden_size": 64},
        },
    ),
    Family(
        "fun_asr_nano_encoder",
        "FunAudioLLM/Fun-ASR-Nano-2512-hf",
        place=MLP_ENCODER,
        options={"num_timestamp_prediction_layers": 1},
    ),
    Family(
        "gemma3n_audio",
        "google/gemma-3n-E4B",
        place="decoder (conformer.*) causal 0-1: attention.attn[q_proj k_proj v_proj > "
        "attention.post] ffw_layer_end.ffw_layer_2[ffw_layer_end.ffw_layer_1 > "
        "ffw_layer_end.ffw_layer_2]",
        options={"conf_num_hidden_layers": 2},
        without=OFF_INTERFACE,
    ),
    Family(
        "gemma4_audio",
        "google/gemma-4-e2b-it",
        place="decoder (layers.*) causal 0-1: self_attn[q_proj.linear k_proj.linear "
        "v_proj.linear > post.linear] feed_forward2.ffw_layer_2.linear["
        "feed_forward2.ffw_layer_1.linear > feed_forward2.ffw_layer_2.linear]",
        without=OFF_INTERFACE,
    ),
    Family(
        "glmasr",
        "zai-org/GLM-ASR-Nano-2512",
        place=f"audio (audio_tower.layers.*) 0-1: {MLP}; {LANGUAGE}",
        options=HEARING,
    ),
    Family(
        "glmasr_encoder",
        "zai-org/GLM-ASR-Nano-2512",
        place=MLP_ENCODER,
        options={"num_mel_bins": 16},
    ),
    Family(
        "granite_speech",
        "ibm-granite/granite-speech-3.3-2b",
        place=GRANITE_PLACE,
        options=GRANITE,
    ),
    Family(
        "granite_speech5_ctc",
        "ibm-granite/granite-speech-5.0-470m-turboctc",
        place=CONFORMER.replace("0-1", "0-3"),
        options={
            "encoder_config": {
                "num_mel_bins": 16,
                "num_hidden_layers": 4,
                "context_size": 8,
                "head_dim": 8,
            }
        },
    ),
    Family(
        "granite_speech5_encoder",
        "ibm-granite/granite-speech-5.0-470m-turboctc",
        place=CONFORMER.replace("encoder.layers", "layers").replace("0-1", "0-3"),
        options={
            "num_mel_bins": 16,
            "num_hidden_layers": 4,
            "context_size": 8,
            "head_dim": 8,
        },
    ),
    Family(
        "granite_speech_plus",
        "ibm-granite/granite-speech-4.1-2b-plus",
        place=GRANITE_PLACE,
        options=GRANITE,
    ),
    Family(
        "hubert",
        "facebook/hubert-base-ls960",
        place=WAV2VEC2,
        options=CONVOLUTIONS,
    ),
    Family(
        "hubert",
        "facebook/hubert-large-ls960-ft",
        place=WAV2VEC2,
        options=LARGE,
        name="hubert-large",
    ),
    Family(
        "lasr_ctc",
        "google/medasr",
        place=CONFORMER,
        options={"encoder_config": {"subsampling_conv_channels": 16}},
    ),
    Family(
        "lasr_encoder",
        "google/medasr",
        place=CONFORMER.replace("encoder.layers", "layers"),
        options={"subsampling_conv_channels": 16},
    ),
    Family(
        "moonshine",
        "UsefulSensors/moonshine-tiny",
        place=MOONSHINE,
        options={
            "encoder_num_key_value_heads": 4,
            "decoder_num_key_value_heads": 4,
            "pad_head_dim_to_multiple_of": 16,
        },
    ),
    Family(
        "moonshine_streaming",
        "UsefulSensors/moonshine-streaming-tiny",
        place=MOONSHINE_STREAMING,
        options={
            "num_key_value_heads": 4,
            "encoder_config": {"sliding_windows": [[16, 4], [16, 0]]},
        },
        # its windows of the past alone exist where a mask is given
        inputs=lambda model: {
            "input_values": noise(1, 4000),
            "attention_mask": torch.ones(1, 4000),
            "decoder_input_ids": WORDS,
        },
    ),
    Family(
        "moss_transcribe_diarize",
        "hf-audio/MOSS-Transcribe-Diarize-HF",
        place=HEARING_PLACE,
        options=HEARING,
    ),
    Family(
        "musicflamingo",
        "nvidia/music-flamingo-2601-hf",
        place=HEARING_PLACE,
        options=HEARING,
        inputs=lambda model: {
            "input_ids": with_sound(32),
            "input_features": noise(1, 16, 128),
            "input_features_mask": torch.ones(1, 128, dtype=torch.long),
        },
    ),
    Family(
        "nemo_speechlm",
        "nvidia/Nemotron-3.5-Transcribe",
        # The diarisation, which is compared with a threshold, reaches no output.
        place="audio_asr (audio_tower.asr_encoder.layers.*) 0-1: "
        f"{MLP}; audio_diarization (audio_tower.diarization_model.model.audio_tower.layers.*) "
        "0-1: -; text (language_model.layers.*) causal 0: -, 1: mixer, "
        "2: mixer[q_proj k_proj v_proj > o_proj], 3: mixer",
        options={
            "audio_token_id": 120,
            "audio_config": {
                "asr_config": {"num_mel_bins": 16},
                "diarization_config": {
                    "audio_config": {"num_mel_bins": 16},
                    "head_config": {"audio_hidden_size": 32, "hidden_size": 16},
                },
            },
            "text_config": {
                "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
                "num_hidden_layers": 4,
                "mamba_num_heads": 4,
                "mamba_head_dim": 16,
                "n_groups": 1,
                "ssm_state_size": 8,
                "moe_shared_expert_intermediate_size": 32,
                "chunk_size": 8,
            },
            "word_timestamp_config": {"vocab_size": 50, "blank_token_id": 49},
        },
    ),
    Family(
        "nemotron3_5_asr",
        "nvidia/nemotron-3.5-asr-streaming-0.6b",
        place=STREAMING,
        options=CHUNKS,
    ),
    Family(
        "nemotron3_5_transcribe_asr_audio",
        "nvidia/NVIDIA-Nemotron-3.5-Transcribe-30B-A4B",
        place=MLP_ENCODER,
    ),
    Family(
        "nemotron3_5_transcribe_audio",
        "nvidia/NVIDIA-Nemotron-3.5-Transcribe-30B-A4B",
        place=f"asr (asr_encoder.layers.*) 0-1: {MLP}; "
        f"diarization (diarization_model.model.audio_tower.layers.*) 0-1: {MLP}",
        options={"diarization_config": {"head_config": {"audio_hidden_size": 32}}},
    ),
    Family(
        "nemotron3_5_transcribe_word_timestamp",
        "nvidia/NVIDIA-Nemotron-3.5-Transcribe-30B-A4B",
        place=MLP_ENCODER,
    ),
    Family(
        "nemotron3_diarization",
        "nvidia/Nemotron-3-Diarization",
        place=f"encoder (audio_tower.layers.*) 0-1: {MLP}",
        options={"head_config": {"audio_hidden_size": 32}},
    ),
    Family(
        "nemotron3_diarization_audio",
        "nvidia/Nemotron-3-Diarization",
        place=MLP_ENCODER,
    ),
    Family(
        "nemotron_asr_streaming",
        "nvidia/nemotron-speech-streaming-en-0.6b",
        place=STREAMING,
        options=CHUNKS,
    ),
    Family(
        "nemotron_asr_streaming_encoder",
        "nvidia/nemotron-speech-streaming-en-0.6b",
        place=STREAMING.replace("encoder (encoder.", "decoder ("),
        options=CHUNKS["encoder_config"],
    ),
    Family(
        "omniasr",
        "hf-audio/omniasr-llm-300m-v2",
        place=WAV2VEC2.replace("encoder (encoder", "audio (audio_tower") + f"; {LANGUAGE}",
        options={"audio_token_id": 120, "audio_config": CONVOLUTIONS},
    ),
    Family(
        "omniasr_audio",
        "hf-audio/omniasr-ctc-300m-v2",
        place=WAV2VEC2.replace("encoder.layers", "layers"),
        options=CONVOLUTIONS,
    ),
    Family(
        "omniasr_ctc",
        "hf-audio/omniasr-ctc-300m-v2",
        place=WAV2VEC2.replace("encoder.layers", "audio_tower.layers"),
        options={"audio_config": CONVOLUTIONS},
    ),
    Family(
        "parakeet_ctc",
        "nvidia/parakeet-ctc-1.1b",
        place=CONFORMER,
        options={"encoder_config": {"subsampling_conv_channels": 16}},
    ),
    Family(
        "parakeet_encoder",
        "nvidia/parakeet-ctc-1.1b",
        place=CONFORMER.replace("encoder.layers", "layers"),
        options={"subsampling_conv_channels": 16},
    ),
    Family(
        "parakeet_rnnt",
        "nvidia/parakeet-rnnt-0.6b",
        place=CONFORMER,
        options={"encoder_config": {"subsampling_conv_channels": 16}},
    ),
    Family(
        "parakeet_tdt",
        "nvidia/parakeet-tdt-0.6b-v3",
        place=CONFORMER,
        options={
            "encoder_config": {
                "subsampling_conv_channels": 16,
                "attention_bias": False,
                "convolution_bias": False,
                "num_mel_bins": 128,
                "scale_input": False,
            }
        },
    ),
    Family(
        "pe_audio",
        "facebook/pe-av-large",
        place=f"audio (audio_encoder.layers.*) 0-1: {LLAMA}; "
        "text (text_model.layers.*) 0-1: attn[Wqkv > Wo] mlp.Wo[mlp.Wi > mlp.Wo]",
        options={"audio_config": {"dac_config": DAC}},
    ),
    Family(
        "pe_audio_encoder",
        "facebook/pe-av-large",
        place=f"encoder (layers.*) 0-1: {LLAMA}",
        options={"dac_config": DAC},
    ),
    Family(
        "qwen2_audio",
        "Qwen/Qwen2-Audio-7B",
        place=HEARING_PLACE,
        options={"audio_token_index": 120, "audio_config": {"num_mel_bins": 16}},
        inputs=lambda model: {
            "input_ids": with_sound(32),
            "input_features": noise(1, 16, 128),
            "feature_attention_mask": torch.ones(1, 128, dtype=torch.long),
        },
    ),
    Family(
        "qwen2_audio_encoder",
        "Qwen/Qwen2-Audio-7B",
        place=WHISPER_ENCODER,
    ),
    Family(
        "qwen3_asr",
        "Qwen/Qwen3-ASR-1.7B-hf",
        place=HEARING_PLACE,
        options={"audio_token_id": 120, "audio_config": {"downsample_hidden_size": 16}},
    ),
    Family(
        "sew",
        "asapp/sew-tiny-100k",
        place=WAV2VEC2,
        options={"num_conv_pos_embeddings": 16},
    ),
    Family(
        "sew-d",
        "asapp/sew-d-tiny-100k",
        # Its softmax is a function of its own, in which no graph shows.
        place="encoder (encoder.encoder.layer.*) 0-1: "
        "output.dense[intermediate.dense > output.dense]",
        options={"num_conv_pos_embeddings": 16},
        without={"LoRA": "'query'", **OFF_INTERFACE},
    ),
    Family(
        "speech-encoder-decoder",
        "facebook/wav2vec2-xls-r-300m-en-to-15",
        place=WAV2VEC2.replace("encoder.layers", "encoder.encoder.layers")
        + "; decoder (decoder.model.decoder.layers.*) causal 0-1: self_attn[q_proj k_proj v_proj > "
        "out_proj] xencoder_attn[q_proj k_proj v_proj > out_proj] fc2[fc1 > fc2]",
        options={
            "encoder": {
                "model_type": "wav2vec2",
                **LARGE,
                "add_adapter": True,
                "output_hidden_size": 32,
            },
            "decoder": {
                "model_type": "mbart",
                "d_model": 32,
                "decoder_layers": 2,
                "decoder_attention_heads": 4,
                "decoder_ffn_dim": 64,
                "scale_embedding": True,
                "classifier_dropout": 0.0,
            },
        },
        auto="AutoModelForSpeechSeq2Seq",
    ),
    Family(
        "speech_to_text",
        "facebook/s2t-small-librispeech-asr",
        place=ENCODER_DECODER,
        options={"conv_channels": 32},
    ),
    Family(
        "unispeech",
        "microsoft/unispeech-large-1500h-cv",
        place=WAV2VEC2,
        options=LARGE,
    ),
    Family(
        "unispeech-sat",
        "microsoft/unispeech-sat-base-100h-libri-ft",
        place=WAV2VEC2,
        options=CONVOLUTIONS,
    ),
    Family(
        "vibevoice_asr",
        "microsoft/VibeVoice-ASR-HF",
        place=f"decoder (language_model.layers.*) causal 0-1: {LLAMA}",
        options={
            "audio_token_id": 120,
            "audio_bos_token_id": 118,
            "audio_eos_token_id": 119,
            "acoustic_tokenizer_chunk_size": 4000,
            "acoustic_tokenizer_encoder_config": VIBE,
            "semantic_tokenizer_encoder_config": VIBE,
            "text_config": {"num_key_value_heads": 2},
        },
    ),
    Family(
        "voxtral",
        "mistralai/Voxtral-Mini-3B-2507",
        place=HEARING_PLACE,
        options=HEARING,
    ),
    Family(
        "voxtral_encoder",
        "mistralai/Voxtral-Mini-3B-2507",
        place=WHISPER_ENCODER,
    ),
    Family(
        "voxtral_realtime",
        "mistralai/Voxtral-Mini-4B-Realtime-2602",
        place=f"audio (audio_tower.layers.*) causal 0-1: {LLAMA}; {LANGUAGE}",
        inputs=lambda model: {"input_ids": WORDS, "input_features": noise(1, 128, 64)},
    ),
    Family(
        "voxtral_realtime_encoder",
        "mistralai/Voxtral-Mini-4B-Realtime-2602",
        place=f"decoder (layers.*) causal 0-1: {LLAMA}",
    ),
    Family(
        "wav2vec2",
        "facebook/wav2vec2-base-960h",
        place=WAV2VEC2,
        options=CONVOLUTIONS,
    ),
    Family(
        "wav2vec2",
        "facebook/wav2vec2-large-lv60",
        place=WAV2VEC2,
        options=LARGE,
        name="wav2vec2-large-lv60",
    ),
    Family(
        "wav2vec2-bert",
        "facebook/w2v-bert-2.0",
        place=WAV2VEC2_CONFORMER,
        options={"feature_projection_input_dim": 160},
    ),
    Family(
        "wav2vec2-conformer",
        "facebook/wav2vec2-conformer-rel-pos-large",
        place=WAV2VEC2_CONFORMER,
        options=CONFORMER_LARGE,
    ),
    Family(
        "wav2vec2-conformer",
        "facebook/wav2vec2-conformer-rope-large-960h-ft",
        place=WAV2VEC2_CONFORMER,
        options={**CONFORMER_LARGE, "position_embeddings_type": "rotary"},
        name="wav2vec2-conformer-rope",
    ),
    Family(
        "wavlm",
        "microsoft/wavlm-base",
        place="encoder (encoder.layers.*) 0-1: feed_forward.output_dense["
        "feed_forward.intermediate_dense > feed_forward.output_dense]",
        options=CONVOLUTIONS,
        # F.multi_head_attention_forward reads the weights of the projections and never calls them.
        without={"LoRA": "unknown site on wavlm 'query'", **OFF_INTERFACE},
    ),
    Family(
        "whisper",
        "openai/whisper-tiny",
        place=ENCODER_DECODER,
    ),
]
