"""What an attachment has changed in the modules of a model, so that it can be taken off and back.

Submodules are children of their hosts, hooks are entries in the tables of hooks of modules, and
trained heads and norms are entries in the tables of parameters. To switch from one adapter to
another is to set these entries, without copying a tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from lightning_pelt.attach.freezing import named_tensors

TABLES = tuple(name for name, value in vars(nn.Module()).items() if isinstance(value, dict))
TENSORS = ("_parameters", "_buffers")
# Attributes of modules that the base has too and that a head with other labels replaces.
REPLACED = ("config", "num_labels")


class _Absent(Enum):
    """Stands for an entry that a table does not have. Copies and pickles are the same object."""

    ABSENT = 0


ABSENT = _Absent.ABSENT


class Change:
    """One entry in one table of one module.

    Attributes:
        module: of the base.
        table: the name of the table, such as ``_forward_hooks``; empty for ``__dict__`` itself.
        key: of the entry.
        off, on: its value without and with the adapter.
        later: keys that came after it when the adapter was taken off.
    """

    __slots__ = ("key", "later", "module", "off", "on", "table")

    def __init__(self, module: nn.Module, table: str, key: Any, *, off: Any, on: Any) -> None:
        self.module, self.table, self.key, self.off, self.on = module, table, key, off, on
        self.later: tuple[Any, ...] = ()

    # Both run for every entry of every switch, so they call nothing that they can do without.

    def put_on(self) -> None:
        """Set the value with the adapter."""
        own = self.module.__dict__
        entries, on = own[self.table] if self.table else own, self.on
        self.off = entries.get(self.key, ABSENT)
        if on is ABSENT:
            entries.pop(self.key, None)
        else:
            entries[self.key] = on
        for key in self.later:  # hooks of others run after ours, as they did before
            if key in entries:
                entries[key] = entries.pop(key)

    def take_off(self) -> None:
        """Set the value without the adapter."""
        own = self.module.__dict__
        entries, key, off = own[self.table] if self.table else own, self.key, self.off
        self.on = entries.get(key, ABSENT)
        if off is not ABSENT:
            entries[key] = off
            return
        self.later = ()
        if self.on is not ABSENT and next(reversed(entries)) != key:
            keys = list(entries)
            self.later = tuple(keys[keys.index(key) + 1 :])
        entries.pop(key, None)


class Snapshot:
    """The tables of all modules of a model, and what is known of its parameters.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = Snapshot(layer)
        >>> handle = layer.register_forward_hook(print)
        >>> [change.table for change in before.changes()]
        ['_forward_hooks']
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tables = {
            module: {name: dict(module.__dict__[name]) for name in TABLES}
            for module in model.modules()
        }
        self.attributes = {module: dict(module.__dict__) for module in self.tables}
        self.kinds = {id(p): (p, p.dtype, p.requires_grad) for p in model.parameters()}

    def changes(self) -> list[Change]:
        """The entries that were added, replaced or removed since."""
        return [change for module in self.tables for change in self._of(module)]

    def _of(self, module: nn.Module) -> Iterator[Change]:
        for table, before in self.tables[module].items():
            now = module.__dict__[table]
            for key in [*now, *(key for key in before if key not in now)]:
                off, on = before.get(key, ABSENT), now.get(key, ABSENT)
                if on is not off:
                    yield Change(module, table, key, off=off, on=on)
        before, now = self.attributes[module], module.__dict__
        for key in now:
            if key not in TABLES and (key not in before or key in REPLACED):
                off = before.get(key, ABSENT)
                if now[key] is not off:
                    yield Change(module, "", key, off=off, on=now[key])

    def restore(self) -> None:
        """Undo all changes, and give the parameters their former dtype and ``requires_grad``."""
        for change in reversed(self.changes()):
            change.take_off()
        for parameter, dtype, trained in self.kinds.values():
            if parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
            if parameter.is_floating_point():
                parameter.requires_grad_(trained)

    def own_copies(self, names: Collection[str]) -> list[Change]:
        """Replace tensors of the model by copies; the originals get their former dtype back.

        Args:
            names: of the tensors, such as those of the head.

        Returns:
            The changes that were made, at every place of a tied tensor.
        """
        chosen = {id(t): t for name, t in named_tensors(self.model).items() if name in names}
        copies = {key: copy_of(tensor) for key, tensor in chosen.items()}
        made = []
        for module in self.tables:
            for table in TENSORS:
                for key, tensor in module.__dict__[table].items():
                    if tensor is not None and id(tensor) in copies:
                        on = copies[id(tensor)]
                        made.append(Change(module, table, key, off=tensor, on=on))
        for change in made:
            change.module.__dict__[change.table][change.key] = change.on
        for key, tensor in chosen.items():
            if key in self.kinds:
                _, dtype, trained = self.kinds[key]
                tensor.data = tensor.data.to(dtype)
                tensor.requires_grad_(trained)
        return made


def copy_of(tensor: Tensor) -> Tensor:
    """A parameter or buffer with the same values and marks."""
    with torch.no_grad():
        copied = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
    copied.__dict__.update(tensor.__dict__)
    return copied
