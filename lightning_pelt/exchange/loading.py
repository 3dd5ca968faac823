"""``load_pelt``: base, head, labels, tokenizer and adapters in one line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_pelt.anatomy.positions import position_limit
from lightning_pelt.attach import Attachment, fingerprint, load_adapters
from lightning_pelt.attach.beside import BESIDE
from lightning_pelt.exchange.bases import load_base
from lightning_pelt.exchange.hub_download import download, looks_like_a_folder
from lightning_pelt.exchange.parts import Parts
from lightning_pelt.exchange.pipelines import kind_of
from lightning_pelt.exchange.predictor import Predictor
from lightning_pelt.utils.adapter_format import TENSORS, read_description
from lightning_pelt.utils.formats import OURS, expect_format
from lightning_pelt.utils.model_class import class_name

# Entries of the file by their types, beside those that attach.fingerprint checks.
KINDS: dict[str, tuple[type, ...]] = {
    **fingerprint.KINDS,
    "class": (str,),
    "dtype": (str,),
    "settings": (dict,),
}


def load_pelt(
    source: str | Path,
    *,
    backbone: str | None = None,
    model_class: Any = None,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    processor: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    strict: bool = False,
    example_inputs: dict[str, Tensor] | None = None,
    **options: Any,
) -> Predictor:
    """Load all that predicts: the base that the file names, and the adapters on it.

    The base is the one that was trained: its name, revision and dtype, the class of the model, the
    labels, and entries of the configuration that ``from_pretrained`` was given are in the file. If
    the weights that are found are not those that were trained, a warning says so.

    Args:
        source: folder of ``save_adapters``, or repository of ``push_to_hub`` on the hub.
        backbone: hub id or folder of the base, if the one that the file names is not at hand.
        model_class: of the model, or its name in transformers, for files that do not name it.
        tokenizer: or its hub id or folder. By default that of the folder, if it has one, or of the
            base.
        processor: of images or sounds, by default that of the folder or of the base.
        revision: branch, tag or commit of the repository.
        token: of the hub.
        strict: raise where other weights of the base would give a warning.
        example_inputs: keyword arguments of the model, as in ``attach``, for models that need other
            inputs than a few words, an image or a short sound.
        options: of ``from_pretrained`` of the base, such as ``dtype`` or ``device_map``.

    Returns:
        An object to call with texts, which also has ``model``, ``tokenizer``, ``labels`` and
        ``attachment``.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no adapters.
        OSError: the hub cannot be reached, or the base cannot be found or read.
        ValueError: the file is damaged or of another format, does not name base or class, or holds
            tensors of the user's own module; or the base differs from the one that was trained.

    Example::

        predictor = load_pelt("my_adapters")  # or load_pelt("me/my-adapters")
        predictor("an email with one attachment")  # [{"label": "email", "score": 0.98}]
    """
    _refuse_checkpoint(source)
    folder = _folder(source, revision=revision, token=token)
    saved = _description(folder / TENSORS)
    if token is not None:
        options.setdefault("token", token)
    model, added = load_base(saved, backbone=backbone, model_class=model_class, options=options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*rows of new tokens")  # the file holds them
        attachment = load_adapters(model, folder, strict=strict, example_inputs=example_inputs)
    model.eval()
    parts = Parts(folder, saved, backbone, options)
    kind = kind_of(class_name(model))
    if kind is None or kind.reads == "text":
        found = parts.tokenizer(tokenizer)
        _fit(found, attachment, added)
        return Predictor(model, attachment, saved.get("labels"), found)
    processor = parts.processor(kind.reads, processor)
    words = parts.tokenizer(tokenizer) if kind.writes else None
    return Predictor(model, attachment, saved.get("labels"), words, processor)


def _refuse_checkpoint(source: str | Path) -> None:
    path = Path(source)
    if path.is_file() and path.suffix == ".ckpt":
        raise ValueError(
            f"{path} is a checkpoint of a run, and holds more than adapters: load it with your "
            "module, module = YourModule.load_from_checkpoint(path) (PELTModule, if it is from "
            "`lightning-pelt fit`), then save_adapters(module, folder) and load_pelt(folder)"
        )


def _folder(source: str | Path, *, revision: str | None, token: str | bool | None) -> Path:
    """The folder on this machine."""
    if isinstance(source, Path) or looks_like_a_folder(source):
        return expect_format(Path(source).expanduser(), OURS)
    try:
        return download(source, revision=revision, token=token)
    except HFValidationError as error:
        raise FileNotFoundError(
            f"there is no folder {source!r}, and it is no name of a repository: {error}"
        ) from error
    except OSError as error:
        raise type(error)(f"there is no folder {source!r} on this machine, and {error}") from error


def _description(path: Path) -> dict[str, Any]:
    """What the file says of the base.

    Raises:
        ValueError: it cannot be loaded without the module that was trained.
    """
    config, names = read_description(path)
    if beside := [name.removeprefix(BESIDE) for name in names if name.startswith(BESIDE)]:
        raise ValueError(
            f"{path} holds {beside[0]} and {len(beside) - 1} more tensors of the module around the "
            "Hugging Face model, and only the class of that module knows what they compute: build "
            "it, and call load_adapters(module, folder)"
        )
    saved = config["backbone"]
    for name, kinds in KINDS.items():
        if not isinstance(saved.get(name), (*kinds, type(None))):
            raise ValueError(
                f"{path}: the backbone has {name}={saved[name]!r}, expected {kinds[0].__name__}"
            )
    return dict(saved)


def _fit(tokenizer: PreTrainedTokenizerBase | None, attachment: Attachment, added: int) -> None:
    """Let the tokenizer cut texts where the positions of the model end.

    A warning says if it does not know the ``added`` tokens of the model.
    """
    if tokenizer is None:
        return
    words: Any = attachment.model.get_input_embeddings()
    rows = len(words.weight)
    if added and len(tokenizer) <= rows - added:
        warnings.warn(
            f"the model was trained with {added} new tokens, which {tokenizer.name_or_path} does "
            "not know: save the tokenizer that was used into the folder of the adapters, "
            "tokenizer.save_pretrained(folder), or give load_pelt(folder, tokenizer=...)",
            stacklevel=3,
        )
    limit = position_limit(attachment.model)
    if limit is not None:
        most = limit - sum(method.positions for method in attachment.plan.methods)
        tokenizer.model_max_length = min(tokenizer.model_max_length, most)
