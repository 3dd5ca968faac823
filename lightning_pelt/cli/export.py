"""``lightning-pelt export``: what a run has trained, in the format of another library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lightning_pelt.cli.checkpoint_files import SHARDED, read_checkpoint
from lightning_pelt.cli.errors import one_line_errors
from lightning_pelt.cli.overview import OTHERS
from lightning_pelt.cli.parser import SuggestingParser
from lightning_pelt.exchange.loading import load_pelt
from lightning_pelt.exchange.peft import save_peft
from lightning_pelt.training.module import PELTModule
from lightning_pelt.utils.formats import CHECKPOINT, OURS, expect_format, format_of

PROG = "lightning-pelt export"
WRITERS: dict[str, Callable[[nn.Module, str | Path], Path]] = {"peft": save_peft}
READ_BY = {"peft": "PeftModel.from_pretrained(base, folder) of PEFT, vLLM and SGLang read it"}


def main(args: Sequence[str]) -> None:
    """Run the command; print what the user can correct in a line and exit with status 2.

    Args:
        args: the options.
    """
    parser = SuggestingParser(prog=PROG, description=OTHERS["export"])
    parser.add_function_arguments(export)
    with one_line_errors(PROG):
        export(**parser.parse_args(args).as_dict())


def export(
    checkpoint: str, format: Literal["peft"], output: str, backbone: str | None = None
) -> None:
    """Write the adapters, and the head, of a run or of a folder in another format.

    Args:
        checkpoint: Checkpoint of a run (.ckpt), or folder of save_adapters.
        format: Format of the output; peft writes LoRA and IA3 without learned gates.
        output: Folder that is written. It is created if it does not exist.
        backbone: Hub id or folder of the base, if the one that the checkpoint names has moved.

    Raises:
        FileNotFoundError: there is no such checkpoint or folder.
        ValueError: it is neither, or the format cannot hold the plan.
    """
    model = _open(Path(checkpoint), backbone)
    written = WRITERS[format](model, output)
    print(f"{format} adapter written to {written}: {READ_BY[format]}")


def _open(path: Path, backbone: str | None) -> nn.Module:
    """The attached model of a checkpoint or of a folder, on the CPU."""
    if path.is_dir() and format_of(path) != CHECKPOINT:
        return load_pelt(expect_format(path, OURS), backbone=backbone).model
    if path.is_dir():
        raise ValueError(
            f"{path} is a checkpoint of several shards ({SHARDED}): turn it into a file with "
            "`python -m lightning.pytorch.utilities.consolidate_checkpoint`"
        )
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}: --checkpoint takes the .ckpt file of a run, or a folder of "
            "save_adapters"
        )
    read_checkpoint(str(path), option="--checkpoint")  # whose errors are those of other commands
    options: dict[str, Any] = {} if backbone is None else {"backbone": backbone}
    module = PELTModule.load_from_checkpoint(path, map_location="cpu", weights_only=True, **options)
    assert module.model is not None
    return module.model
