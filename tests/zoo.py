"""Tiny random models of many families, built from their configurations: two blocks, width 32.

Only sizes differ from a published checkpoint of the family, which each entry names: what selects a
computation, such as norms, biases, shared projections, windows and scales, is as it is there.

Weights have a large standard deviation, and biases and norms differ from zero and one, so that
every sublayer matters: a lost mask, prefix or norm changes the output by more than rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    PreTrainedConfig,
    PreTrainedModel,
)

Kind = Literal["encoder", "decoder", "seq2seq", "vision", "audio", "clip"]

# From this version on, the attention of GPT-J and CodeGen uses the interface.
GPTJ_JOINED = Version(transformers.__version__) >= Version("5.24")

WIDTH, BLOCKS, HEADS, VOCABULARY, LABELS = 32, 2, 4, 100, 3
PAD, BOS, EOS, FIRST_WORD, LAST_WORD = 0, 1, 2, 3, VOCABULARY - 1

_HEADS = {
    "encoder": AutoModelForSequenceClassification,
    "decoder": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "vision": AutoModelForImageClassification,
    "audio": AutoModelForAudioClassification,
    "clip": AutoModel,
}


@dataclass(frozen=True)
class Entry:
    """One family.

    Attributes:
        checkpoint: on the hub, whose options it has.
        interface: whether its attention uses transformers' ``AttentionInterface``.
        checkpointing: whether it supports activation checkpointing.
        options: arguments of its configuration.
        model_type: its type in transformers, if that is not the name.
        head: auto class of the task model, if that is not the one of its kind.
    """

    name: str
    kind: Kind
    checkpoint: str
    interface: bool = True
    checkpointing: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    model_type: str = ""
    head: Any = None

    def config(self) -> PreTrainedConfig:
        config = AutoConfig.for_model(self.model_type or self.name, **self.options)
        _remove_dropout(config)
        return config

    def build(self, task: bool = True) -> PreTrainedModel:
        """The model in eval mode, with weights from torch's global generator."""
        model = self._auto(task).from_config(self.config())
        _draw(model)
        return model.eval()

    def on_meta(self) -> PreTrainedModel:
        """The task model on the meta device."""
        with torch.device("meta"):
            return self._auto(True).from_config(self.config()).eval()

    def _auto(self, task: bool) -> Any:
        return (self.head or _HEADS[self.kind]) if task else AutoModel


def _remove_dropout(config: PreTrainedConfig) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _remove_dropout(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)


