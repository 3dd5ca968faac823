"""All entries, by kind, and the sample that CI checks."""

from __future__ import annotations

from importlib import import_module

from families.family import Family

# One for each mechanism that places or checks differ by.
SAMPLE = {
    *("bert", "albert", "deberta-v2", "modernbert", "xmod", "mobilebert", "convbert", "luke"),
    *("lilt", "longformer", "xlm", "canine", "t5", "bart", "longt5", "led", "nllb-moe", "fsmt"),
    *("llama", "gpt2", "gpt_neox", "bloom", "falcon", "gemma3n_text", "opt", "deepseek_v3"),
    *("mixtral", "jetmoe", "gpt_oss", "doge-moe", "jamba", "falcon_h1", "zamba2", "qwen3_next"),
    *("nemotron_h", "recurrent_gemma", "vit", "swin", "segformer", "levit", "hiera", "mobilevit"),
    *("timesformer", "detr", "conditional_detr", "mask2former", "sam2", "wav2vec2", "wavlm"),
    *("parakeet_ctc", "clap", "moonshine", "patchtst", "timesfm", "clip", "siglip2", "blip-2"),
    *("llava", "qwen2_vl", "florence2"),
}

KINDS = {
    "Encoders of text": ["encoders"],
    "Decoders": ["decoders"],
    "Mixtures of experts": ["mixtures"],
    "Hybrids: attention beside Mamba, recurrence or convolution": ["hybrids"],
    "Encoder-decoders": ["seq2seq"],
    "Images and video": ["vision", "pyramids", "video"],
    "Detection and segmentation": ["detection", "segmentation", "sam"],
    "Sound": ["audio", "speech_generation"],
    "Time series": ["series"],
    "Text and images apart": ["towers"],
    "Text with images in it": ["vision_language", "image_grids"],
    "Documents": ["documents"],
}


def families() -> dict[str, list[Family]]:
    """The entries of every kind, by label."""
    found = {}
    for kind, modules in KINDS.items():
        entries = [each for name in modules for each in import_module(f"families.{name}").FAMILIES]
        found[kind] = sorted(entries, key=lambda family: family.label)
    return found


def by_label() -> dict[str, Family]:
    """Every entry by its label.

    Raises:
        ValueError: two entries have the same label.
    """
    entries = [family for listed in families().values() for family in listed]
    labels = [family.label for family in entries]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"families with several entries, which need names: {', '.join(twice)}")
    return dict(zip(labels, entries, strict=True))
