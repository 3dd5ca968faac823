"""``load_adapterhub``: adapters of AdapterHub's ``adapters`` library."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_pelt.anatomy import Anatomy, examine
from lightning_pelt.attach.attach import attach, find_model
from lightning_pelt.attach.attachment import ATTACHMENT, Attachment
from lightning_pelt.exchange.adapterhub.bottleneck import bottleneck_pieces
from lightning_pelt.exchange.adapterhub.families import family_of
from lightning_pelt.exchange.adapterhub.family import Family
from lightning_pelt.exchange.adapterhub.heads import read_head
from lightning_pelt.exchange.adapterhub.ia3 import ia3_pieces
from lightning_pelt.exchange.adapterhub.kronecker import compacter_pieces
from lightning_pelt.exchange.adapterhub.lora import lora_pieces
from lightning_pelt.exchange.adapterhub.pieces import Assignment, Piece, assignments, plan_of
from lightning_pelt.exchange.adapterhub.prefix import prefix_pieces
from lightning_pelt.exchange.adapterhub.prompt import prompt_pieces
from lightning_pelt.exchange.adapterhub.settings import Settings, read_settings
from lightning_pelt.exchange.adapterhub.tensors import HubTensors
from lightning_pelt.utils.adapterhub_format import HUB_CONFIG, read_hub_config, read_hub_tensors
from lightning_pelt.utils.formats import ADAPTERHUB, expect_format


def load_adapterhub(model: nn.Module, folder: str | Path) -> Attachment:
    """Attach an adapter of AdapterHub's ``adapters`` library and load its weights.

    Bottleneck adapters (``seq_bn``, ``double_seq_bn``, ``par_bn``), Compacter(++), LoRA, (IA)3,
    prefixes, prompts, and unions of them such as UniPELT and MAM become a plan that computes the
    same, with :class:`HubPrompt` and, on T5, :class:`HubPrefix` where the library places tokens
    otherwise. Outputs were compared with those of adapters 1.3.0, to 1e-5, on the families of
    :data:`~lightning_pelt.exchange.adapterhub.families.FAMILIES`. What no plan computes is refused
    by name.

    A head in the folder is loaded too if the model has the same one. A warning says if it has not,
    if fields of the configuration are not known, if the base has another name than that of the
    adapter, or if AdapterHub's default attention hides the prefix or prompt of the family, which is
    visible here.

    Args:
        model: the base that the adapter was trained on, or a module that holds it. It may carry an
            equal plan already.
        folder: of ``save_adapter``: ``adapter_config.json`` and ``adapter.safetensors`` or
            ``pytorch_adapter.bin``.

    Raises:
        FileNotFoundError: there is no such folder, or it has no weights.
        ValueError: the folder has another format, which the message names; a setting or a family
            that is not supported; tensors are missing, left over, damaged or of another shape; or
            the base is another one. The model is then as it was.

    Example::

        model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased")
        attachment = load_adapterhub(model, "runs/sentiment_adapter")
        save_adapters(model, "runs/sentiment")  # from now on without AdapterHub
    """
    path = expect_format(folder, ADAPTERHUB)
    if not (path / HUB_CONFIG).is_file():
        raise FileNotFoundError(
            f"{path} has no {HUB_CONFIG}: expected a folder of save_adapter(folder, name)"
        )
    whole = read_hub_config(path / HUB_CONFIG)
    settings = read_settings(path, whole)
    base = find_model(model)
    before: Attachment | None = base.__dict__.get(ATTACHMENT)
    anatomy = examine(base) if before is None else before.anatomy
    family = _same_base(path, whole, anatomy, str(getattr(base.config, "_name_or_path", "")))
    tensors = HubTensors(path, read_hub_tensors(path), family, anatomy)
    pieces = _pieces(settings, anatomy, family)
    attachment = attach(model, plan_of(pieces))
    try:
        found = assignments(pieces, attachment, tensors)
        tensors.refuse_rest()
        found += read_head(path, base, family)
        _refuse_misfit(path, found)
    except BaseException:
        if before is None:
            attachment.detach()
        raise
    with torch.no_grad():
        for target, source, _ in found:
            target.copy_(source)
    return attachment


def _same_base(path: Path, whole: Mapping[str, Any], anatomy: Anatomy, name: str) -> Family:
    """The family of a model that can be the base of the adapter.

    Raises:
        ValueError: the model is of another family or width, or of one that was not compared.
    """
    there = {"model_type": whole.get("model_type"), "hidden_size": whole.get("hidden_size")}
    here = {"model_type": anatomy.model_type, "hidden_size": anatomy.width}
    differing = [
        f"{key} {value!r} there, {here[key]!r} here"
        for key, value in there.items()
        if value is not None and value != here[key]
    ]
    if differing:
        raise ValueError(
            f"{path} was trained on another base ({whole.get('model_name')}): "
            f"{'; '.join(differing)}. Load the model that it was trained on"
        )
    trained = str(whole.get("model_name") or "")
    if trained and name and Path(trained).name != Path(name).name:
        warnings.warn(
            f"{path} was trained on {trained!r}, and the model is {name!r}: with other weights of "
            "the base the adapter computes something else",
            stacklevel=3,
        )
    return family_of(anatomy.model_type)


def _pieces(settings: Sequence[Settings], anatomy: Anatomy, family: Family) -> list[Piece]:
    pieces: list[Piece] = []
    names: set[str] = set()
    for each in settings:
        pieces += _pieces_of(each, anatomy, family, names)
    return pieces


def _pieces_of(
    settings: Settings, anatomy: Anatomy, family: Family, names: set[str]
) -> list[Piece]:
    """The pieces of one configuration, under a name that no other one of the union has."""

    def name(wanted: str) -> str:
        found = wanted if wanted not in names else f"{wanted}_{len(names)}"
        names.add(found)
        return found

    values = settings.values
    for field in family.eager:
        if field in values:
            _warn_of_masks(settings, field, anatomy)
    if "prompt_length" in values:
        return prompt_pieces(settings, anatomy, name("hub_prompt"), family)
    if "prefix_length" in values:
        return prefix_pieces(settings, anatomy, name("prefix"), family)
    if "phm_layer" in values:
        if values["phm_layer"]:
            return compacter_pieces(settings, anatomy, name("compacter"))
        return bottleneck_pieces(settings, anatomy, name("adapter"))
    if values["composition_mode"] == "scale":
        return ia3_pieces(settings, anatomy, name("ia3"), family)
    return lora_pieces(settings, anatomy, name("lora"), family)


def _warn_of_masks(settings: Settings, field: str, anatomy: Anatomy) -> None:
    warnings.warn(
        f"{settings.folder} has {field}={settings[field]} for {anatomy.model_type}. Under SDPA, "
        "its default, adapters 1.3 masks these tokens out, for all words or for those of some "
        "rows, so that the adapter was trained otherwise unless attn_implementation='eager' was "
        "set. Here they are visible, as with 'eager'",
        stacklevel=5,
    )


def _refuse_misfit(path: Path, found: Sequence[Assignment]) -> None:
    for target, source, name in found:
        if target.shape != source.shape:
            raise ValueError(
                f"{path}: {name} is {tuple(source.shape)} there and {tuple(target.shape)} here: "
                "the base, or the number of labels of the head, differs"
            )
