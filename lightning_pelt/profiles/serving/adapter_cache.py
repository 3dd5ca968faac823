"""The adapters of the most recently used profiles."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_pelt.methods.xpeft.aggregation import Adapters, AggregatedAdapter
from lightning_pelt.methods.xpeft.masks import SelectedMasks, masks_of
from lightning_pelt.profiles.model_profiles import heads_of, stored_masks
from lightning_pelt.profiles.store import ProfileStore
from lightning_pelt.training.module import PELTModule

Key = tuple[str, int]  # id and version of a profile


class AdapterCache:
    """Adapters, norms and heads of profiles in preallocated slots, keyed by id and version.

    The masks of a profile are read from the store and aggregated into an adapter once. It stays
    until it is the least recently used one and another profile needs its slot.

    Callers must not call methods from several threads at once.

    Args:
        module: a trained module with an X-PEFT plan.
        store: profiles of the module's bank.
        slots: number of adapters, with 2 d b L values each.

    Attributes:
        loaded: number of profiles that were read from the store and aggregated until now.
    """

    def __init__(self, module: PELTModule, store: ProfileStore, slots: int) -> None:
        self.module, self.store = module, store
        self.loaded = 0
        self._nets = [net for net in module.modules() if isinstance(net, AggregatedAdapter)]
        self._slots: OrderedDict[Key, int] = OrderedDict()  # the least recently used first
        self._free = list(range(slots))
        self._pools = [_pool(net, slots, masks_of(module).own_norms) for net in self._nets]
        heads = heads_of(module)
        self._heads = None if heads is None else heads.own[0].new_zeros(slots, *heads.own[0].shape)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def keys(self) -> list[Key]:
        """Id and version of each profile in the cache."""
        return list(self._slots)

    def select(self, profiles: Sequence[str]) -> SelectedMasks:
        """The adapters of the profiles of a batch, one id for each row.

        Raises:
            UnknownProfile: the store lacks some profiles.
            DamagedProfile: some profiles are damaged.
            ValueError: a profile does not fit the model.
            OSError: the store cannot be read.
        """
        slots = self._load(list(dict.fromkeys(profiles)))
        inverse = torch.tensor([slots[id] for id in profiles], device=self.module.device)
        pools = {net.index: pool for net, pool in zip(self._nets, self._pools, strict=True)}
        return SelectedMasks(inverse.new_empty(0), None, inverse, heads=self._heads, adapters=pools)

    @torch.inference_mode()
    def drop(self, keys: Iterable[Key]) -> None:
        """Remove profiles and overwrite their adapters with zeros."""
        slots = [self._slots.pop(key) for key in keys if key in self._slots]
        if slots:
            self._erase(slots)
            self._free += slots

    def _load(self, ids: list[str]) -> dict[str, int]:
        """The slot of each profile. Profiles of this batch do not evict each other."""
        keys = list(self.store.latest(ids).items())
        if len(keys) < len(ids):
            known = {id for id, _ in keys}
            self.drop([key for key in self._slots if key[0] in ids and key[0] not in known])
            self.store.get_many(ids)  # raises for unknown ids, unless they were put just now
            return self._load(ids)
        for key in keys:
            if key in self._slots:
                self._slots.move_to_end(key)
        missing = [key for key in keys if key not in self._slots]
        if missing:
            found = self.store.get_many([id for id, _ in missing])
            selected = stored_masks(self.module, [found[id] for id, _ in missing])
            wanted = set(keys)
            evicted = [key for key in self._slots if key not in wanted]
            self.drop(evicted[: max(0, len(missing) - len(self._free))])
            slots = [self._free.pop() for _ in missing]
            self._slots.update(zip(missing, slots, strict=True))
            try:
                self._fill(slots, selected)
            except BaseException:
                self.drop(missing)
                raise
            self.loaded += len(missing)
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

    def _erase(self, slots: list[int]) -> None:
        own_norms = masks_of(self.module).own_norms
        for pool in self._pools:
            for part in (pool.A, pool.c, pool.B, pool.norms if own_norms else None):
                if part is not None:
                    part[slots] = 0
        if self._heads is not None:
            self._heads[slots] = 0


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
