"""Tiny random models of many families, built from their configurations: two blocks, width 32.

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
        interface: whether its attention uses transformers' ``AttentionInterface``.
        checkpointing: whether it supports activation checkpointing.
        options: arguments of its configuration.
        model_type: its type in transformers, if that is not the name.
        head: auto class of the task model, if that is not the one of its kind.
    """

    name: str
    kind: Kind
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
        auto = (self.head or _HEADS[self.kind]) if task else AutoModel
        model = auto.from_config(self.config())
        _draw(model)
        return model.eval()


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
_DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "pooler_hidden_size": WIDTH,
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
_GPTJ = {"rotary_dim": 4, "tie_word_embeddings": False, **_GPT}
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
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
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
_IMAGE = {"image_size": 16, "patch_size": 4, **_BLOCKS}
_WAVE = {
    "conv_dim": (WIDTH, WIDTH),
    "conv_kernel": (4, 4),
    "conv_stride": (4, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "classifier_proj_size": WIDTH,
    "vocab_size": VOCABULARY,
    **_BLOCKS,
}
_WHISPER = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 64, **_BART}
_CLIP = {
    "text_config": {**_TEXT, **_BLOCKS, "projection_dim": WIDTH, "eos_token_id": LAST_WORD},
    "vision_config": {**_IMAGE, "projection_dim": WIDTH},
    "projection_dim": WIDTH,
}


def _encoder(
    name: str, *, interface: bool = True, checkpointing: bool = True, **more: Any
) -> Entry:
    options = {**_TEXT, **_BLOCKS, **_LABELS, **more}
    return Entry(name, "encoder", interface, checkpointing, options)


def _decoder(name: str, **more: Any) -> Entry:
    return Entry(name, "decoder", options={**_TEXT, **_BLOCKS, **more})


def _falcon(name: str, **variant: Any) -> Entry:
    options = {**_TEXT, **_BLOCKS, "ffn_hidden_size": 2 * WIDTH, "alibi": False, **variant}
    return Entry(name, "decoder", interface=False, options=options, model_type="falcon")


def _vision(name: str, **more: Any) -> Entry:
    return Entry(name, "vision", options={**_IMAGE, **_LABELS, **more})


_ENTRIES = [
    _encoder("bert"),
    _encoder("roberta"),
    _encoder("xlm-roberta"),
    _encoder("camembert"),
    _encoder("xlm-roberta-xl"),
    _encoder("electra", embedding_size=16),
    _encoder("ernie"),
    _encoder("albert", checkpointing=False, embedding_size=16, classifier_dropout_prob=0.0),
    _encoder("roformer", interface=False, embedding_size=WIDTH),
    _encoder("rembert", interface=False, input_embedding_size=16, output_embedding_size=16),
    _encoder("deberta", interface=False, **_DEBERTA),
    _encoder("deberta-v2", interface=False, **_DEBERTA),
    _encoder("mpnet", interface=False, checkpointing=False),
    _encoder(
        "modernbert",
        cls_token_id=BOS,
        sep_token_id=EOS,
        local_attention=8,
        global_attn_every_n_layers=2,
    ),
    Entry("distilbert", "encoder", options=_DISTILBERT),
    Entry("gpt2", "decoder", options=_GPT),
    Entry("gpt_bigcode", "decoder", options=_GPT),
    Entry("codegen", "decoder", interface=GPTJ_JOINED, options=_GPTJ),
    Entry("mpt", "decoder", interface=False, options=_MPT),
    Entry("gptj", "decoder", interface=GPTJ_JOINED, options=_GPTJ),
    Entry("gpt_neo", "decoder", interface=False, options=_GPT_NEO),
    Entry("bloom", "decoder", interface=False, options=_BLOOM),
    _falcon("falcon", multi_query=True),
    _falcon("falcon-new", new_decoder_architecture=True, num_kv_heads=2),
    _falcon("falcon-old", multi_query=False, parallel_attn=False, alibi=True),
    _decoder("opt", ffn_dim=2 * WIDTH, word_embed_proj_dim=WIDTH),
    _decoder("gpt_neox"),
    _decoder("llama", **_GROUPED),
    _decoder("mistral", sliding_window=4, **_GROUPED, **_HEAD_DIM),
    _decoder("mixtral", num_local_experts=4, num_experts_per_tok=2, **_GROUPED),
    _decoder("qwen2", **_GROUPED),
    _decoder("qwen3", **_GROUPED, **_HEAD_DIM),
    _decoder("phi"),
    _decoder("phi3", **_GROUPED),
    _decoder("gemma", **_GROUPED, **_HEAD_DIM),
    _decoder("gemma2", **_GROUPED, **_HEAD_DIM, **_SLIDING),
    _decoder("gemma3_text", **_GROUPED, **_HEAD_DIM, **_SLIDING),
    _decoder("stablelm", **_GROUPED),
    _decoder("olmo2", **_GROUPED),
    _decoder("olmo", **_GROUPED),
    _decoder("glm", **_GROUPED, **_HEAD_DIM),
    _decoder("qwen3_moe", num_experts=4, **_EXPERTS, **_GROUPED, **_HEAD_DIM),
    Entry("xglm", "decoder", interface=False, options=_XGLM),
    _decoder("granite", **_GROUPED),
    _decoder("cohere", **_GROUPED),
    _decoder("starcoder2", **_GROUPED),
    _decoder("smollm3", **_GROUPED),
    _decoder("deepseek_v3", **_DEEPSEEK),
    Entry("t5", "seq2seq", options=_T5),
    Entry("umt5", "seq2seq", options=_T5),
    Entry("mt5", "seq2seq", options={"feed_forward_proj": "gated-gelu", **_T5}),
    Entry("bart", "seq2seq", options=_BART),
    Entry("mbart", "seq2seq", options=_BART),
    Entry("pegasus", "seq2seq", options=_BART),
    Entry("marian", "seq2seq", options=_BART),
    Entry("whisper", "audio", options=_WHISPER, head=AutoModelForSpeechSeq2Seq),
    Entry("wav2vec2", "audio", options={**_WAVE, **_LABELS}),
    Entry("hubert", "audio", options={**_WAVE, **_LABELS}),
    _vision("vit"),
    _vision("deit", architectures=["DeiTForImageClassification"]),
    _vision("beit", use_relative_position_bias=True),
    _vision("dinov2"),
    Entry("clip", "clip", options=_CLIP),
]

ZOO: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
# Off the interface, and the leaf names of their attentions are not in the table.
UNSUPPORTED = {"mpt"} if GPTJ_JOINED else {"mpt", "codegen"}
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
