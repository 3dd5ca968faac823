"""Text to speech, codecs of sound, and music."""

import torch
from transformers import PreTrainedModel

from families._inputs_audio import WORDS, noise
from families.audio import CONVOLUTIONS, VIBE
from families.family import Family

CODES = torch.arange(3, 3 + 8)[None, :, None]
MIMI = {
    "num_filters": 4,
    "upsample_groups": 32,
    "vector_quantization_hidden_dimension": 16,
    "codebook_dim": 16,
    "codebook_size": 32,
    "num_quantizers": 4,
}
ENCODEC = {"num_filters": 2, "codebook_size": 32, "codebook_dim": 32}
HIFIGAN = {"upsample_initial_channel": 32}
FASTSPEECH_STACK = {"layers": 2, "linear_units": 64}
FASTSPEECH = {
    "encoder_config": FASTSPEECH_STACK,
    "decoder_config": FASTSPEECH_STACK,
    "num_mel_bins": 16,
    "speech_decoder_postnet_units": 16,
    "duration_predictor_channels": 1,  # normalised to 0: the durations do not follow the words
    "energy_predictor_channels": 16,
    "pitch_predictor_channels": 16,
}
RELATIVE = "self_attn[linear_q linear_k linear_v > linear_out]"
FASTSPEECH_PLACE = (
    f"encoder (encoder.conformer_layers.*) 0-1: {RELATIVE}; "
    f"decoder (decoder.conformer_layers.*) 0-1: {RELATIVE}"
)
VITS = {
    "flow_size": 32,
    "spectrogram_bins": 17,
    "upsample_initial_channel": 32,
    "duration_predictor_filter_channels": 32,
    "prior_encoder_num_wavenet_layers": 2,
    "posterior_encoder_num_wavenet_layers": 2,
}
SEAMLESS = {
    "speech_encoder_layers": 2,
    "speech_encoder_attention_heads": 4,
    "speech_encoder_intermediate_size": 64,
    "num_conv_pos_embeddings": 16,
    "t2u_vocab_size": 64,
    "t2u_encoder_layers": 2,
    "t2u_encoder_attention_heads": 4,
    "t2u_encoder_ffn_dim": 64,
    "t2u_decoder_layers": 2,
    "t2u_decoder_attention_heads": 4,
    "t2u_decoder_ffn_dim": 64,
    "t2u_max_position_embeddings": 64,
    "upsample_initial_channel": 32,
    "unit_hifi_gan_vocab_size": 64,
    "unit_embed_dim": 32,
    "lang_embed_dim": 8,
    "spkr_embed_dim": 8,
}
CODEC = {"encoder_hidden_size": 4, "quantization_dim": 64}

MLP = "self_attn[q_proj k_proj v_proj > o_proj] mlp.fc2[mlp.fc1 > mlp.fc2]"
LLAMA = (
    "self_attn[q_proj k_proj v_proj > o_proj] "
    "mlp.down_proj[mlp.gate_proj mlp.up_proj > mlp.down_proj]"
)
MOSHI = (
    "decoder (layers.*) causal 0-1: self_attn[q_proj.linear k_proj.linear v_proj.linear > "
    "o_proj.linear] mlp.fc2[mlp.fc1 > mlp.fc2]"
)
T5 = (
    "layer.0.SelfAttention[q k v > o] "
    "layer.1.DenseReluDense.wo[layer.1.DenseReluDense.wi > layer.1.DenseReluDense.wo]"
)
FEED_FORWARD = (
    "feed_forward.output_dense[feed_forward.intermediate_dense > feed_forward.output_dense]"
)
SPEECHT5 = (
    "encoder (speecht5.encoder.wrapped_encoder.layers.*) 0-1: "
    f"attention[q_proj k_proj v_proj > out_proj] {FEED_FORWARD}; "
    "decoder (speecht5.decoder.wrapped_decoder.layers.*) causal 0-1: "
    "self_attn[q_proj k_proj v_proj > out_proj] "
    f"xencoder_attn[q_proj k_proj v_proj > out_proj] {FEED_FORWARD}"
)
SEAMLESS_DECODER = (
    "(text_decoder.layers.*) causal 0-1: self_attn[q_proj k_proj v_proj > out_proj] "
    "xcross_attention[q_proj k_proj v_proj > out_proj] ffn.fc2[ffn.fc1 > ffn.fc2]"
)
SEAMLESS_SPEECH = (
    "speech_encoder (speech_encoder.encoder.layers.*) 0-1: "
    "self_attn[linear_q linear_k linear_v > linear_out] "
    "ffn2.output_dense[ffn2.intermediate_dense > ffn2.output_dense]; "
    "speech_adapter (speech_encoder.adapter.layers.*) 0: "
    "self_attn[linear_q linear_k linear_v > linear_out] "
    "ffn.output_dense[ffn.intermediate_dense > ffn.output_dense]; "
    f"text_decoder {SEAMLESS_DECODER}"
)
SEAMLESS_TEXT = (
    "encoder (text_encoder.layers.*) 0-1: self_attn[q_proj k_proj v_proj > out_proj] "
    f"ffn.fc2[ffn.fc1 > ffn.fc2]; decoder {SEAMLESS_DECODER}"
)

