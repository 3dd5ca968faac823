"""Adapters on the Hugging Face hub: ``push_to_hub`` and ``from_hub``."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    is_offline_mode,
    snapshot_download,
)
from torch import nn
from transformers import PreTrainedTokenizerBase

from lightning_pelt.attach import Attachment, find_model, load_adapters, save_adapters
from lightning_pelt.attach.beside import BESIDE, one_attachment
from lightning_pelt.attach.saving import PushToHub
from lightning_pelt.exchange.hub_errors import hub_errors
from lightning_pelt.exchange.model_card import PICTURE, model_card, public_base
from lightning_pelt.utils.adapter_format import CONFIG, TENSORS, read_description
from lightning_pelt.utils.formats import (
    ADAPTERHUB_TENSORS,
    OURS,
    PEFT_TENSORS,
    WHOLE_MODEL,
    format_of,
)

CARD = "README.md"
TOKENIZER = (  # files of tokenizers and processors; none of them can hold a pickle
    *("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
    *("chat_template*", "preprocessor_config.json"),
)
OTHER_FORMATS = (*PEFT_TENSORS, *ADAPTERHUB_TENSORS, *WHOLE_MODEL)


def push_to_hub(
    model: nn.Module,
    repo: str,
    *,
    metrics: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    picture: Any = None,
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
        picture: of the gates for the card: a PNG file, or a figure of matplotlib, such as that of
            ``lightning_pelt.reports.figures.gate_heatmap``. Without one, the card has a table of
            the gates in the last batch that the model has seen.
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
        _draw(picture, folder / PICTURE)
        upload = _Upload(model, folder, repo, token=token, revision=revision)
        card = {"metrics": metrics, "dataset": dataset, "replace": replace_card}
        return upload.send(card, message=message, private=private, create_pr=create_pr)


class _Upload:
    """Sends a folder of ``save_adapters`` to a repository."""

    def __init__(
        self,
        model: nn.Module,
        folder: Path,
        repo: str,
        *,
        token: str | bool | None,
        revision: str | None,
    ) -> None:
        self.model, self.folder, self.repo, self.revision = model, folder, repo, revision
        self.api = HfApi(token=token)

    def send(
        self, card: dict[str, Any], *, message: str, private: bool | None, create_pr: bool
    ) -> str:
        """Upload everything in one commit.

        Args:
            card: arguments of :func:`model_card`.
            message, private, create_pr: see :func:`push_to_hub`.
        """
        self._write_card(card, before=None)  # raises for bad arguments before anything is created
        self._warn_of_the_base()
        with hub_errors(self.repo, revision=self.revision):
            if is_offline_mode():
                raise OSError(f"{self.repo}: the hub is switched off (HF_HUB_OFFLINE): unset it")
            self.repo = self.api.create_repo(self.repo, private=private, exist_ok=True).repo_id
            if self.revision not in (None, "main") and not create_pr:
                self.api.create_branch(self.repo, branch=str(self.revision), exist_ok=True)
            info = self.api.model_info(self.repo, revision=self.revision)
        there = {file.rfilename for file in info.siblings or []}
        self._refuse_other_format(there)
        with hub_errors(self.repo, revision=self.revision):
            before = self._card_there(str(info.sha)) if CARD in there else None
        self._write_card(card, before=before)
        with hub_errors(self.repo, revision=self.revision):
            done = self.api.create_commit(
                self.repo,
                self._operations(there),
                commit_message=message,
                revision=self.revision,
                parent_commit=info.sha,
                create_pr=create_pr,
            )
        branch = "" if self.revision in (None, "main") else f"/tree/{self.revision}"
        return done.pr_url or f"{self.api.endpoint}/{self.repo}{branch}"

    def _write_card(self, card: Mapping[str, Any], before: str | None) -> None:
        _, names = read_description(self.folder / TENSORS)
        beside = any(name.startswith(BESIDE) for name in names)
        written = model_card(
            one_attachment(self.model),
            self.repo,
            picture=(self.folder / PICTURE).is_file(),
            module=type(self.model).__name__ if beside else None,
            before=before,
            **card,
        )
        written.save(self.folder / CARD)

    def _warn_of_the_base(self) -> None:
        saved = read_description(self.folder / TENSORS)[0]["backbone"]
        if public_base(saved) is None:
            what = f"was loaded from the folder {saved['name']}" if saved["name"] else "has no name"
            warnings.warn(
                f"{self.repo}: the base {what}. Others need a copy of it to load the adapters: "
                "load_pelt(repo, backbone=their folder)",
                stacklevel=4,
            )

    def _refuse_other_format(self, there: set[str]) -> None:
        others = sorted(there & set(OTHER_FORMATS))
        if others and TENSORS not in there:
            raise ValueError(
                f"{self.repo} on the hub holds {others[0]}, which save_adapters did not write: "
                "give the name of a new repository, or another revision"
            )

    def _card_there(self, commit: str) -> str:
        with TemporaryDirectory() as cache:
            path = self.api.hf_hub_download(self.repo, CARD, revision=commit, cache_dir=cache)
            return Path(path).read_text(encoding="utf-8-sig")

    def _operations(self, there: set[str]) -> list[Any]:
        files = sorted(path for path in self.folder.iterdir() if path.is_file())
        new = {path.name for path in files}
        if stale := sorted(name for name in there - new if _is_of_tokenizer(name)):
            warnings.warn(
                f"{self.repo} holds a tokenizer from before ({stale[0]}), which load_pelt takes: "
                "give push_to_hub(..., tokenizer=...), or delete it there if it is not the one "
                "that these adapters were trained with",
                stacklevel=4,
            )
        adds: list[Any] = [CommitOperationAdd(path.name, path) for path in files]
        old = [PICTURE] if PICTURE in there - new else []  # of other weights
        return adds + [CommitOperationDelete(name) for name in old]


def _is_of_tokenizer(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in TOKENIZER)


def _draw(picture: Any, path: Path) -> None:
    """Write a picture that is a file or a figure.

    Raises:
        ValueError: it is neither, or the file is no PNG.
    """
    if picture is None:
        return
    if hasattr(picture, "savefig"):
        picture.savefig(path, format="png", dpi=150)
        return
    if not isinstance(picture, (str, Path)):
        raise ValueError(f"picture is {picture!r}, expected a PNG file or a figure of matplotlib")
    with Path(picture).open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            raise ValueError(f"the picture {picture} is no PNG file: save it as .png")
    shutil.copyfile(picture, path)


def from_hub(
    model: nn.Module,
    repo: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    strict: bool = False,
) -> Attachment:
    """Attach adapters of the hub to a model, as ``load_adapters`` does those of a folder.

    Args:
        model: the base that they were trained on, or a module that holds it.
        repo: ``"name/repository"`` of :func:`push_to_hub`.
        revision: branch, tag or commit.
        token: of the hub.
        strict: raise where other weights of the base would give a warning.

    Raises:
        OSError: there is no such repository or revision, it holds no adapters, or the hub cannot
            be reached and the cache has no copy.
        ValueError: as ``load_adapters``. The model is then as it was.

    Example::

        from_hub(model, "me/my-adapters", revision="v1")
    """
    find_model(model)
    return load_adapters(model, download(repo, revision=revision, token=token), strict=strict)


def download(repo: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """Download the adapters in a repository, and its tokenizer if it has one; no other files.

    Args:
        repo: ``"name/repository"``.
        revision: branch, tag or commit.
        token: of the hub.

    Returns:
        The folder in the cache.

    Raises:
        OSError: as :func:`from_hub`.
    """
    patterns = [TENSORS, CONFIG, *TOKENIZER]
    with hub_errors(repo, revision=revision):
        folder = snapshot_download(repo, revision=revision, token=token, allow_patterns=patterns)
    path = Path(folder)
    if (path / TENSORS).is_file():
        return path
    instead, found = "", format_of(path)
    if found is not None and found != OURS:
        instead = (
            f": it is {found.what}. Download it with huggingface_hub.snapshot_download({repo!r}), "
            f"and load it with {found.loader}"
        )
    raise FileNotFoundError(
        f"{repo} on the hub has no {TENSORS}, which push_to_hub uploads{instead}"
    )


def looks_like_a_folder(name: str) -> bool:
    """Whether a name is that of a folder or file, and not of a repository.

    Example:
        >>> looks_like_a_folder("./adapters"), looks_like_a_folder("me/adapters")
        (True, False)
    """
    path = Path(name).expanduser()
    return path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def _push_saved(model: nn.Module, folder: Path, options: Mapping[str, Any]) -> str:
    """What ``push_to_hub`` of a model does, and ``save_pretrained(folder, push_to_hub=True)``.

    Args:
        model: whose method was called.
        folder: of ``save_adapters``.
        options: of that method, with ``repo_id``.
    """
    with TemporaryDirectory() as name:
        for file in (TENSORS, CONFIG):
            shutil.copyfile(folder / file, Path(name) / file)
        token, revision = options.get("token"), options.get("revision")
        upload = _Upload(model, Path(name), options["repo_id"], token=token, revision=revision)
        return upload.send(
            {},
            message=options.get("commit_message") or "Upload adapters",
            private=options.get("private"),
            create_pr=bool(options.get("create_pr")),
        )


PushToHub.upload = staticmethod(_push_saved)
