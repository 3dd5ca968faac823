"""``adapter_config.json`` of PEFT: what is read of it, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_pelt.utils.json_data import parse_json

VERSION = "0.21.2"  # of PEFT, whose fields and rules are known here
CONFIG = "adapter_config.json"
MERGE = (
    "Load it with PEFT, call merge_and_unload(), and save the merged model, which "
    "from_pretrained loads"
)
CONVERT = (
    "Save it again with PEFT's save_pretrained(folder, path_initial_model_for_weight_conversion="
    "...), which converts it to an ordinary LoRA, or merge it with merge_and_unload()"
)

# Fields of every type that do not change what a loaded adapter computes.
DESCRIPTIVE = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"),
    *("revision", "task_type"),
}
COMMON = {"exclude_modules", "fan_in_fan_out", "modules_to_save", "target_modules"}
READ = {
    "LORA": {
        *("alpha_pattern", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout"),
        *("r", "rank_pattern", "use_rslora"),
    },
    "IA3": {"feedforward_modules"},
    "MISS": {"init_weights", "layers_pattern", "layers_to_transform", "miss_dropout", "r"},
    "PROMPT_TUNING": {"num_transformer_submodules", "num_virtual_tokens"},
}
# Settings of an initialisation or of a run, which a trained adapter does not need.
UNUSED = {
    "LORA": {
        *("corda_config", "ensure_weight_tying", "eva_config", "loftq_config", "lora_ga_config"),
        *("megatron_core", "qalora_group_size", "runtime_config"),
    },
    "IA3": {"init_ia3_weights"},
    "MISS": {"mini_r"},
    "PROMPT_TUNING": {
        *("num_attention_heads", "num_layers", "prompt_tuning_init", "prompt_tuning_init_text"),
        *("token_dim", "tokenizer_kwargs", "tokenizer_name_or_path"),
    },
}
# What has to be absent or false, and what it is.
REFUSED = {
    "alora_invocation_tokens": "activated LoRA acts only after certain tokens",
    "arrow_config": "Arrow routes tokens to several adapters",
    "kasa_config": "KaSA changes the weights of the base",
    "layer_replication": "layer replication changes the base",
    "lora_bias": "lora_bias adds a bias to B",
    "megatron_config": "it was trained with Megatron's layers",
    "monteclora_config": "MonteCLoRA samples its weights",
    "target_parameters": "it extends parameters that belong to no linear layer, such as experts",
    "trainable_token_indices": "it trains rows of the embeddings",
    "use_bdlora": "BD-LoRA has block-diagonal factors",
    "use_dora": "DoRA also trains the magnitude of the weights",
    "use_qalora": "QA-LoRA pools the inputs of A",
    "velora_config": "VeLoRA compresses activations",
}
# Of init_lora_weights: the base stays as it is.
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
TYPES: dict[str, tuple[type, ...]] = {
    "r": (int,),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "miss_dropout": (int, float),
    "use_rslora": (bool,),
    "rank_pattern": (dict, type(None)),
    "alpha_pattern": (dict, type(None)),
    "target_modules": (list, str, type(None)),
    "exclude_modules": (list, str, type(None)),
    "feedforward_modules": (list, str, type(None)),
    "modules_to_save": (list, type(None)),
    "layers_to_transform": (list, int, type(None)),
    "layers_pattern": (list, str, type(None)),
    "base_model_name_or_path": (str, type(None)),
    "revision": (str, type(None)),
}


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a folder in PEFT's format, where it can be loaded here.

    Fields that PEFT 0.21.2 does not have give a warning.

    Args:
        folder: of the files.

    Raises:
        FileNotFoundError: there is no ``adapter_config.json``.
        ValueError: it is damaged, or of a method or a variant that cannot be loaded; the message
            names the field and what to do instead.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"there is no {CONFIG} in {folder}: PEFT writes it")
    config = parse_json(path.read_bytes(), path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, expected a mapping")
    kind = str(config.get("peft_type")).upper()
    if kind not in READ:
        raise ValueError(
            f"{path} has the peft_type {kind}: {', '.join(READ)} can be loaded. {MERGE}"
        )
    known = DESCRIPTIVE | COMMON | READ[kind] | UNUSED[kind]
    _refuse_variants(path, config)
    _check_types(path, config)
    unknown = config.keys() - known - REFUSED.keys() - {"bias", "init_lora_weights"}
    if unknown:
        version = config.get("peft_version")
        listed = ", ".join(f"{name}={config[name]!r}" for name in sorted(unknown))
        warnings.warn(
            f"{path} has fields that PEFT {VERSION} does not have ({listed})"
            + (f"; PEFT {version} wrote it" if version else "")
            + ". They are ignored, so the adapter may compute something else here",
            stacklevel=3,
        )
    return config


def _refuse_variants(path: Path, config: Mapping[str, Any]) -> None:
    for name, what in REFUSED.items():
        if config.get(name):
            raise ValueError(
                f"{path} has {name}={config[name]!r}: {what}, which LoRA here does not do. {MERGE}"
            )
    if config.get("bias", "none") != "none":
        raise ValueError(
            f"{path} has bias={config['bias']!r}: it trains biases of the base too, and LoRA here "
            f"does not. {MERGE}"
        )
    if config.get("init_weights", True) not in (True, False):
        raise ValueError(
            f"{path} has init_weights={config['init_weights']!r}, a variant of MiSS that computes "
            f"something else than the default, which MiSS here is. {MERGE}"
        )
    init = config.get("init_lora_weights")
    if not any(init is plain or init == plain for plain in PLAIN_INITS):
        raise ValueError(
            f"{path} has init_lora_weights={init!r}, which changes the weights of the base or "
            f"trains B differently. {CONVERT}"
        )


def _check_types(path: Path, config: Mapping[str, Any]) -> None:
    for name, types in TYPES.items():
        value = config.get(name)
        wrong = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
        if name in config and wrong:
            expected = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise ValueError(f"{path} has {name}={value!r}, expected {expected}")
    for name in ("rank_pattern", "alpha_pattern"):
        for key, value in (config.get(name) or {}).items():
            if isinstance(value, bool) or not isinstance(value, TYPES[_single(name)]):
                raise ValueError(f"{path} has {name}[{key!r}]={value!r}, expected a number")


def _single(pattern: str) -> str:
    return "r" if pattern == "rank_pattern" else "lora_alpha"
