"""Types of transformers that the table does not list, and why."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

from families.catalogue import by_label

LEFT_OUT: dict[str, tuple[str, ...]] = {
    "no attention": (
        *("bit", "convnext", "convnextv2", "dinov3_convnext", "efficientnet", "falcon_mamba"),
        *("mamba", "mamba2", "mobilenet_v1", "mobilenet_v2", "poolformer", "pp_lcnet"),
        *("pp_ocrv5_mobile_det", "pp_ocrv5_server_det"),
        *("pp_ocrv6_medium_det", "pp_ocrv6_small_det", "pp_ocrv6_tiny_rec", "regnet"),
        *("rwkv", "textnet", "univnet", "uvdoc", "uvdoc_backbone"),
        *("vibevoice_acoustic_tokenizer_decoder", "xlstm"),
    ),
    "attention inside a recurrence, without blocks": ("slanet",),
    "needs timm": (
        *("edgetam", "edgetam_video", "edgetam_vision_model", "fast_vlm", "gemma3n"),
        *("gemma3n_vision", "omdet-turbo", "pe_audio_video", "pe_audio_video_encoder", "pe_video"),
        *("pe_video_encoder", "perception_lm", "timm_wrapper"),
    ),
    "needs detectron2, natten or torchaudio": ("layoutlmv2", "dinat", "higgs_audio_v2_tokenizer"),
    "runs inside a session of a video; its image model is listed": (
        *("sam2_video", "sam3_tracker_video", "sam3_video"),
    ),
    "has no forward; its thinker is listed": ("qwen2_5_omni", "qwen3_omni_moe"),
    "drafts for another model, whose states it reads": (
        *("gemma4_assistant", "gemma4_unified_assistant", "muse_glimmer_assistant"),
    ),
}


def unlisted() -> list[str]:
    """The types that an auto class builds and that are no part of a listed family."""
    listed = {family.model_type for family in by_label().values()}
    for family in by_label().values():
        listed |= set(_types(family.config()))
    built = {
        model_type
        for name, mapping in vars(modeling_auto).items()
        if name.startswith("MODEL_") and name.endswith("_MAPPING_NAMES")
        for model_type in mapping
    }
    return sorted((built & set(CONFIG_MAPPING)) - listed)


def _types(config: PreTrainedConfig) -> Iterator[str]:
    yield config.model_type
    for entry in vars(config).values():
        if isinstance(entry, PreTrainedConfig):
            yield from _types(entry)
