"""The checkpoint that ``--ckpt_path`` names: finds it, also as last, best or hpc, and reads it."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_pelt.training.shard_folders import complete_replacement, complete_replacements
from lightning_pelt.utils.adapter_format import CONFIG, TENSORS

CKPT_PATH = "--ckpt_path"  # the option of fit, validate, test and predict
KEYWORDS = ("last", "best", "hpc")
HPC = re.compile(r"hpc_ckpt_\d+\.ckpt")  # what Lightning writes before SLURM ends a run
SHARDED = "meta.pt"  # in a checkpoint that is a folder: everything but the tensors
WEIGHTS_ONLY = (
    "holds weights only, so no fit can continue from it: resume from a checkpoint that was written "
    "without save_weights_only, or start without --ckpt_path"
)


def read_checkpoint(path: str, *, option: str = CKPT_PATH) -> dict[str, Any]:
    """Read a checkpoint of ``lightning-pelt fit``, without pickled objects.

    Args:
        path: of a file or of a folder of shards, or a URL.
        option: of the command line that names it, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a checkpoint, or it is damaged.
    """
    if "://" not in path:
        path = str(_checkpoint_file(Path(path), option))
    try:
        with get_filesystem(path).open(path, "rb") as file:
            mapped = "://" not in path and zipfile.is_zipfile(path)
            source = path if mapped else file
            found = torch.load(source, weights_only=True, map_location="cpu", mmap=mapped)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # torch's message about pickled objects recommends to load them
        raise ValueError(
            f"{path} is not a checkpoint of `lightning-pelt fit`, or it is damaged or truncated"
        ) from error
    return _of_this_package(path, found)


def can_resume(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a fit can continue from a checkpoint."""
    return "optimizer_states" in checkpoint or "state_dict" not in checkpoint


def _checkpoint_file(path: Path, option: str) -> Path:
    complete_replacement(path)
    if path.is_dir():
        if (path / SHARDED).is_file():
            return path / SHARDED
        if (path / TENSORS).exists() or (path / CONFIG).exists():
            raise ValueError(
                f"{path} is a folder of adapters, not a checkpoint: {option} takes the .ckpt "
                "file of a run; load_adapters(model, folder) loads adapters in Python"
            )
        raise ValueError(f"{path} is a folder, and {option} takes a .ckpt file{_near(path)}")
    if not path.exists():
        keywords = f", or one of {', '.join(KEYWORDS)}" if option == CKPT_PATH else ""
        raise FileNotFoundError(
            f"there is no checkpoint {path}: {option} takes a file{keywords}"
            f"{_near(path.parent, path.name)}"
        )
    return path


def _near(folder: Path, name: str = "") -> str:
    files = [each.name for each in _in_folder(folder)]
    close = get_close_matches(name, files, n=1, cutoff=0.5) or files[:1]
    return f". Did you mean {folder / close[0]}?" if close else ""


def _of_this_package(path: str, found: Any) -> dict[str, Any]:
    parameters = found.get("hyper_parameters") if isinstance(found, dict) else None
    kinds = {"backbone": str, "plan": dict}
    ours = isinstance(parameters, dict) and all(
        isinstance(parameters.get(name), kind) for name, kind in kinds.items()
    )
    if ours and isinstance(found.get("pytorch-lightning_version"), str):
        return found
    known = isinstance(found, dict) and "lightning_pelt" in found
    remedy = (
        ": it is of a module with a PELTCallback, load it with YourModule.load_from_checkpoint"
        if known
        else ""
    )
    raise ValueError(
        f"{path} was not written by `lightning-pelt fit`: its hyperparameters have no backbone and "
        f"no plan{remedy}"
    )


# -- last, best and hpc -----------------------------------------------------------------------


def find_checkpoint(keyword: str, trainer: Mapping[str, Any], *, resume: bool) -> str:
    """The checkpoint that ``last``, ``best`` or ``hpc`` names, in the newest run.

    A new process has another run's folder (``version_3``), where Lightning would look in vain.

    Args:
        keyword: one of ``KEYWORDS``.
        trainer: the arguments of the Trainer: loggers, callbacks and ``default_root_dir``.
        resume: whether a fit must be able to continue from it.

    Raises:
        ValueError: there is none; the message names the folders that were searched.
    """
    root = Path(trainer.get("default_root_dir") or ".").absolute()
    if keyword == "hpc":
        saved = [path for path in _in_folder(root) if HPC.fullmatch(path.name)]
        if not saved:
            _nothing(keyword, [root])
        return str(max(saved, key=lambda path: int(path.stem.removeprefix("hpc_ckpt_"))))
    folders = list(dict.fromkeys(_folders(trainer, root)))
    runs = [found for folder in _runs(folders) if (found := _in_folder(folder))]
    if not runs:
        _nothing(keyword, folders)
    newest = max(runs, key=lambda run: _age(run[0]))
    if keyword == "best":
        return str(_best(newest))
    for path in newest:
        if not resume or can_resume(read_checkpoint(str(path))):
            return str(path)
    raise ValueError(f"--ckpt_path last: {newest[0]} {WEIGHTS_ONLY}")


def _best(run: Sequence[Path]) -> Path:
    """The best checkpoint of a run: the newest records it, or there is no choice."""
    for path in run:
        states = read_checkpoint(str(path)).get("callbacks", {})
        recorded = [state.get("best_model_path") for state in states.values() if state]
        for name in filter(None, recorded):
            if (best := path.with_name(Path(name).name)).exists():  # the folder may have moved
                return best
    chosen = [path for path in run if not path.name.startswith("last")]
    if len(chosen) == 1:
        return chosen[0]
    raise ValueError(
        f"--ckpt_path best: {run[0].parent} has several checkpoints and no record of the best: "
        f"name one of {', '.join(path.name for path in run)}"
    )


def _folders(trainer: Mapping[str, Any], root: Path) -> Iterable[Path]:
    """Where ModelCheckpoint writes; ``*`` is the version of a run."""
    given = trainer.get("callbacks") or []
    callbacks = given if isinstance(given, list) else [given]
    savers = [each for each in callbacks if isinstance(each, ModelCheckpoint)]
    yield from (Path(each.dirpath) for each in savers if each.dirpath is not None)
    if savers and all(each.dirpath is not None for each in savers):
        return
    loggers = trainer.get("logger")
    if loggers is None or loggers is True:
        yield root / "lightning_logs" / "*" / "checkpoints"
    elif loggers:
        first = loggers[0] if isinstance(loggers, list) else loggers
        yield Path(first.save_dir or root).absolute() / str(first.name) / "*" / "checkpoints"
    else:
        yield root / "checkpoints"


def _runs(folders: Iterable[Path]) -> Iterable[Path]:
    for folder in folders:
        if folder.parent.name != "*":
            yield folder
        elif (parent := folder.parent.parent).is_dir():
            yield from (version / folder.name for version in parent.iterdir())


def _in_folder(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    complete_replacements(folder)
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in files if path.suffix == ".ckpt"), key=_age, reverse=True)


def _age(path: Path) -> tuple[int, bool]:
    return path.stat().st_mtime_ns, path.name.startswith("last")


def _nothing(keyword: str, folders: Sequence[Path]) -> NoReturn:
    searched = ", ".join(map(str, folders))
    raise ValueError(
        f"--ckpt_path {keyword}: there is no checkpoint in {searched}. Name its file, or start "
        "without --ckpt_path"
    )
