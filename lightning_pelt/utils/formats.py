"""Which library wrote a folder: this one, PEFT, AdapterHub or transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_pelt.utils.adapter_format import CONFIG, TENSORS

PEFT_TENSORS = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTERHUB_TENSORS = (
    *("adapter.safetensors", "pytorch_adapter.bin"),
    *("model_head.safetensors", "pytorch_model_head.bin"),
    *("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin"),
    *("prompt_tuning.safetensors", "pytorch_prompt_tuning.bin"),
    *("reft.safetensors", "pytorch_reft.bin"),
)
ADAPTERHUB_CONFIGS = ("head_config.json", "adapter_fusion_config.json", "adapter_setup.json")
WHOLE_MODEL = (
    *("model.safetensors", "pytorch_model.bin"),
    *("model.safetensors.index.json", "pytorch_model.bin.index.json"),
)
SHARDED = "meta.pt"  # in a Lightning checkpoint that is a folder


@dataclass(frozen=True)
class Format:
    """A format of folders.

    Args:
        name: short name.
        what: what such a folder is, for messages.
        loader: the call that opens it.
    """

    name: str
    what: str
    loader: str


OURS = Format("lightning_pelt", "adapters of save_adapters", "load_adapters(model, folder)")
PEFT = Format("peft", "an adapter in PEFT's format", "load_peft(model, folder)")
ADAPTERHUB = Format(
    "adapterhub", "an adapter in AdapterHub's format", "load_adapterhub(model, folder)"
)
TRANSFORMERS = Format(
    "transformers", "a whole model of transformers", "from_pretrained(folder) of its class"
)
CHECKPOINT = Format(
    "checkpoint", "a checkpoint of a run", "PELTModule.load_from_checkpoint(folder)"
)
FORMATS = (OURS, PEFT, ADAPTERHUB, TRANSFORMERS, CHECKPOINT)


def format_of(folder: str | Path) -> Format | None:
    """The format of a folder; None if it has none of the known ones, or does not exist.

    The names of the files decide, then the keys of ``adapter_config.json``, which PEFT, AdapterHub
    and this library write under the same name.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_pelt import LoRA, Plan, attach, save_adapters
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> _ = attach(model, Plan.uniform(LoRA(r=2)))
        >>> with TemporaryDirectory() as folder:
        ...     format_of(save_adapters(model, folder)).name
        'lightning_pelt'
    """
    folder = Path(folder)
    tests: tuple[tuple[Format, Callable[[], bool]], ...] = (
        (OURS, lambda: _has(folder, [TENSORS])),
        (PEFT, lambda: _has(folder, PEFT_TENSORS)),
        (ADAPTERHUB, lambda: _has(folder, (*ADAPTERHUB_TENSORS, *ADAPTERHUB_CONFIGS))),
        (PEFT, lambda: "peft_type" in _config(folder)),
        (OURS, lambda: {"format", "plan"} <= _config(folder).keys()),
        (ADAPTERHUB, lambda: {"config", "model_type"} <= _config(folder).keys()),
        (TRANSFORMERS, lambda: _has(folder, WHOLE_MODEL)),
        (TRANSFORMERS, lambda: _has(folder, ["config.json"])),
        (CHECKPOINT, lambda: _has(folder, [SHARDED])),
    )
    return next((found for found, holds in tests if holds()), None)


def expect_format(folder: str | Path, wanted: Format) -> Path:
    """Raise unless ``folder`` has the format ``wanted``.

    Args:
        folder: of the files.
        wanted: one of :data:`FORMATS`.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: there is no such folder, or it holds none of the known formats. The
            message names a folder below it that does.
        ValueError: it has another format, which the message names with its loader; or it is a file.

    Example:
        >>> expect_format("nowhere", PEFT)
        Traceback (most recent call last):
        FileNotFoundError: there is no folder nowhere: load_peft(model, folder) takes a folder ...
    """
    path = Path(folder)
    if path.is_file():
        raise ValueError(f"{path} is a file: give the folder that holds it, {path.parent}")
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no folder {path}: {wanted.loader} takes a folder on this machine. Download "
            "one of the hub with huggingface_hub.snapshot_download(repo_id)"
        )
    found = format_of(path)
    if found is None:
        raise FileNotFoundError(f"{path} is not {wanted.what}{_instead(path, wanted)}")
    if found != wanted:
        raise ValueError(f"{path} is {found.what}, not {wanted.what}: load it with {found.loader}")
    return path


def _instead(folder: Path, wanted: Format) -> str:
    """What the folder holds instead, for a message."""
    below = sorted(each for each in folder.iterdir() if each.is_dir())
    known = [each for each in below if format_of(each) == wanted]
    if known:
        return f": it holds such folders, load one of them, such as {known[0]}"
    files = sorted(each.name for each in folder.iterdir())
    if not files:
        return ": it is empty"
    more = ", ..." if len(files) > 5 else ""
    return f", and no other format that is known: it holds {', '.join(files[:5])}{more}"


def _has(folder: Path, names: Iterable[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def _config(folder: Path) -> Mapping[str, Any]:
    """``adapter_config.json``; empty if it is absent or damaged."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
