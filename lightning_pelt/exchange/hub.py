"""Adapters on the Hugging Face hub: ``push_to_hub`` and ``from_hub``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lightning_pelt.attach import Attachment, find_model, load_adapters, save_adapters
from lightning_pelt.attach.beside import one_attachment
from lightning_pelt.attach.uploads import register_upload
from lightning_pelt.exchange.card_text import PICTURE
from lightning_pelt.exchange.gate_picture import draw_gates
from lightning_pelt.exchange.hub_download import download
from lightning_pelt.exchange.hub_upload import Upload
from lightning_pelt.utils.adapter_format import CONFIG, TENSORS


def push_to_hub(
    model: nn.Module,
    repo: str,
    *,
    metrics: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    picture: Any = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload adapters",
    token: str | bool | None = None,
    create_pr: bool = False,
    replace_card: bool = False,
) -> str:
    """Upload the adapters of an attached model, with a model card, as one commit.

    The repository is created if it does not exist. A model card that is there keeps its metadata
    and its text; only the section that this function has generated is replaced. Under several
    processes, call it in one of them.

    Args:
        model: an attached model, or a module that holds one.
        repo: ``"name/repository"``.
        metrics: numbers for the card, such as ``{"accuracy": 0.91}``.
        dataset: on which they were measured, such as ``"nyu-mll/glue"``.
        picture: of the gates for the card. By default their means in the last batch that the model
            has seen are drawn; False gives a table of them instead. Or a PNG file, or a figure of
            matplotlib, such as that of ``lightning_pelt.reports.figures.gate_heatmap``.
        tokenizer: uploaded too; needed if it is not that of the base, for example because it has
            new tokens.
        private: whether a new repository is private.
        revision: branch to upload to; created if it does not exist.
        message: of the commit.
        token: of the hub, by default that of ``hf auth login`` or ``HF_TOKEN``.
        create_pr: open a pull request instead of committing to the branch.
        replace_card: replace the generated section of the card although somebody has edited it.

    Returns:
        The URL of the repository, of the branch, or of the pull request.

    Raises:
        ValueError: nothing is attached, a metric is no finite number, the repository holds a model
            in another format, or somebody has edited the generated section of the card.
        PermissionError: the token is absent or not valid, or may not write there.
        OSError: the hub is switched off or cannot be reached, or the repository has changed
            meanwhile. No file of the repository has then changed.

    Example::

        push_to_hub(model, "me/my-adapters", metrics={"accuracy": 0.91}, private=True)
    """
    with TemporaryDirectory() as name:
        folder = save_adapters(model, name)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        draw_gates(one_attachment(model), picture, folder / PICTURE)
        upload = Upload(model, folder, repo, token=token, revision=revision)
        card = {"metrics": metrics, "dataset": dataset, "replace": replace_card}
        return upload.send(card, message=message, private=private, create_pr=create_pr)


def from_hub(
    model: nn.Module,
    repo: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    strict: bool = False,
    path: str | None = None,
    example_inputs: dict[str, Tensor] | None = None,
) -> Attachment:
    """Attach adapters of the hub to a model, as ``load_adapters`` does those of a folder.

    Args:
        model: the base that they were trained on, or a module that holds it.
        repo: ``"name/repository"`` of :func:`push_to_hub`.
        revision: branch, tag or commit.
        token: of the hub.
        strict: raise where other weights of the base would give a warning.
        path: of the model inside ``model``, if there are several, as in ``attach``.
        example_inputs: of the model, as in ``attach``.

    Raises:
        OSError: there is no such repository or revision, it holds no adapters, or the hub cannot
            be reached and the cache has no copy.
        ValueError: as ``load_adapters``. The model is then as it was.

    Example::

        from_hub(model, "me/my-adapters", revision="v1")
    """
    find_model(model, path)
    folder = download(repo, revision=revision, token=token)
    return load_adapters(model, folder, strict=strict, path=path, example_inputs=example_inputs)


@register_upload
def push_saved(model: nn.Module, folder: Path, options: Mapping[str, Any]) -> str:
    """What ``push_to_hub`` of a model does, and ``save_pretrained(folder, push_to_hub=True)``.

    Args:
        model: whose method was called.
        folder: of ``save_adapters``.
        options: of that method, with ``repo_id``.
    """
    with TemporaryDirectory() as name:
        for file in (TENSORS, CONFIG):
            shutil.copyfile(folder / file, Path(name) / file)
        draw_gates(one_attachment(model), True, Path(name) / PICTURE)
        token, revision = options.get("token"), options.get("revision")
        upload = Upload(model, Path(name), options["repo_id"], token=token, revision=revision)
        return upload.send(
            {},
            message=options.get("commit_message") or "Upload adapters",
            private=options.get("private"),
            create_pr=bool(options.get("create_pr")),
        )
