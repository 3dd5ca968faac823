"""The configuration of an adapter of AdapterHub, with its defaults filled in."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_pelt.utils.adapterhub_format import not_a_configuration
from lightning_pelt.utils.errors import unknown

# The fields of ``BnConfig``, ``LoRAConfig`` and so on that change what an adapter computes.
BOTTLENECK: dict[str, Any] = {
    "mh_adapter": False,
    "output_adapter": True,
    "cross_adapter": False,
    "reduction_factor": 16,
    "non_linearity": "relu",
    "original_ln_before": False,
    "original_ln_after": True,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "ln_before": False,
    "ln_after": False,
    "is_parallel": False,
    "scaling": 1.0,
    "use_gating": False,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "leave_out": [],
    "dropout": 0.0,
    "stochastic_depth": 0.0,
    "phm_layer": False,
    "phm_dim": 4,
    "phm_rank": 1,
    "phm_bias": True,
    "learn_phm": True,
    "factorized_phm_W": True,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "factorized_phm_rule": False,
}
LORA: dict[str, Any] = {
    "selfattn_lora": True,
    "intermediate_lora": False,
    "output_lora": False,
    "leave_out": [],
    "r": 8,
    "alpha": 8,
    "dropout": 0.0,
    "attn_matrices": ["q", "v"],
    "composition_mode": "add",
    "use_gating": False,
    "use_dora": False,
    "vera_d": None,
    "vera_b": None,
}
PREFIX: dict[str, Any] = {
    "encoder_prefix": True,
    "cross_prefix": True,
    "leave_out": [],
    "flat": False,
    "prefix_length": 30,
    "bottleneck_size": 512,
    "non_linearity": "tanh",
    "dropout": 0.0,
    "use_gating": False,
    "shared_gating": True,
}
PROMPT: dict[str, Any] = {"prompt_length": 10, "combine": "prefix"}
DEFAULTS = {
    "bottleneck": BOTTLENECK,
    "lora": LORA,
    "prefix_tuning": PREFIX,
    "prompt_tuning": PROMPT,
}
OTHERS = {  # architectures that have no counterpart here
    "reft": "ReFT interventions",
    "mtl_lora": "a LoRA of several tasks",
}
# Without an effect on outputs: initial values, and names of other versions.
INERT = {
    *("architecture", "init_weights", "init_weights_seed", "dtype", "hypercomplex_nonlinearity"),
    *("phm_c_init", "phm_init_range", "prompt_init", "prompt_init_text", "random_uniform_scale"),
    *("attention_type", "new_attention_norm", "invertible_adapter"),
}
IN_TRAINING = ("dropout", "stochastic_depth")  # do nothing in eval mode
CASED = {"factorized_phm_w": "factorized_phm_W", "shared_w_phm": "shared_W_phm"}
# Names that stand for a configuration in old files.
_PFEIFFER = {"original_ln_before": True}
_HOULSBY = {"mh_adapter": True, "non_linearity": "swish"}
NAMED: dict[str, dict[str, Any]] = {
    "pfeiffer": _PFEIFFER,
    "seq_bn": _PFEIFFER,
    "houlsby": _HOULSBY,
    "double_seq_bn": _HOULSBY,
    "par_bn": {"is_parallel": True, "reduction_factor": 2, "scaling": 4.0},
    "parallel": {"is_parallel": True, "reduction_factor": 2, "scaling": 4.0},
}
OLD_ACTIVATIONS = {"gelu": "gelu_new"}  # of files without a version


@dataclass(frozen=True)
class Settings:
    """One configuration of a union, or the only one.

    Args:
        folder: for messages.
        kind: one of :data:`DEFAULTS`.
        values: of all its fields.
    """

    folder: Path
    kind: str
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def refuse(self, name: str, why: str) -> ValueError:
        """The error for a field whose value has no counterpart here."""
        return ValueError(f"{self.folder} has {name}={self[name]!r}: {why}")


def read_settings(folder: Path, whole: Mapping[str, Any]) -> list[Settings]:
    """The configurations in an ``adapter_config.json``: those of a union, or one.

    A warning names the fields that are not known, and those that only matter in training and that
    are not applied here.

    Raises:
        ValueError: a kind of adapter that does not exist here, or a damaged configuration.
    """
    config = whole["config"]
    if isinstance(config, str):
        if config not in NAMED:
            raise unknown(f"configuration in {folder}", config, NAMED)
        config = NAMED[config]
    if not isinstance(config, Mapping):
        raise not_a_configuration(folder, f"config={config!r}")
    parts = config["configs"] if config.get("architecture") == "union" else [config]
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        raise ValueError(f"{folder} has configs={parts!r}, expected a list of mappings")
    found = [_settings(folder, whole, part) for part in parts]
    if not found:
        raise ValueError(f"{folder} has a union of no configurations")
    return found


def _settings(folder: Path, whole: Mapping[str, Any], config: Mapping[str, Any]) -> Settings:
    kind = config.get("architecture") or "bottleneck"
    if kind in OTHERS:
        raise ValueError(
            f"{folder} has {OTHERS[kind]} (architecture={kind!r}), which have no counterpart here: "
            f"what can be loaded is {', '.join(DEFAULTS)} and unions of them"
        )
    if kind not in DEFAULTS:
        raise unknown(f"architecture in {folder}", kind, DEFAULTS)
    defaults = DEFAULTS[kind]
    given = {_lower(str(name)): value for name, value in config.items()}
    strange = sorted(given.keys() - defaults.keys() - INERT)
    if strange:
        warnings.warn(
            f"{folder} has fields that are not known ({', '.join(strange)}): they are ignored. If "
            "they change what the adapter computes, it computes something else here",
            stacklevel=5,
        )
    values = {**defaults, **{name: given[name] for name in given.keys() & defaults.keys()}}
    values["leave_out"] = left_out = values.get("leave_out") or []
    if not isinstance(left_out, list) or not all(isinstance(block, int) for block in left_out):
        raise ValueError(f"{folder} has leave_out={left_out!r}, expected a list of block numbers")
    if "version" not in whole and "non_linearity" in values:
        activation = values["non_linearity"]
        values["non_linearity"] = OLD_ACTIVATIONS.get(activation, activation)
    inverse = given.get("invertible_adapter")
    if inverse and whole.get("type") != "text_task":  # those of old task adapters were never used
        values["inv_adapter"] = inverse
    if whole.get("type") == "text_task":
        values["inv_adapter"] = None
    if _scaled_wrongly(whole, kind):
        values["alpha"] = values["r"]
    return Settings(folder, kind, values)


def _lower(name: str) -> str:
    """Old files write some names with capitals."""
    return CASED.get(name.lower(), name.lower())


def _scaled_wrongly(whole: Mapping[str, Any], kind: str) -> bool:
    """Whether a LoRA was trained by a version before 1.1, which ignored ``alpha``."""
    match = re.match(r"adapters\.(\d+)\.(\d+)", str(whole.get("version", "")))
    config = whole["config"]
    single = isinstance(config, Mapping) and config.get("architecture") == kind
    return bool(
        match and single and "r" in DEFAULTS[kind] and (int(match[1]), int(match[2])) < (1, 1)
    )


def warn_of_training(settings: Settings, applied: tuple[str, ...] = ()) -> None:
    """Name the settings that matter in training only and that are not applied here."""
    lost = [n for n in IN_TRAINING if n not in applied and settings.values.get(n)]
    if lost:
        warnings.warn(
            f"{settings.folder} has {', '.join(f'{n}={settings[n]}' for n in lost)}, which is not "
            "applied here: outputs are equal, further training is not",
            stacklevel=5,
        )