EVERY = ("LoRA", "Adapter", "Prefix", "UniPELT")
OFF_INTERFACE = dict.fromkeys(("Prefix", "UniPELT"), "attention interface")
# Its feed-forwards are convolutions over time, or two, one for words and one for sound.
NO_FEED_FORWARD = dict.fromkeys(("Adapter", "UniPELT"), "'ffn'")


def ten_frames(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A sound, and its spectrogram with as many frames as the codec makes of it."""
    return {"input_values": noise(1, 1, 3200), "input_features": noise(1, 10, 160)}


FAMILIES = [
    Family(
        "bark",
        "suno/bark",
        options={"codec_config": ENCODEC},
        without=dict.fromkeys(EVERY, "cannot be examined"),
    ),
    Family(
        "csm",
        "sesame/csm-1b",
        place=f"decoder (backbone_model.layers.*) causal 0-1: {LLAMA}",
        options={
            "codec_config": MIMI,
            "text_vocab_size": 128,
            "depth_decoder_config": {"backbone_hidden_size": 32},
        },
        inputs=lambda model: {"input_ids": CODES.expand(1, 8, 32)},
    ),
    Family(
        "dia",
        "nari-labs/Dia-1.6B-0626",
        place="encoder (encoder.layers.*) 0-1: self_attention[q_proj k_proj v_proj > o_proj] "
        "mlp.down_proj[mlp.gate_up_proj > mlp.down_proj]; decoder (decoder.layers.*) causal 0-1: "
        "self_attention[q_proj k_proj v_proj > o_proj] xcross_attention[q_proj k_proj v_proj > "
        "o_proj] mlp.down_proj[mlp.gate_up_proj > mlp.down_proj]",
        options={
            "decoder_config": {
                "cross_hidden_size": 32,
                "cross_head_dim": 8,
                "cross_num_attention_heads": 4,
                "cross_num_key_value_heads": 4,
            }
        },
        inputs=lambda model: {"input_ids": WORDS, "decoder_input_ids": CODES.expand(1, 8, 9)},
    ),
    Family(
        "fastspeech2_conformer",
        "espnet/fastspeech2_conformer",
        place=FASTSPEECH_PLACE,
        options=FASTSPEECH,
        without={**NO_FEED_FORWARD, "Prefix": "attention interface"},
    ),
    Family(
        "fastspeech2_conformer_with_hifigan",
        "espnet/fastspeech2_conformer_with_hifigan",
        place=FASTSPEECH_PLACE.replace("(", "(model."),
        options={"model_config": FASTSPEECH, "vocoder_config": {**HIFIGAN, "model_in_dim": 16}},
        without={**NO_FEED_FORWARD, "Prefix": "attention interface"},
    ),
    Family(
        "gradium_phonon_tts",
        "gradium/phonon-31m-en",
        place=f"decoder (layers.*) causal 0-1: {MLP}",
        options={"flow_head_config": {"condition_dim": 32, "hidden_size": 32}},
    ),
    Family(
        "higgs_audio_v2",
        "bosonai/higgs-audio-v2-generation-3B-base",
        place="decoder (model.layers.*) causal 0-1: self_attn[q_proj k_proj v_proj > o_proj]",
        options={
            "audio_token_id": 120,
            "audio_delay_token_id": 121,
            "audio_bos_token_id": 122,
            "codebook_size": 32,
        },
        inputs=lambda model: {
            "input_ids": torch.tensor([[5, 17, 40, 122, 120, 120, 120, 120]]),
            "audio_input_ids": CODES[:, :4].expand(1, 4, 8),
        },
        without=NO_FEED_FORWARD,
    ),
    Family(
        "kyutai_speech_to_text",
        "kyutai/stt-2.6b-en-trfs",
        place=MOSHI,
        options={"codebook_vocab_size": 33, "audio_pad_token_id": 1100, "codec_config": MIMI},
        inputs=lambda model: {"input_ids": CODES.expand(1, 8, 33)},
    ),
    Family(
        "mimi",
        "kyutai/mimi",
        # No gradient passes its codes.
        place="encoder (encoder.encoder_transformer.layers.*) causal 0-1: -; "
        f"decoder (decoder.decoder_transformer.layers.*) causal 0-1: {MLP}",
        options=MIMI,
    ),
    Family(
        "mimi_decoder",
        "kyutai/mimi",
        place=f"decoder (decoder_transformer.layers.*) causal 0-1: {MLP}",
        options=MIMI,
        inputs=lambda model: {"latents": noise(1, 32, 8)},
    ),
    Family(
        "mimi_encoder",
        "kyutai/mimi",
        place=f"decoder (encoder_transformer.layers.*) causal 0-1: {MLP}",
        options=MIMI,
    ),
    Family(
        "moshi",
        "kmhf/hf-moshika",
        place=MOSHI,
    ),
    Family(
        "musicgen",
        "facebook/musicgen-small",
        place=f"encoder (text_encoder.encoder.block.*) 0-1: {T5}; decoder "
        "(decoder.model.decoder.layers.*) causal 0-1: self_attn[q_proj k_proj v_proj > out_proj] "
        "xencoder_attn[q_proj k_proj v_proj > out_proj] fc2[fc1 > fc2]",
        options={"audio_encoder": ENCODEC, "text_encoder": {"d_model": 16}},
        auto="AutoModelForTextToWaveform",
        inputs=lambda model: {
            "input_ids": WORDS,
            "decoder_input_ids": CODES[0, :6, 0].expand(4, 6),
        },
    ),
    Family(
        "musicgen_melody",
        "facebook/musicgen-melody",
        place=f"text (text_encoder.encoder.block.*) 0-1: {T5}; decoder "
        "(decoder.model.decoder.layers.*) causal 0-1: self_attn[q_proj k_proj v_proj > out_proj] "
        "fc2[fc1 > fc2]",
        options={"audio_encoder": ENCODEC, "text_encoder": {"d_model": 16}},
        auto="AutoModelForTextToWaveform",
        inputs=lambda model: {
            "input_ids": WORDS,
            "decoder_input_ids": CODES[0, :6, 0].expand(4, 6),
        },
    ),
    Family(
        "neucodec",
        "neuphonic/neucodec",
        place=f"encoder (acoustic_decoder.layers.*) 0-1: {MLP}",
        options=CODEC,
        inputs=ten_frames,
    ),
    Family(
        "pocket_tts",
        "eustlb/pocket-tts",
        place=f"decoder (layers.*) causal 0-1: {MLP}",
        options={"flow_head_config": {"condition_dim": 32, "hidden_size": 32}},
    ),
    Family(
        "pocket_tts_audio_tokenizer",
        "eustlb/pocket-tts-audio-tokenizer",
        place=f"encoder (encoder.encoder_transformer.layers.*) causal 0-1: {MLP}; "
        f"decoder (decoder.decoder_transformer.layers.*) causal 0-1: {MLP}",
        options={"num_filters": 4, "upsample_groups": 32},
    ),
    Family(
        "pocket_tts_audio_tokenizer_decoder",
        "eustlb/pocket-tts-audio-tokenizer",
        place=f"decoder (decoder_transformer.layers.*) causal 0-1: {MLP}",
        options={"num_filters": 4, "upsample_groups": 32},
        inputs=lambda model: {"latents": noise(1, 32, 8)},
    ),
    Family(
        "pocket_tts_audio_tokenizer_encoder",
        "eustlb/pocket-tts-audio-tokenizer",
        place=f"decoder (encoder_transformer.layers.*) causal 0-1: {MLP}",
        options={"num_filters": 4, "upsample_groups": 32},
    ),
    Family(
        "pop2piano",
        "sweetcocoa/pop2piano",
        place="encoder (encoder.block.*) 0-1: layer.0.SelfAttention[q k v > o] "
        "layer.1.DenseReluDense.wo[layer.1.DenseReluDense.wi_0 layer.1.DenseReluDense.wi_1 > "
        "layer.1.DenseReluDense.wo]; decoder (decoder.block.*) causal 0-1: "
        "layer.0.SelfAttention[q k v > o] xlayer.1.EncDecAttention[q k v > o] "
        "layer.2.DenseReluDense.wo[layer.2.DenseReluDense.wi_0 layer.2.DenseReluDense.wi_1 > "
        "layer.2.DenseReluDense.wo]",
        auto="AutoModelForSpeechSeq2Seq",
        inputs=lambda model: {"input_features": noise(1, 8, 32), "decoder_input_ids": WORDS[:, :6]},
    ),
    Family(
        "seamless_m4t",
        "facebook/hf-seamless-m4t-medium",
        place=SEAMLESS_SPEECH,
        options=SEAMLESS,
        auto="AutoModelForSpeechSeq2Seq",
    ),
    Family(
        "seamless_m4t",
        "facebook/hf-seamless-m4t-medium",
        place=SEAMLESS_TEXT,
        options=SEAMLESS,
        auto="AutoModelForSeq2SeqLM",
        name="seamless_m4t-text",
    ),
    Family(
        "seamless_m4t_v2",
        "facebook/seamless-m4t-v2-large",
        place=SEAMLESS_SPEECH,
        options=SEAMLESS,
        auto="AutoModelForSpeechSeq2Seq",
    ),
    Family(
        "seamless_m4t_v2",
        "facebook/seamless-m4t-v2-large",
        place=SEAMLESS_TEXT,
        options=SEAMLESS,
        auto="AutoModelForSeq2SeqLM",
        name="seamless_m4t_v2-text",
    ),
    Family(
        "speecht5",
        "microsoft/speecht5_asr",
        place=SPEECHT5,
        options={"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16},
        auto="AutoModelForSpeechSeq2Seq",
        inputs=lambda model: {"input_values": noise(1, 4000), "decoder_input_ids": WORDS},
        without=OFF_INTERFACE,
        name="speecht5-asr",
    ),
    Family(
        "speecht5",
        "microsoft/speecht5_tts",
        place=SPEECHT5,
        options={"speech_decoder_prenet_units": 32, "speech_decoder_postnet_units": 32},
        auto="AutoModelForTextToSpectrogram",
        inputs=lambda model: {
            "input_ids": WORDS,
            "decoder_input_values": noise(1, 6, 80),
            "speaker_embeddings": noise(1, 512),
        },
        without=OFF_INTERFACE,
        name="speecht5-tts",
    ),
    Family(
        "vibevoice",
        "vibevoice/VibeVoice-1.5B-hf",
        place=f"decoder (model.language_model.layers.*) causal 0-1: {LLAMA}",
        options={
            "audio_token_id": 120,
            "audio_bos_token_id": 118,
            "audio_eos_token_id": 119,
            "vocab_size": 128,
            "audio_config": VIBE,
            "semantic_model_config": VIBE,
            "diffusion_head_config": {
                "latent_size": 8,
                "num_hidden_layers": 1,
                "frequency_embedding_size": 16,
            },
            "text_config": {"num_key_value_heads": 2},
        },
    ),
    Family(
        "vits",
        "facebook/mms-tts-eng",
        place="encoder (text_encoder.encoder.layers.*) 0-1: "
        "attention[q_proj k_proj v_proj > out_proj]",
        options=VITS,
        inputs=lambda model: {"input_ids": WORDS % 38, "speaking_rate": 1e9},
        without={**NO_FEED_FORWARD, "Prefix": "attention interface"},
    ),
    Family(
        "wavtokenizer",
        "swiss-ai/wavtokenizer-large-unify-40token",
        options={"codebook_dim": 32, "codebook_size": 32, "num_filters": 4},
        without=dict.fromkeys(EVERY, "no attention found"),
    ),
    Family(
        "xcodec",
        "Manel/X-Codec",
        options={
            "codebook_size": 16,
            "codebook_dim": 48,
            "acoustic_model_config": {
                "encoder_hidden_size": 4,
                "decoder_hidden_size": 32,
                "hidden_size": 16,
                "codebook_size": 16,
            },
            "semantic_model_config": CONVOLUTIONS,
        },
        without=dict.fromkeys(EVERY, "run without gradients"),
    ),
    Family(
        "xcodec2",
        "HKUSTAudio/xcodec2-hf",
        place=f"encoder (acoustic_decoder.layers.*) 0-1: {MLP}",
        options=CODEC,
        inputs=ten_frames,
    ),
]
