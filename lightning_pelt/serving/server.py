"""Predictions for batches whose rows belong to different profiles."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_pelt.module import PELTModule
from lightning_pelt.profiles.aggregate import Adapters, Aggregated
from lightning_pelt.profiles.keeping import choice_of, heads_of
from lightning_pelt.profiles.masks import Choice, masks_of, profiles_of
from lightning_pelt.profiles.store import ProfileStore


class ProfileServer:
    """One model, one store, and the adapters of the profiles that were asked for last.

    A profile's masks are read from the store and aggregated into an adapter once; the adapter lies
    in one of ``slots`` preallocated places until it is the one that was not used for longest. All
    profiles of a batch that are missing are aggregated in one product per side and block. Every
    version of a profile is an entry of its own, so a profile that was stored anew is seen at once.

    The calls may come from several threads; they take turns.

    Args:
        module: with an X-PEFT plan, trained; its shared parts (head, norm) serve all profiles.
        store: of profiles over the module's bank.
        slots: adapters that are kept, each 2 d b L numbers.
        batch_size: rows of one forward; longer requests are cut.
        max_length: tokens of a text; what is longer is cut.

    Raises:
        ValueError: the store's profiles belong to another bank, or ``slots`` or ``batch_size`` is
            below 1.
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
                f"the store's profiles belong to the bank {store.bank}, and the model has {digest}:"
                " serve them with the model that they were trained with"
            )
        self._nets = [net for net in module.modules() if isinstance(net, Aggregated)]
        self._places: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._free = list(range(slots))
        self._pools = [_pool(net, slots, self.masks.own_norms) for net in self._nets]
        heads = heads_of(module)
        self._heads = None if heads is None else heads.own[0].new_zeros(slots, *heads.own[0].shape)
        self._turn = threading.Lock()

    @torch.inference_mode()
    def predict(self, texts: Sequence[str], profiles: Sequence[str]) -> list[dict[str, Any]]:
        """What each text means to its profile: label and probabilities, or a value.

        Args:
            texts: one per row.
            profiles: the id of each row's profile in the store.

        Raises:
            UnknownProfile: an id that is not in the store; nothing of the batch is answered.
            ValueError: not as many ids as texts, or an empty text.
        """
        if len(texts) != len(profiles):
            raise ValueError(
                f"{len(texts)} texts and {len(profiles)} profiles: each text needs one"
            )
        for row, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"text {row} is empty: there is nothing to predict from")
        answers: list[dict[str, Any]] = []
        for start in range(0, len(texts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            answers += self._forward(list(texts[rows]), list(profiles[rows]))
        return answers

    def forget(self) -> None:
        """Empty the cache."""
        with self._turn:
            self._free += self._places.values()
            self._places.clear()

    def _forward(self, texts: list[str], profiles: list[str]) -> list[dict[str, Any]]:
        tokenizer, model = self.module.tokenizer, self.module.model
        tokens = tokenizer(
            texts, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )
        batch: dict[str, Any] = {name: t.to(self.module.device) for name, t in tokens.items()}
        with self._turn:
            places = self._placed(list(dict.fromkeys(profiles)))
            inverse = torch.tensor([places[one] for one in profiles], device=self.module.device)
            asked = Choice(inverse.new_empty(0), None, inverse, (), self._heads)
            try:
                for net, pool in zip(self._nets, self._pools, strict=True):
                    net.slots = pool
                with profiles_of(self.module, asked):
                    return self.module.task.predict(
                        model,  # type: ignore[arg-type]
                        batch,
                        labels=self.module.labels,
                        tokenizer=tokenizer,
                    )
            finally:
                for net in self._nets:
                    net.slots = None

    def _placed(self, ids: list[str]) -> dict[str, int]:
        """The slot of each profile; those of this batch push each other out never."""
        keys = list(self.store.latest(ids).items())
        if len(keys) < len(ids):
            self.store.get_many(ids)  # says which are unknown, unless they have just been stored
            return self._placed(ids)
        for key in keys:
            if key in self._places:
                self._places.move_to_end(key)
        missing = [key for key in keys if key not in self._places]
        if missing:
            found = self.store.get_many([one for one, _ in missing])
            chosen = choice_of(self.module, [found[one] for one, _ in missing])
            while len(self._free) < len(missing):
                oldest = next(key for key in self._places if key not in keys)
                self._free.append(self._places.pop(oldest))
            slots = [self._free.pop() for _ in missing]
            self._fill(slots, chosen)
            self._places.update(zip(missing, slots, strict=True))
        return {key[0]: self._places[key] for key in keys}

    def _fill(self, slots: list[int], chosen: Choice) -> None:
        for net, pool in zip(self._nets, self._pools, strict=True):
            made = net.aggregate(chosen)
            for part, new in (("A", made.A), ("c", made.c), ("B", made.B), ("norms", made.norms)):
                if new is not None:
                    getattr(pool, part)[slots] = new
        if chosen.heads is not None and self._heads is not None:
            self._heads[slots] = chosen.heads


def _pool(net: Aggregated, slots: int, own_norms: bool) -> Adapters:
    """Empty slots for adapters of one site; a shared norm needs one for all."""
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
