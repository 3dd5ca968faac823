"""Adapters from files: ``load_adapters``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_pelt.attach.attach import attach, find_model
from lightning_pelt.attach.attachment import ATTACHMENT, Attachment
from lightning_pelt.attach.beside import check_beside, load_beside, split
from lightning_pelt.attach.fingerprint import differences, only_tokens_differ
from lightning_pelt.attach.saving import describe
from lightning_pelt.attach.state_dict_hooks import check
from lightning_pelt.plans.plan import from_config
from lightning_pelt.utils.adapter_format import TENSORS, read_adapters, refuse_damage
from lightning_pelt.utils.files import naming_file
from lightning_pelt.utils.formats import OURS, expect_format


def load_adapters(
    model: nn.Module,
    folder: str | Path,
    *,
    strict: bool = False,
    path: str | None = None,
    example_inputs: dict[str, Tensor] | None = None,
) -> Attachment:
    """Attach what ``save_adapters`` wrote and load its weights.

    If the weights of the backbone are not those that the adapters were trained on, or it computes
    something else, such as another activation, a warning names the differences.

    Args:
        model: the backbone that the adapters were trained on, with a head of the same shape; or a
            module that holds it. It may carry an equal plan already.
        folder: of the two files.
        strict: raise where the backbone would give a warning.
        path: of the model inside ``model``, if there are several, as in ``attach``.
        example_inputs: keyword arguments of the model, such as a small batch, for models that need
            other inputs than a few words, an image or a short sound, as in ``attach``.

    Raises:
        FileNotFoundError: there is no ``adapters.safetensors``.
        ValueError: the folder has another library's format, which the message names; the file is
            truncated or damaged, or contains tensors of the frozen base, of other dtypes or
            shapes, or with NaN; ``adapter_config.json`` differs from it; the architecture of the
            backbone differs; or another plan is attached to the model. The model is then as it
            was.
    """
    file = expect_format(folder, OURS) / TENSORS
    config, tensors = read_adapters(file)
    inner, beside = split(tensors)
    before = find_model(model, path).__dict__.get(ATTACHMENT)
    with naming_file(file):
        plan = from_config(config["plan"])
        attachment = attach(model, plan, path=path, example_inputs=example_inputs)
        try:
            _compare_backbones(file, config["backbone"], describe(attachment), strict=strict)
            try:
                refuse_damage(file, config, tensors)
            except ValueError:
                # More precise, if the damage is a tensor that does not belong here.
                check(attachment.model, dict(inner), "", {})
                raise
            check_beside(model, beside)
            attachment.model.load_state_dict(inner, strict=False)
            load_beside(model, beside)
        except BaseException:
            if before is None:
                attachment.detach()
            raise
    return attachment


ARCHITECTURE = ("model_type", "width", "blocks", "parameters")


def _compare_backbones(
    path: Path, saved: dict[str, Any], here: dict[str, Any], *, strict: bool
) -> None:
    """Compare the backbone that was trained with this one.

    Raises:
        ValueError: they differ in their architecture or labels; with ``strict``, also in what the
            configurations say about the computation, or in weights.
    """
    name = f" {saved['name']!r}" if saved.get("name") else ""
    keys = [*ARCHITECTURE, *(["labels"] if saved.get("labels") else [])]
    if only_tokens_differ(saved, here):
        keys.remove("parameters")  # rows of tokens may be added; their tensors are compared
    differing = [
        f"{k} {saved.get(k)!r} there, {here[k]!r} here" for k in keys if saved.get(k) != here[k]
    ]
    if differing:
        raise ValueError(
            f"it was trained on another backbone or head{name}: {'; '.join(differing)}. Load the "
            "model that it was trained on, with the same labels."
        )
    if other := differences(saved, here):
        message = (
            f"it was trained on another backbone{name} than {here['name'] or 'this one'}: "
            f"{'; '.join(other)}. The adapters compute something else here; load the backbone that "
            "they were trained on"
        )
        if strict:
            raise ValueError(message)
        warnings.warn(f"{path}: {message}", stacklevel=3)
