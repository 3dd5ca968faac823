"""Predictions for batches with rows of different profiles."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_pelt.methods.xpeft.aggregation import Adapters, AggregatedAdapter
from lightning_pelt.methods.xpeft.masks import SelectedMasks, masks_of, profiles_of
from lightning_pelt.profiles.model_profiles import heads_of, stored_masks
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
        batch_size: maximum rows of one forward; longer requests are split.
        max_length: maximum tokens of a text; longer texts are cut, as the data modules cut them for
            training. If the model has fewer positions, texts are cut to these, with a warning.

    Attributes:
        max_length: tokens to which texts are cut.

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
        self.batch_size, self.max_length = min(batch_size, slots), _longest(module, max_length)
        self.masks = masks_of(module)
        digest = self.masks.bank.digest
        if store.bank is not None and store.bank != digest:
            raise ValueError(
                f"the profiles of the store belong to the bank {store.bank}, and the model has "
                f"{digest}: use the model that the profiles were trained with"
            )
        self._nets = [net for net in module.modules() if isinstance(net, AggregatedAdapter)]
        # Slots by id and version, the least recently used first.
        self._slots: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._free = list(range(slots))
        self._pools = [_pool(net, slots, self.masks.own_norms) for net in self._nets]
        heads = heads_of(module)
        self._heads = None if heads is None else heads.own[0].new_zeros(slots, *heads.own[0].shape)
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
            _check_text(row, text)
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

    def forget(self) -> None:
        """Empty the cache."""
        with self._lock:
            self._free += self._slots.values()
            self._slots.clear()

    def _forward(self, texts: list[str], profiles: list[str]) -> list[dict[str, Any]]:
        tokenizer, model = self.module.tokenizer, self.module.model
        options = {"truncation": True, "max_length": self.max_length, "padding": True}
        try:
            tokens = tokenizer(texts, return_tensors="pt", **options)
        except Exception as error:  # of any type, from the tokenizer's code
            raise ValueError(f"a text cannot be tokenized: {error}") from error
        empty = (tokens["attention_mask"].sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"the text {texts[empty[0]][:30]!r} has no tokens")
        batch: dict[str, Any] = {name: t.to(self.module.device) for name, t in tokens.items()}
        with self._lock:
            slots = self._load(list(dict.fromkeys(profiles)))
            inverse = torch.tensor([slots[id] for id in profiles], device=self.module.device)
            pools = {net.index: pool for net, pool in zip(self._nets, self._pools, strict=True)}
            masks = inverse.new_empty(0)
            selected = SelectedMasks(masks, None, inverse, heads=self._heads, adapters=pools)
            with profiles_of(self.module, selected):
                return self.module.task.predict(
                    model,  # type: ignore[arg-type]
                    batch,
                    labels=self.module.labels,
                    tokenizer=tokenizer,
                )

    def _load(self, ids: list[str]) -> dict[str, int]:
        """The slot of each profile. Profiles of this batch do not evict each other."""
        keys = list(self.store.latest(ids).items())
        if len(keys) < len(ids):
            self.store.get_many(ids)  # raises for unknown ids, unless they were put just now
            return self._load(ids)
        for key in keys:
            if key in self._slots:
                self._slots.move_to_end(key)
        missing = [key for key in keys if key not in self._slots]
        if missing:
            found = self.store.get_many([id for id, _ in missing])
            selected = stored_masks(self.module, [found[id] for id, _ in missing])
            while len(self._free) < len(missing):
                oldest = next(key for key in self._slots if key not in keys)
                self._free.append(self._slots.pop(oldest))
            slots = [self._free.pop() for _ in missing]
            self._fill(slots, selected)
            self._slots.update(zip(missing, slots, strict=True))
        return {key[0]: self._slots[key] for key in keys}

    def _fill(self, slots: list[int], selected: SelectedMasks) -> None:
        """Write the adapters and heads of the selected profiles to slots."""
        for net, pool in zip(self._nets, self._pools, strict=True):
            new = net.aggregate(selected)
            pool.A[slots], pool.c[slots], pool.B[slots] = new.A, new.c, new.B
            if pool.norms is not None and new.norms is not None:
                pool.norms[slots] = new.norms
        if selected.heads is not None and self._heads is not None:
            self._heads[slots] = selected.heads


def _longest(module: PELTModule, max_length: int) -> int:
    """``max_length``, or the number of tokens for which ``module`` has positions if it is lower."""
    limits = [module.tokenizer.model_max_length, module.most_tokens]
    limit = min(limit for limit in limits if limit is not None)
    assert module.model is not None
    if not module.model.config.is_encoder_decoder:  # which generates at the end of the text
        limit -= getattr(module.task, "max_new_tokens", 0)
    if max_length <= limit:
        return max_length
    if limit < 1:
        raise ValueError(
            "the model has no positions for a text beside its prompt and the tokens that it "
            "generates: use fewer of them"
        )
    rank_zero_warn(
        f"texts are cut to {limit} tokens, for which the model has positions; max_length is "
        f"{max_length}"
    )
    return limit


def _check_text(row: int, text: object) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"text {row} is empty: every row needs a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text {row} contains a lone surrogate, which is not a character"
        ) from error


def _is_finite(answer: object) -> bool:
    """Whether all numbers of a prediction are finite, which JSON requires."""
    if isinstance(answer, dict | list):
        return all(map(_is_finite, answer.values() if isinstance(answer, dict) else answer))
    return not isinstance(answer, float) or math.isfinite(answer)


def _pool(net: AggregatedAdapter, slots: int, own_norms: bool) -> Adapters:
    """Empty slots for the adapters of one site; a shared norm takes a single row."""
    masks = net.masks
    width, bottleneck = net.A.shape[1] // net.bottleneck, net.bottleneck
    empty = masks.logits[0].new_zeros
    norms: Tensor | None = None
    if own_norms:
        norms = empty(slots, 2, bottleneck)
    elif len(masks.norms):
        norms = masks.norms[0].detach()[net.index][None]
    outputs = net.B.shape[1] // (bottleneck + 1)
    return Adapters(
        empty(slots, width, bottleneck),
        empty(slots, bottleneck),
        empty(slots, bottleneck + 1, outputs),
        norms,
        torch.zeros(0),
    )
