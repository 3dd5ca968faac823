"""Adapters for PEFT: ``save_peft``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightning_pelt.attach.attachment import Attachment
from lightning_pelt.attach.beside import one_attachment, trained_beside
from lightning_pelt.exchange.peft.config import CONFIG, VERSION
from lightning_pelt.exchange.peft.gates import refuse_learned_gates
from lightning_pelt.exchange.peft.ia3 import feedforward_names, vectors_of
from lightning_pelt.exchange.peft.lora import fields_of, names_of, pairs_of
from lightning_pelt.exchange.peft.miss import matrices_of
from lightning_pelt.exchange.peft.names import PREFIX, modules_of_base, name_exactly
from lightning_pelt.exchange.peft.prompts import WAY_OUT, write_prompt
from lightning_pelt.exchange.peft.renaming import refuse_names_of_experts, refuse_renamed
from lightning_pelt.exchange.peft.saved_modules import saved_modules
from lightning_pelt.exchange.peft.tensors import HEADER, TENSORS
from lightning_pelt.utils.files import write_together
from lightning_pelt.utils.formats import ADAPTERHUB, OURS, format_of


def save_peft(model: nn.Module, folder: str | Path) -> Path:
    """Write an attached model in the format of PEFT 0.21.2, which PEFT, vLLM and SGLang read.

    A plan of LoRA, of IA3 or of MiSS can be written, with any groups, names and sites, and one of a
    prompt on T5, mT5, UMT5, BART and mBART. In a fused projection the LoRAs of several sites become
    one of the sum of their ranks, and a LoRA from PiSSA's start becomes an ordinary one of twice
    its rank. Constant gates (``Gate(learned=False)``) are folded in. Head and trained norms
    become ``modules_to_save``. Where ranks or scales differ from layer to layer, the file has a
    ``rank_pattern`` and an ``alpha_pattern``, which some readers other than PEFT ignore.

    Args:
        model: an attached model, or a module that holds one.
        folder: created if it does not exist.

    Raises:
        ValueError: nothing is attached, or PEFT's format cannot hold the plan exactly: it has
            learned gates, methods of several kinds or of a kind that PEFT does not have, or trains
            tensors that belong to no module; or the folder has another format. Nothing is written
            then.
        OSError: the disk is full or not writable.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_pelt import LoRA, Plan, attach
        >>> from lightning_pelt.exchange.peft import load_peft, save_peft
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> _ = attach(model, Plan.uniform(LoRA(r=2)))
        >>> with TemporaryDirectory() as folder:
        ...     again = load_peft(tiny_bert(), save_peft(model, folder))
        >>> again.counts["lora"].trained
        512
    """
    attachment = one_attachment(model)
    if beside := trained_beside(model):
        raise ValueError(
            f"{type(model).__name__} trains {len(beside)} tensors beside its Hugging Face model, "
            f"such as {sorted(beside)[0].partition('.')[2]}, and PEFT's format holds that model "
            "only: give save_peft the Hugging Face model, and save the rest yourself"
        )
    _refuse_other_format(Path(folder))
    config, tensors = encode(attachment)
    _write(Path(folder), config, tensors, plan=attachment.plan.to_config())
    return Path(folder)


def _refuse_other_format(folder: Path) -> None:
    """Raise if the folder has an ``adapter_config.json`` of another format."""
    found = format_of(folder)
    if found in (OURS, ADAPTERHUB):
        assert found is not None
        raise ValueError(
            f"{folder} holds {found.what}, and both formats have an {CONFIG}: give save_peft "
            "another folder"
        )


def encode(attachment: Attachment) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of a file, by their names in it.

    Raises:
        ValueError: as :func:`save_peft`.
    """
    methods = _methods_of_one_kind(attachment)
    refuse_learned_gates(attachment)
    modules = modules_of_base(attachment.model)
    saved = saved_modules(attachment, modules)
    kind = KINDS[methods[0]["class_path"].rpartition(".")[2]]
    fields, tensors = kind(attachment, [each["init_args"] for each in methods], modules)
    if fields["peft_type"] == "PROMPT_TUNING" and saved.tensors:
        raise ValueError(
            f"{', '.join(saved.names or ())} is trained beside the prompt, and PEFT's prompts come "
            f"alone: train the plan with norms=False. {WAY_OUT}"
        )
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": _base(attachment),
        "inference_mode": True,
        "modules_to_save": saved.names,
        "peft_version": VERSION,
        "revision": None,
        "task_type": saved.task,
        **fields,
    }
    tensors |= {PREFIX + name: tensor for name, tensor in saved.tensors.items()}
    return dict(sorted(config.items())), {name: _copy(name, t) for name, t in tensors.items()}


