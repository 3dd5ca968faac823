"""Predictions for batches with rows of different profiles."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch

from lightning_pelt.data.collator import Collate
from lightning_pelt.methods.xpeft.masks import masks_of, profiles_of
from lightning_pelt.profiles.serving._forwards import (
    FIXED_ELSEWHERE,
    FIXED_ON_CPU,
    split_by_length,
)
from lightning_pelt.profiles.serving.adapter_cache import AdapterCache
from lightning_pelt.profiles.serving.texts import check_text, count_tokens, longest, tokenize
from lightning_pelt.profiles.store import DamagedProfile, ProfileStore, UnknownProfile
from lightning_pelt.training.module import PELTModule


class ProfileServer:
    """A model, a store, and a cache of the adapters of the most recently used profiles.

    The masks of a profile are read from the store and aggregated into an adapter once. The adapter
    stays in one of ``slots`` preallocated slots until it is the least recently used one. All
    profiles of a batch that are not in the cache are aggregated in one product per side and block.
    The cache is keyed by id and version, so that a new version of a profile is used immediately.

    Several threads may call the methods; the calls run one after another.

    Args:
        module: a trained module with an X-PEFT plan. All profiles share its head and norm, unless
            they have their own.
        store: profiles of the module's bank.
        slots: number of cached adapters, with 2 d b L values each.
        batch_size: maximum rows of one forward; longer requests are split. Rows of different
            lengths are split further, where that saves more padding than a forward costs.
        max_length: maximum tokens of a text; longer texts are cut, as the data modules cut them for
            training. If the model has fewer positions, texts are cut to these, with a warning.

    Attributes:
        max_length: tokens to which texts are cut.
        cache: the adapters of the most recently used profiles.

    Raises:
        ValueError: the store belongs to another bank, or ``slots``, ``batch_size`` or
            ``max_length`` is below 1.

    Example::

        module = PELTModule.load_from_checkpoint("runs/profiles/best.ckpt", weights_only=True)
        with ProfileStore("profiles.db") as store:
            server = ProfileServer(module, store)
            server.predict(["good", "bad"], ["ann", "bob"])
    """

    def __init__(
        self,
        module: PELTModule,
        store: ProfileStore,
        *,
        slots: int = 1024,
        batch_size: int = 64,
        max_length: int = 128,
    ) -> None:
        if min(slots, batch_size, max_length) < 1:
            raise ValueError(
                f"slots={slots}, batch_size={batch_size}, max_length={max_length}: all must be at "
                "least 1"
            )
        module.configure_model()
        self.module, self.store = module.eval(), store
        self.batch_size, self.max_length = min(batch_size, slots), longest(module, max_length)
        self.masks = masks_of(module)
        digest = self.masks.bank.digest
        if store.bank is not None and store.bank != digest:
            raise ValueError(
                f"the profiles of the store belong to the bank {store.bank}, and the model has "
                f"{digest}: use the model that the profiles were trained with"
            )
        self.cache = AdapterCache(module, store, slots)
        self._collate = Collate(self.module.tokenizer)
        self._lock = threading.Lock()

    @torch.inference_mode()
    def predict(self, texts: Sequence[str], profiles: Sequence[str]) -> list[dict[str, Any]]:
        """Predict each text with its profile.

        Args:
            texts: one text per row.
            profiles: the id of each row's profile in the store.

        Returns:
            The prediction of the task for each row: label and probabilities, or a value.

        Raises:
            UnknownProfile: the store lacks some profiles; no row is predicted.
            DamagedProfile: some profiles are damaged; no row is predicted.
            ValueError: the numbers of texts and ids differ, a text is empty, has no tokens or
                contains a lone surrogate, a profile does not fit the model, or a prediction is not
                finite. No row is predicted.
            OSError: the store cannot be read.
        """
        if len(texts) != len(profiles):
            raise ValueError(
                f"{len(texts)} texts and {len(profiles)} profiles, expected one profile per text"
            )
        for row, text in enumerate(texts):
            check_text(row, text)
        answers: list[dict[str, Any]] = []
        for start in range(0, len(texts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            answers += self._forward(list(texts[rows]), list(profiles[rows]))
        for answer, profile in zip(answers, profiles, strict=True):
            if not _is_finite(answer):
                raise ValueError(f"the prediction of the profile {profile!r} is not finite")
        return answers

    def answer(
        self, texts: Sequence[str], profiles: Sequence[str]
    ) -> list[dict[str, Any] | Exception]:
        """Predict each text with its profile; an error of a row does not affect the others.

        Args:
            texts: one text per row.
            profiles: the id of each row's profile in the store.

        Returns:
            For each row its prediction, or the error that :meth:`predict` raises for this row.
        """
        errors: dict[str, Exception]
        try:
            return [*self.predict(texts, profiles)]
        except UnknownProfile as error:
            name = self.store.name
            errors = {id: UnknownProfile(f"{name} has no profile {id!r}", [id]) for id in error.ids}
        except DamagedProfile as error:
            reasons = error.reasons.items()
            errors = {id: DamagedProfile({id: why}, error.store) for id, why in reasons}
        except OSError as error:  # of the store, for all rows
            return [error] * len(texts)
        except Exception as error:
            if len(texts) < 2:
                return [error]
            half = len(texts) // 2
            first = self.answer(texts[:half], profiles[:half])
            return first + self.answer(texts[half:], profiles[half:])
        good = [row for row, id in enumerate(profiles) if id not in errors]
        answers = iter(self.answer([texts[row] for row in good], [profiles[row] for row in good]))
        return [errors[id] if id in errors else next(answers) for id in profiles]

    def count_tokens(self, texts: Sequence[str]) -> int:
        """The number of tokens that the model reads for texts, after they are cut.

        Raises:
            ValueError: a text cannot be tokenized.
        """
        return count_tokens(self.module.tokenizer, texts, self.max_length)

    def forget(self) -> None:
        """Empty the cache."""
        with self._lock:
            self.cache.drop(self.cache.keys)

    def forget_deleted(self) -> None:
        """Empty the cache of profiles that the store no longer has, and of earlier versions.

        A batch never uses such an adapter, since it asks the store for the versions first. This
        frees and overwrites the memory of profiles for which nobody asks again.

        Raises:
            OSError: the store cannot be read.
        """
        with self._lock:
            keys = self.cache.keys
        try:
            latest = self.store.latest({id for id, _ in keys})
        except DamagedProfile:  # which the next request for it names
            latest = {}
        with self._lock:
            self.cache.drop([(id, version) for id, version in keys if latest.get(id) != version])

    def _forward(self, texts: list[str], profiles: list[str]) -> list[dict[str, Any]]:
        """Predict rows of which those of similar length share a forward."""
        tokenizer, device = self.module.tokenizer, self.module.device
        tokens = tokenize(tokenizer, texts, self.max_length)
        fixed = FIXED_ON_CPU if device.type == "cpu" else FIXED_ELSEWHERE
        answers: list[dict[str, Any]] = [{}] * len(texts)
        with self._lock:
            selected = self.cache.select(profiles)
            for rows in split_by_length([len(row["input_ids"]) for row in tokens], fixed):
                padded = self._collate([tokens[row] for row in rows])
                batch: dict[str, Any] = {name: t.to(device) for name, t in padded.items()}
                with profiles_of(self.module, selected._replace(inverse=selected.inverse[rows])):
                    found = self.module.task.predict(
                        self.module.model,  # type: ignore[arg-type]
                        batch,
                        labels=self.module.labels,
                        tokenizer=tokenizer,
                    )
                for row, answer in zip(rows, found, strict=True):
                    answers[row] = answer
        return answers


def _is_finite(answer: object) -> bool:
    """Whether all numbers of a prediction are finite, which JSON requires."""
    if isinstance(answer, dict | list):
        return all(map(_is_finite, answer.values() if isinstance(answer, dict) else answer))
    return not isinstance(answer, float) or math.isfinite(answer)
