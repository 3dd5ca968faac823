"""One upload of adapters with their model card, as one commit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, is_offline_mode
from torch import nn

from lightning_pelt.attach.beside import BESIDE, one_attachment
from lightning_pelt.exchange.card_text import PICTURE, public_base
from lightning_pelt.exchange.hub_download import TOKENIZER
from lightning_pelt.exchange.hub_errors import hub_errors
from lightning_pelt.exchange.model_card import model_card
from lightning_pelt.utils.adapter_format import TENSORS, read_description
from lightning_pelt.utils.formats import ADAPTERHUB_TENSORS, PEFT_TENSORS, WHOLE_MODEL

CARD = "README.md"
OTHER_FORMATS = (*PEFT_TENSORS, *ADAPTERHUB_TENSORS, *WHOLE_MODEL)


class Upload:
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
