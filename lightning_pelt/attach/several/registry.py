"""The named adapters of a model: what the model itself keeps of them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch._dynamo
from transformers import PreTrainedModel

from lightning_pelt.attach.attachment import ATTACHMENT, Attachment
from lightning_pelt.attach.freezing import named_parameters
from lightning_pelt.attach.names import plain
from lightning_pelt.attach.several.entry import Entry
from lightning_pelt.attach.state_dict_hooks import SEVERAL, Matching
from lightning_pelt.plans.plan import Plan
from lightning_pelt.utils.errors import unknown


def notice_switches() -> None:
    """Make code that ``torch.compile`` compiles from now on depend on the hooks of its modules.

    By default it does not, and would compute with the adapter that was active when it was compiled.
    """
    torch._dynamo.config.skip_nnmodule_hook_guards = False


class Registry:
    """The named adapters of one model.

    Copies and pickles of the model hold copies of all adapters.

    Attributes:
        model: the Hugging Face model.
        entries: by name.
        active: the name of the adapter on the model; None for none.
        trained_before: whether the parameters required gradients before the first adapter.
        lock: held while an adapter is switched.
        rows: what mixes the adapters of a batch, see :mod:`.rows`; made when it is first needed.
        told: whether a state dict has warned of what it leaves out.
        adding: whether a plan is being attached under a name.
        mixed: whether the adapters of a batch are on the model, so that none is active.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        notice_switches()
        self.model = model
        self.entries: dict[str, Entry] = {}
        self.active: str | None = None
        self.trained_before = {n: p.requires_grad for n, p in named_parameters(model).items()}
        self.lock = threading.RLock()
        self.rows: Any = None
        self.told = self.adding = self.mixed = False
        self.places = [
            (module, key, plain(f"{path}.{key}"))
            for path, module in model.named_modules()
            for key, parameter in module._parameters.items()
            if parameter is not None
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "lock"} | {"rows": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        notice_switches()
        self.__dict__.update(state, lock=threading.RLock())

    def entry(self, name: str) -> Entry:
        """The entry of a name.

        Raises:
            ValueError: there is none; the message names the nearest.
        """
        if name not in self.entries:
            raise unknown("adapter", name, self.entries)
        return self.entries[name]

    def switch(self, name: str | None) -> None:
        """Put the adapter ``name`` on the model, and take off the one that is on it.

        Raises:
            ValueError: there is none of this name, or the active one cannot be parked; the model
                is then as it was.
        """
        incoming = None if name is None else self.entry(name)
        with self.lock:
            if self.mixed:
                raise ValueError(
                    "the model mixes the adapters of a batch: leave `with adapters.rows(...)` "
                    "before another adapter is activated"
                )
            if name == self.active:
                return
            if self.active is not None:
                self.refuse_to_park(self.active)
                self.entries[self.active].take_off()
                self.active = None
            if incoming is not None:
                incoming.put_on()
                self.active = name

    def refuse_to_park(self, name: str) -> None:
        """Raise if an adapter trains a tensor of the base, which all adapters share.

        Raises:
            ValueError: the message names the tensor.
        """
        entry = self.entries[name]
        for module, key, path in self.places:
            parameter = module._parameters.get(key)
            if parameter is None or not parameter.requires_grad:
                continue
            if path in entry.attachment.base and (module, key) not in entry.places:
                raise ValueError(
                    f"{path} is a tensor of the base, which all adapters share, and it was "
                    f"unfrozen after {name!r} was added: freeze it, or name its module in "
                    f"add({name!r}, plan, head=[...]), so that the adapter has a copy of its own"
                )

    def remove(self, name: str) -> None:
        """Forget an adapter; after the last one, the model is as before the first."""
        entry = self.entry(name)
        with self.lock:
            if name == self.active:
                self.entries[name].take_off()
                self.active = None
            del self.entries[name]
            self.rows = None
            for change in entry.attachment.undo:
                if isinstance(change, Matching):
                    change.remove()
            if entry.attachment.surroundings is not None:
                entry.attachment.surroundings.remove(entry.attachment)
            if not self.entries:
                self.dissolve()

    def dissolve(self) -> None:
        """Unfreeze the base, and forget the registry."""
        for name, parameter in named_parameters(self.model).items():
            if parameter.is_floating_point():
                parameter.requires_grad_(self.trained_before.get(name, True))
        self.model.__dict__.pop(SEVERAL, None)

    def holds(self, attachment: Attachment) -> bool:
        """Whether it is the attachment of a named adapter."""
        return any(entry.attachment is attachment for entry in self.entries.values())

    def refuse_unnamed(self, attached: Attachment | None, plan: Plan) -> None:
        """Raise where ``attach`` would put a plan without a name beside named ones.

        Raises:
            ValueError: no adapter with an equal plan is active.
        """
        if self.adding or (attached is not None and attached.plan == plan):
            return
        now = "none is active" if attached is None else f"{self.active!r} has {attached.plan}"
        raise ValueError(
            f"the model has named adapters ({', '.join(self.entries)}), and {now}, expected an "
            f"active one with {plan}: call adapters.activate(name), or adapters.add(name, plan)"
        )

    def release(self, attachment: Attachment) -> None:
        """Make the only adapter an ordinary attachment, which may be detached or merged.

        Raises:
            ValueError: there are others, which would be lost.
        """
        self.refuse_others(attachment, "detached")
        attachment.frozen.trained_before = dict(self.trained_before)
        self.model.__dict__.pop(SEVERAL, None)

    def refuse_others(self, attachment: Attachment, what: str) -> None:
        """Raise unless the adapter of ``attachment`` is the only one, and active.

        Raises:
            ValueError: the message names the others.
        """
        others = [n for n, each in self.entries.items() if each.attachment is not attachment]
        if others or self.model.__dict__.get(ATTACHMENT) is not attachment:
            own = next((n for n, e in self.entries.items() if e.attachment is attachment), None)
            listed = ", ".join(others) or own
            raise ValueError(
                f"the model has several adapters, and {own!r} alone cannot be {what}: {listed} "
                "would be lost, or would compute with another base. Save them with "
                "adapters.save(name, folder) if you need them, and delete them with "
                "adapters.delete(name)"
            )

    @contextmanager
    def silent(self) -> Iterator[None]:
        """A block in which state dicts give no warning of what they leave out."""
        told, self.told = self.told, True
        try:
            yield
        finally:
            self.told = told

    def tell_other_name(self, saved: str | None) -> None:
        """Warn if a state dict of another adapter is loaded into the active one."""
        if saved is not None and saved != self.active:
            warnings.warn(
                f"the state dict is that of the adapter {saved!r}, and it replaces the weights of "
                f"the active one, {self.active!r}. Call adapters.activate({saved!r}) first to load "
                "it there",
                stacklevel=4,
            )

    def tell_left_out(self) -> None:
        """Warn, once, that a state dict holds the active adapter alone."""
        parked = [name for name in self.entries if name != self.active]
        if parked and not self.told and self.active is not None:
            self.told = True
            warnings.warn(
                f"a state dict or a checkpoint holds the active adapter {self.active!r} alone, and "
                f"not {', '.join(parked)}: write each with adapters.save(name, folder)",
                stacklevel=4,
            )
