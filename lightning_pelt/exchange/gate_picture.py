"""The picture of the gates beside a model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning_pelt.attach import Attachment

PNG = b"\x89PNG\r\n\x1a\n"


def gate_means(attachment: Attachment) -> dict[str, float]:
    """The mean of each gate in the last batch that the model has seen, by name.

    A gate that is not learned has its value without a batch; others that have seen none are left
    out.

    Example:
        >>> from lightning_pelt import Gate, LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> plan = Plan.uniform(LoRA(gate=Gate(learned=False, shared=True)))
        >>> gate_means(attach(tiny_bert(), plan))
        {'00/lora': 1.0, '01/lora': 1.0}
    """
    means = {}
    for name, view in attachment.gates.items():
        if view.value is not None:
            means[name] = float(view.value.mean())
        elif not view.layer.gate.learned:
            means[name] = view.open
    return means


def draw_gates(attachment: Attachment, picture: Any, path: Path) -> None:
    """Write a PNG file: of the gates, or one that is given. Without gates there is none.

    Args:
        attachment: of the model.
        picture: True for the gates, False or None for no picture; or a PNG file, or a figure of
            matplotlib.
        path: of the file that is written.

    Raises:
        ValueError: ``picture`` is none of these.
    """
    if picture is True:
        picture = _heat_map(gate_means(attachment))
    if picture is None or picture is False:
        return
    if hasattr(picture, "savefig"):
        picture.savefig(path, format="png", dpi=150)
        return
    if not isinstance(picture, (str, Path)):
        raise ValueError(
            f"picture is {picture!r}, expected True, False, a PNG file or a figure of matplotlib"
        )
    with Path(picture).open("rb") as file:
        if file.read(len(PNG)) != PNG:
            raise ValueError(f"the picture {picture} is no PNG file: save it as .png")
    shutil.copyfile(picture, path)


def _heat_map(means: dict[str, float]) -> Any:
    """A figure; None if there is nothing to draw, or matplotlib cannot be imported."""
    if not means:
        return None
    try:
        from lightning_pelt.reports.figures import gate_heatmap
    except ImportError:
        return None
    return gate_heatmap(means, "Mean gate in the last batch")