def _methods_of_one_kind(attachment: Attachment) -> list[dict[str, Any]]:
    """The configurations of the methods of the plan, which are all of one class."""
    plan = attachment.plan
    if plan.train_base:
        raise ValueError(
            f"{plan} trains the whole base, and PEFT's format holds adapters: detach(model) and "
            "model.save_pretrained(folder) write the model"
        )
    configs = [method.to_config() for method in plan.methods]
    kinds = list(dict.fromkeys(config["class_path"].rpartition(".")[2] for config in configs))
    if not kinds:
        raise ValueError(
            f"{plan} has no method, and PEFT's format needs one: save_adapters writes a head alone"
        )
    for name in kinds:
        if name not in KINDS:
            raise ValueError(f"{name} cannot be written in PEFT's format: {_reason(name)}")
    if len(kinds) > 1:
        raise ValueError(
            f"the plan has {' and '.join(kinds)}, and a folder in PEFT's format holds one of them: "
            "distil_lora trains a LoRA on what this model computes, or train a plan of one kind"
        )
    return configs


REASONS = {
    "Prefix": "PEFT puts its prefix into the cache, which shifts the positions of the tokens by "
    "its length; here they do not shift, so that the same keys and values give other outputs",
    "HubPrefix": "PEFT's prefix has no relative positions",
    "NewTokens": "rows of new tokens are not written in it here",
    "BitFit": "PEFT trains biases only beside a LoRA",
}


def _reason(name: str) -> str:
    reason = REASONS.get(name, "PEFT has no such method")
    return f"{reason}. {WAY_OUT}"


def _lora(
    attachment: Attachment, methods: list[dict[str, Any]], modules: list[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    pairs = pairs_of(attachment, attachment.all_submodules)
    refuse_names_of_experts(attachment.anatomy.model_type, pairs)
    fields = {
        "peft_type": "LORA",
        "target_modules": name_exactly(pairs, modules),
        "bias": "none",
        "fan_in_fan_out": _transposed(attachment, pairs),
        "init_lora_weights": True,
        "lora_dropout": _dropout(methods),
        **fields_of(pairs, methods, modules),
    }
    tensors: dict[str, Tensor] = {}
    for path, pair in pairs.items():
        names = names_of(attachment.model.get_submodule(path), f"{PREFIX}{path}")
        tensors |= {names["A"]: pair.A, names["B"]: pair.B}
    refuse_renamed(attachment.model, tensors)
    return fields, tensors


def _ia3(
    attachment: Attachment, methods: list[dict[str, Any]], modules: list[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    vectors = vectors_of(attachment, attachment.all_submodules)
    names = name_exactly(vectors, modules)
    inner = feedforward_names(vectors, names)
    if inner is None:
        names = sorted(vectors)
        inner = feedforward_names(vectors, names)
    fields = {
        "peft_type": "IA3",
        "target_modules": names,
        "feedforward_modules": inner,
        "fan_in_fan_out": _transposed(attachment, vectors),
        "init_ia3_weights": True,
    }
    return fields, {f"{PREFIX}{path}.ia3_l": vector.tensor for path, vector in vectors.items()}


def _miss(
    attachment: Attachment, methods: list[dict[str, Any]], modules: list[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    matrices = matrices_of(attachment, attachment.all_submodules)
    refuse_names_of_experts(attachment.anatomy.model_type, matrices)
    fields = {
        "peft_type": "MISS",
        "target_modules": name_exactly(matrices, modules),
        "bias": "none",
        "init_weights": True,
        "miss_dropout": _dropout(methods),
        "r": len(next(iter(matrices.values()))),
    }
    tensors = {f"{PREFIX}{path}.miss_block": matrix for path, matrix in matrices.items()}
    refuse_renamed(attachment.model, tensors)
    return fields, tensors


def _prompt(
    attachment: Attachment, methods: list[dict[str, Any]], modules: list[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return write_prompt(attachment)


KINDS = {"LoRA": _lora, "IA3": _ia3, "MiSS": _miss, "Prompt": _prompt}


def _transposed(attachment: Attachment, paths: Mapping[str, Any]) -> bool:
    return all(isinstance(attachment.model.get_submodule(path), Conv1D) for path in paths)


def _dropout(methods: list[dict[str, Any]]) -> float:
    """The dropout of all methods, or the least, with a warning: PEFT has one for all layers."""
    found = sorted({float(method["dropout"]) for method in methods})
    if len(found) > 1:
        warnings.warn(
            f"the plan has methods with dropout {' and '.join(map(str, found))}, and PEFT has one "
            f"for all layers: the file has {found[0]}. Only training on with PEFT depends on it",
            stacklevel=4,
        )
    return found[0]


def _base(attachment: Attachment) -> str | None:
    return attachment.fingerprint["name"] or None


def _copy(name: str, tensor: Tensor) -> Tensor:
    if type(tensor.detach()) not in (Tensor, nn.Parameter) or tensor.is_meta:
        raise ValueError(
            f"{name} is sharded or offloaded, so this process has no values of it: save a "
            "checkpoint, and export that with `lightning-pelt export`"
        )
    return tensor.detach().cpu().contiguous().clone()


def _write(
    folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor], *, plan: dict[str, Any]
) -> None:
    readable = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    header = {"format": "pt", HEADER: json.dumps(plan)}
    folder.mkdir(parents=True, exist_ok=True)
    write_together(
        {
            folder / TENSORS: partial(save_file, tensors, metadata=header),
            folder / CONFIG: lambda path: path.write_text(readable, encoding="utf-8"),
        }
    )
