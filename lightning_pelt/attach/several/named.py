"""The named adapters of a model as one object: which there are, and which one acts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lightning_pelt.attach.attach import find_model
from lightning_pelt.attach.attachment import ATTACHMENT, Attachment
from lightning_pelt.attach.several.changes import Snapshot
from lightning_pelt.attach.several.entry import Entry
from lightning_pelt.attach.several.registry import Registry
from lightning_pelt.attach.state_dict_hooks import SEVERAL
from lightning_pelt.attach.without_values import refuse_several


class Named:
    """The part of :class:`lightning_pelt.Adapters` that makes no adapters."""

    def __init__(self, model: nn.Module, *, path: str | None = None) -> None:
        self.model = find_model(model, path)
        # Kept by the model from the first adapter on.
        self._registry = self.model.__dict__.get(SEVERAL) or self._new()

    def _new(self) -> Registry:
        """A registry for the model as it is.

        Raises:
            ValueError: the model has a plan without a name, or is on the meta device.
        """
        refuse_several(self.model)
        if ATTACHMENT in self.model.__dict__:
            raise ValueError(
                "the model has a plan that was attached without a name: write it with "
                "save_adapters(model, folder), call detach(model), and read it with "
                "Adapters(model).load(name, folder)"
            )
        return Registry(self.model)

    @property
    def _kept(self) -> Registry:
        """The adapters that the model has now; those of another object for this model too."""
        kept: Registry | None = self.model.__dict__.get(SEVERAL)
        if kept is not None:
            self._registry = kept
        elif self._registry.entries:  # detached or merged since
            self._registry = self._new()
        return self._registry

    # What there is.

    @property
    def names(self) -> list[str]:
        """The names of all adapters, in the order in which they were added."""
        return list(self._kept.entries)

    @property
    def active(self) -> str | None:
        """The name of the active adapter; None if the model is bare."""
        return self._kept.active

    def __getitem__(self, name: str) -> Attachment:
        """The attachment of an adapter, which may be parked.

        Raises:
            ValueError: there is none of this name.
        """
        return self._kept.entry(name).attachment

    def __contains__(self, name: object) -> bool:
        return name in self._kept.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self._kept.entries)

    def __repr__(self) -> str:
        return f"Adapters({', '.join(self.names) or 'none'}; active: {self.active or 'none'})"

    def delete(self, name: str) -> None:
        """Forget an adapter. After the last one, the model is as it was before the first.

        Raises:
            ValueError: there is none of this name.
        """
        self._kept.remove(name)

    # Which one acts.

    def activate(self, name: str) -> None:
        """Make an adapter the active one.

        Raises:
            ValueError: there is none of this name, the model was sharded since, or the active one
                trains a tensor of the base. The model is then as it was.
        """
        self._kept.switch(name)

    def deactivate(self) -> None:
        """Park the active adapter: the model is bare, with its first head and norms, and frozen."""
        self._kept.switch(None)

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Activate an adapter, or None, for a ``with`` block, and then the one before.

        Other threads that come to such a block wait.

        Raises:
            ValueError: as :meth:`activate`.
        """
        registry = self._kept
        with registry.lock:
            before = registry.active
            registry.switch(name)
            try:
                yield
            finally:
                registry.switch(before if before in registry.entries else None)

    @contextmanager
    def _replacing(self) -> Iterator[Snapshot]:
        """The bare model as it is, for a block that adds an adapter; as before if it raises."""
        if SEVERAL not in self.model.__dict__:
            self._registry = self._new()  # what required a gradient may have changed
        registry = self._kept
        with registry.lock:
            active = registry.active
            registry.switch(None)
            before = Snapshot(self.model)
            registry.adding = True
            try:
                yield before
            except BaseException:
                before.restore()
                registry.switch(active)
                raise
            finally:
                registry.adding = False

    def _keep(self, name: str, entry: Entry) -> None:
        registry = self._kept
        registry.entries[name] = entry
        registry.active = name
        self.model.__dict__[SEVERAL] = registry
