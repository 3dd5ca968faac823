"""Predictions for batches with rows of different profiles."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_pelt.methods.xpeft.aggregation import Adapters, AggregatedAdapter
from lightning_pelt.methods.xpeft.masks import SelectedMasks, masks_of, profiles_of
from lightning_pelt.profiles.model_profiles import heads_of, stored_masks
from lightning_pelt.profiles.store import ProfileStore
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
        max_length: maximum tokens of a text; longer texts are truncated.

    Raises:
        ValueError: the store belongs to another bank, or ``slots`` or ``batch_size`` is below 1.

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
        if slots < 1 or batch_size < 1:
            raise ValueError(f"slots={slots}, batch_size={batch_size}: both must be at least 1")
        module.configure_model()
        self.module, self.store = module.eval(), store
        self.batch_size, self.max_length = min(batch_size, slots), max_length
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
            ValueError: the numbers of texts and ids differ, or a text is empty.
        """
        if len(texts) != len(profiles):
            raise ValueError(
                f"{len(texts)} texts and {len(profiles)} profiles, expected one profile per text"
            )
        for row, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"text {row} is empty: every row needs a text")
        answers: list[dict[str, Any]] = []
        for start in range(0, len(texts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            answers += self._forward(list(texts[rows]), list(profiles[rows]))
        return answers

    def forget(self) -> None:
        """Empty the cache."""
        with self._lock:
            self._free += self._slots.values()
            self._slots.clear()

    def _forward(self, texts: list[str], profiles: list[str]) -> list[dict[str, Any]]:
        tokenizer, model = self.module.tokenizer, self.module.model
        tokens = tokenizer(
            texts, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )
        batch: dict[str, Any] = {name: t.to(self.module.device) for name, t in tokens.items()}
        with self._lock:
            slots = self._load(list(dict.fromkeys(profiles)))
            inverse = torch.tensor([slots[id] for id in profiles], device=self.module.device)
            selected = SelectedMasks(inverse.new_empty(0), None, inverse, (), self._heads)
            try:
                for net, pool in zip(self._nets, self._pools, strict=True):
                    net.slots = pool
                with profiles_of(self.module, selected):
                    return self.module.task.predict(
                        model,  # type: ignore[arg-type]
                        batch,
                        labels=self.module.labels,
                        tokenizer=tokenizer,
                    )
            finally:
                for net in self._nets:
                    net.slots = None

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