@torch.no_grad()
def _draw(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        if not parameter.requires_grad:  # a fixed table of sines
            continue
        if parameter.dim() >= 2:
            parameter.normal_(std=0.15)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


_SPECIAL = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_TEXT: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, **_SPECIAL}
_BLOCKS = {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "intermediate_size": 2 * WIDTH,
}
_GROUPED = {"num_key_value_heads": 2}
_HEAD_DIM = {"head_dim": WIDTH // HEADS}
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_LABELS = {"num_labels": LABELS}
_DISTILBERT = {
    "dim": WIDTH,
    "n_layers": BLOCKS,
    "n_heads": HEADS,
    "hidden_dim": 2 * WIDTH,
    **_TEXT,
    **_LABELS,
}
_ROBERTA = {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
_DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "position_biased_input": False,
    "pooler_hidden_size": WIDTH,
}
# Buckets as many as tokens of a short row, so that positions far away share one.
_DEBERTA_V2: dict[str, Any] = {
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    **_DEBERTA,
}
_GPT = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": WIDTH,
    "n_layer": BLOCKS,
    "n_head": HEADS,
    "n_inner": 2 * WIDTH,
    **_SPECIAL,
}
_GPTJ = {"tie_word_embeddings": False, **_GPT}
_GPT_NEO = {
    "num_layers": BLOCKS,
    "num_heads": HEADS,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 4,
    **_TEXT,
}
_BLOOM = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "n_layer": BLOCKS,
    "n_head": HEADS,
    **_SPECIAL,
}
_MPT = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "n_heads": HEADS,
    "n_layers": BLOCKS,
    "expansion_ratio": 2,
    "max_seq_len": 64,
    **_SPECIAL,
}
_XGLM = {
    "d_model": WIDTH,
    "num_layers": BLOCKS,
    "attention_heads": HEADS,
    "ffn_dim": 2 * WIDTH,
    **_TEXT,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": WIDTH // 2}
_DEEPSEEK = {
    "num_key_value_heads": HEADS,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "rope_parameters": {
        **{"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0},
        **{"mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1},
        "original_max_position_embeddings": 16,
    },
    **_EXPERTS,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": WIDTH // HEADS,
    "d_ff": 2 * WIDTH,
    "num_layers": BLOCKS,
    "num_heads": HEADS,
    "decoder_start_token_id": PAD,
    **_SPECIAL,
}
_MT5 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **_T5}
_BART = {
    "d_model": WIDTH,
    "encoder_layers": BLOCKS,
    "decoder_layers": BLOCKS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 2 * WIDTH,
    "decoder_ffn_dim": 2 * WIDTH,
    "decoder_start_token_id": EOS,
    "forced_eos_token_id": None,
    **_TEXT,
}
_STATIC = {"scale_embedding": True, **_BART, "decoder_start_token_id": PAD}
_IMAGE = {"image_size": 16, "patch_size": 4, **_BLOCKS}
_WAVE = {
    "conv_dim": (WIDTH, WIDTH),
    "conv_kernel": (4, 4),
    "conv_stride": (4, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "group",
    "classifier_proj_size": WIDTH,
    "vocab_size": VOCABULARY,
    **_BLOCKS,
}
_LARGE_WAVE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_WHISPER = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64, **_BART}
_CLIP = {
    "text_config": {**_TEXT, **_BLOCKS, "projection_dim": WIDTH, "eos_token_id": LAST_WORD},
    "vision_config": {**_IMAGE, "projection_dim": WIDTH},
    "projection_dim": WIDTH,
}


def _encoder(
    name: str,
    checkpoint: str,
    *,
    interface: bool = True,
    checkpointing: bool = True,
    model_type: str = "",
    **more: Any,
) -> Entry:
    options = {**_TEXT, **_BLOCKS, **_LABELS, **more}
    return Entry(name, "encoder", checkpoint, interface, checkpointing, options, model_type)


def _decoder(name: str, checkpoint: str, *, model_type: str = "", **more: Any) -> Entry:
    options = {**_TEXT, **_BLOCKS, **more}
    return Entry(name, "decoder", checkpoint, options=options, model_type=model_type)


def _falcon(name: str, checkpoint: str, **variant: Any) -> Entry:
    options = {**_TEXT, **_BLOCKS, "ffn_hidden_size": 2 * WIDTH, "alibi": False, **variant}
    return Entry(name, "decoder", checkpoint, interface=False, options=options, model_type="falcon")


def _vision(name: str, checkpoint: str, **more: Any) -> Entry:
    return Entry(name, "vision", checkpoint, options={**_IMAGE, **_LABELS, **more})


_ENCODERS = [
    _encoder("bert", "google-bert/bert-base-uncased"),
    _encoder("roberta", "FacebookAI/roberta-base", **_ROBERTA),
    _encoder("xlm-roberta", "FacebookAI/xlm-roberta-base", **_ROBERTA),
    _encoder("camembert", "almanach/camembert-base", **_ROBERTA),
    _encoder("xlm-roberta-xl", "facebook/xlm-roberta-xl", **_ROBERTA),
    _encoder("electra", "google/electra-small-discriminator", embedding_size=16),
    _encoder("ernie", "nghuyong/ernie-3.0-base-zh", use_task_id=True, type_vocab_size=4),
    _encoder(
        "albert",
        "albert/albert-base-v2",
        checkpointing=False,
        embedding_size=16,
        classifier_dropout_prob=0.0,
    ),
    _encoder("roformer", "junnyu/roformer_chinese_base", interface=False, embedding_size=WIDTH),
    _encoder(
        "rembert",
        "google/rembert",
        interface=False,
        input_embedding_size=16,
        output_embedding_size=48,
    ),
    _encoder(
        "deberta",
        "microsoft/deberta-base",
        interface=False,
        pos_att_type=["c2p", "p2c"],
        **_DEBERTA,
    ),
    _encoder("deberta-v2", "microsoft/deberta-v3-base", interface=False, **_DEBERTA_V2),
    _encoder(
        "deberta-v2-xlarge",
        "microsoft/deberta-v2-xlarge",
        interface=False,
        model_type="deberta-v2",
        conv_kernel_size=3,
        conv_act="gelu",
        **_DEBERTA_V2,
    ),
    _encoder(
        "mpnet",
        "microsoft/mpnet-base",
        interface=False,
        checkpointing=False,
        layer_norm_eps=1e-5,
    ),
    _encoder(
        "modernbert",
        "answerdotai/ModernBERT-base",
        cls_token_id=BOS,
        sep_token_id=EOS,
        local_attention=8,
        global_attn_every_n_layers=2,
        classifier_pooling="mean",
    ),
    Entry("distilbert", "encoder", "distilbert/distilbert-base-uncased", options=_DISTILBERT),
]
_DECODERS = [
    Entry("gpt2", "decoder", "openai-community/gpt2", options=_GPT),
    Entry(
        "gpt_bigcode",
        "decoder",
        "bigcode/starcoder",
        options={"activation_function": "gelu", **_GPT},
    ),
    Entry(
        "codegen",
        "decoder",
        "Salesforce/codegen-350M-mono",
        interface=GPTJ_JOINED,
        options={"rotary_dim": 4, **_GPTJ},
    ),
    Entry("mpt", "decoder", "mosaicml/mpt-7b", interface=False, options=_MPT),
    Entry(
        "gptj",
        "decoder",
        "EleutherAI/gpt-j-6b",
        interface=GPTJ_JOINED,
        options={"rotary_dim": 2, **_GPTJ},
    ),
    Entry("gpt_neo", "decoder", "EleutherAI/gpt-neo-125m", interface=False, options=_GPT_NEO),
    Entry("bloom", "decoder", "bigscience/bloom-560m", interface=False, options=_BLOOM),
    _falcon("falcon", "tiiuae/falcon-7b", multi_query=True),
    _falcon("falcon-new", "tiiuae/falcon-40b", new_decoder_architecture=True, num_kv_heads=2),
    _falcon(
        "falcon-old",
        "tiiuae/falcon-rw-1b",
        multi_query=False,
        parallel_attn=False,
        alibi=True,
        bias=True,
    ),
    _decoder("opt", "facebook/opt-125m", ffn_dim=2 * WIDTH, word_embed_proj_dim=WIDTH),
    _decoder(
        "opt-350m",
        "facebook/opt-350m",
        model_type="opt",
        ffn_dim=2 * WIDTH,
        word_embed_proj_dim=WIDTH // 2,
        do_layer_norm_before=False,
    ),
    _decoder("gpt_neox", "EleutherAI/pythia-160m"),
    _decoder("llama", "meta-llama/Meta-Llama-3-8B", **_GROUPED),
    _decoder("mistral", "mistralai/Mistral-7B-v0.1", sliding_window=4, **_GROUPED, **_HEAD_DIM),
    _decoder(
        "mixtral",
        "mistralai/Mixtral-8x7B-v0.1",
        num_local_experts=4,
        num_experts_per_tok=2,
        **_GROUPED,
    ),
    _decoder("qwen2", "Qwen/Qwen2.5-7B", **_GROUPED),
    _decoder("qwen3", "Qwen/Qwen3-8B", **_GROUPED, **_HEAD_DIM),
    _decoder("phi", "microsoft/phi-1_5"),
    _decoder("phi3", "microsoft/Phi-3-mini-4k-instruct", sliding_window=4),
    _decoder("gemma", "google/gemma-2b", num_key_value_heads=1, **_HEAD_DIM),
    _decoder(
        "gemma2",
        "google/gemma-2-2b",
        query_pre_attn_scalar=WIDTH // HEADS,
        **_GROUPED,
        **_HEAD_DIM,
        **_SLIDING,
    ),
    _decoder(
        "gemma3_text",
        "google/gemma-3-1b-pt",
        query_pre_attn_scalar=WIDTH // HEADS,
        num_key_value_heads=1,
        **_HEAD_DIM,
        **_SLIDING,
    ),
    _decoder(
        "stablelm",
        "stabilityai/stablelm-2-1_6b",
        use_qkv_bias=True,
        num_key_value_heads=HEADS,
    ),
    _decoder(
        "stablelm-12b",
        "stabilityai/stablelm-2-12b",
        model_type="stablelm",
        qk_layernorm=True,
        use_parallel_residual=True,
        **_GROUPED,
    ),
    _decoder("olmo2", "allenai/OLMo-2-0325-32B", **_GROUPED),
    _decoder("olmo", "allenai/OLMo-1.7-7B-hf", clip_qkv=8.0),
    _decoder("glm", "THUDM/glm-4-9b-chat-hf", **_GROUPED, **_HEAD_DIM),
    _decoder(
        "qwen3_moe",
        "Qwen/Qwen3-30B-A3B",
        num_experts=4,
        norm_topk_prob=True,
        **_EXPERTS,
        **_GROUPED,
        **_HEAD_DIM,
    ),
    Entry("xglm", "decoder", "facebook/xglm-564M", interface=False, options=_XGLM),
    _decoder(
        "granite",
        "ibm-granite/granite-3.0-2b-base",
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=HEADS / WIDTH,
        logits_scaling=8.0,
        tie_word_embeddings=True,
        **_GROUPED,
    ),
    _decoder(
        "cohere",
        "CohereLabs/c4ai-command-r-plus",
        use_qk_norm=True,
        logit_scale=0.8333333333333334,
        **_GROUPED,
    ),
    _decoder("starcoder2", "bigcode/starcoder2-3b", sliding_window=4, **_GROUPED),
    _decoder("smollm3", "HuggingFaceTB/SmolLM3-3B", no_rope_layers=[1, 0], **_GROUPED),
    _decoder("deepseek_v3", "deepseek-ai/DeepSeek-V3", **_DEEPSEEK),
]
_OTHERS = [
    Entry("t5", "seq2seq", "google-t5/t5-base", options=_T5),
    Entry("umt5", "seq2seq", "google/umt5-base", options=_MT5),
    Entry("mt5", "seq2seq", "google/mt5-base", options=_MT5),
    Entry("bart", "seq2seq", "facebook/bart-base", options=_BART),
    Entry(
        "mbart",
        "seq2seq",
        "facebook/mbart-large-cc25",
        options={"scale_embedding": True, **_BART},
    ),
    Entry(
        "pegasus",
        "seq2seq",
        "google/pegasus-large",
        options={"activation_function": "relu", **_STATIC},
    ),
    Entry(
        "marian",
        "seq2seq",
        "Helsinki-NLP/opus-mt-en-de",
        options={"activation_function": "swish", **_STATIC},
    ),
    Entry(
        "whisper",
        "audio",
        "openai/whisper-base",
        options=_WHISPER,
        head=AutoModelForSpeechSeq2Seq,
    ),
    Entry("wav2vec2", "audio", "facebook/wav2vec2-base", options={**_WAVE, **_LABELS}),
    Entry(
        "wav2vec2-large",
        "audio",
        "facebook/wav2vec2-large-lv60",
        options={**_WAVE, **_LABELS, **_LARGE_WAVE},
        model_type="wav2vec2",
    ),
    Entry("hubert", "audio", "facebook/hubert-base-ls960", options={**_WAVE, **_LABELS}),
    _vision("vit", "google/vit-base-patch16-224"),
    _vision("deit", "facebook/deit-base-patch16-224", architectures=["DeiTForImageClassification"]),
    _vision("beit", "microsoft/beit-base-patch16-224", use_relative_position_bias=True),
    _vision("dinov2", "facebook/dinov2-base"),
    Entry("clip", "clip", "openai/clip-vit-base-patch32", options=_CLIP),
]

ZOO: dict[str, Entry] = {e.name: e for e in (*_ENCODERS, *_DECODERS, *_OTHERS)}
# One family for each mechanism, for the inner loop: post-norm and pre-norm, a shared block, one off
# the attention interface, fused projections plain and interleaved, grouped queries, experts, two
# stacks, images, sound, two towers. Tests of the others are marked slow, see conftest.py.
REPRESENTATIVE = {
    *("bert", "albert", "deberta", "gpt2", "gpt_neox", "llama", "mixtral", "t5", "bart"),
    *("vit", "whisper", "clip"),
}


def build(name: str, *, seed: int = 0, task: bool = True) -> PreTrainedModel:
    """A tiny model in eval mode; equal seeds give equal weights.

    Args:
        task: whether it has the head of its kind: classes for encoders, images and sound, a
            vocabulary for decoders and encoder-decoders.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ZOO[name].build(task)


def without_values(name: str) -> PreTrainedModel:
    """The model of :func:`build` on the meta device."""
    return ZOO[name].on_meta()


def inputs(
    name: str, *, padded: bool = True, batch: int = 2, length: int = 8, seed: int = 1
) -> dict[str, Tensor]:
    """A batch of keyword arguments for the model.

    Args:
        padded: whether the second row ends in padding and there is an ``attention_mask``. It has no
            effect on models of images or spectrograms, which have a fixed size.
        length: tokens per row; for sound, frames after the convolutions.
    """
    draw = torch.Generator().manual_seed(seed)
    kind = ZOO[name].kind
    if kind == "vision":
        return {"pixel_values": torch.randn(batch, 3, 16, 16, generator=draw)}
    if name == "whisper":
        sound = torch.randn(batch, 8, 32, generator=draw)
        return {"input_features": sound, "decoder_input_ids": _words(batch, length - 1, draw)}
    if kind == "audio":
        sound = torch.randn(batch, 16 * length + 4, generator=draw)
        return _padded("input_values", sound, 16 * (length // 2) + 4, padded)
    made = _padded("input_ids", _words(batch, length, draw), length // 2 + 1, padded)
    if kind == "seq2seq":
        made["decoder_input_ids"] = _words(batch, length - 1, draw)
    if kind == "clip":
        made["input_ids"][:, length // 2] = LAST_WORD  # where its text tower reads the sentence
        made["pixel_values"] = torch.randn(batch, 3, 16, 16, generator=draw)
    return made


def output(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """The tensor to compare: logits, both embeddings concatenated, or last hidden states."""
    result = model(**inputs)
    if "image_embeds" in result:
        return torch.cat([result["text_embeds"], result["image_embeds"]], dim=-1)
    return result["logits"] if "logits" in result else result["last_hidden_state"]


def _words(batch: int, length: int, draw: torch.Generator) -> Tensor:
    return torch.randint(FIRST_WORD, LAST_WORD, (batch, length), generator=draw)


def _padded(key: str, values: Tensor, keep: int, padded: bool) -> dict[str, Tensor]:
    if not padded or len(values) < 2:
        return {key: values}
    mask = torch.ones(values.shape, dtype=torch.long)
    mask[1, keep:] = 0
    return {key: values * mask, "attention_mask": mask}
