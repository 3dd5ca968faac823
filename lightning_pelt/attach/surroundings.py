"""The pretrained model around an attached one: frozen with it, and left out of checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lightning_pelt.attach.attachment import Attachment
from lightning_pelt.attach.fingerprint import differences, fingerprint
from lightning_pelt.attach.freezing import (
    head_buffers,
    head_names,
    inside,
    moving_statistics,
    named_tensors,
)
from lightning_pelt.attach.names import below, plain, tensor_names
from lightning_pelt.attach.provenance import new_parameters
from lightning_pelt.attach.saving import save_adapters
from lightning_pelt.attach.state_dict_hooks import BACKBONE

RECORD = "pelt_surroundings"  # the attribute of a model that refers to its record


def surround(module: nn.Module, attachment: Attachment) -> None:
    """Freeze the pretrained model in ``module`` that is around an attached one, if there is any.

    What is new in it, such as a classifier, stays trainable, and so does what is beside it in
    ``module``.
    """
    path = next(name for name, child in module.named_modules() if child is attachment.model)
    around = [
        child
        for name, child in module.named_modules()
        if isinstance(child, PreTrainedModel) and name != path and inside(path, name)
    ]
    if not around or attachment.surroundings is not None:
        return
    record = around[0].__dict__.get(RECORD) or Surroundings(around[0])
    record.add(attachment)


class Surroundings:
    """The part of a model that is around the attached models inside it.

    Attributes:
        outer: the model.
        attached: what is attached inside it.
        base: state-dict names of the frozen part.
        size: number of parameters of the frozen part.
        trained_before: whether each parameter required a gradient before, by name.
        fingerprint: of the frozen part.
        prefix: of the names in the state that is being loaded.
    """

    def __init__(self, outer: PreTrainedModel) -> None:
        self.outer = outer
        self.attached: list[Attachment] = []
        self.base: frozenset[str] = frozenset()
        self.head: frozenset[str] = frozenset()
        self.size = 0
        self.trained_before: dict[str, bool] = {}
        self.fingerprint: dict[str, Any] = {}
        self.prefix = ""
        outer.__dict__[RECORD] = self
        outer.__dict__["save_pretrained"] = _SaveAdapters(outer)
        self.handles = [
            outer.register_state_dict_post_hook(drop_base),
            outer.register_load_state_dict_pre_hook(compare_bases),
            outer.register_load_state_dict_post_hook(forgive_base),
        ]

    def add(self, attachment: Attachment) -> None:
        """Freeze what is around the model of ``attachment`` too."""
        path = self._path(attachment)
        for name in [name for name in self.trained_before if inside(name, path)]:
            # Frozen for another model inside, and so recorded as frozen when this one was attached.
            own = name.removeprefix(f"{path}.")
            attachment.frozen.trained_before[own] = self.trained_before.pop(name)
        self.attached.append(attachment)
        attachment.surroundings = self
        self._freeze(attachment)

    def remove(self, attachment: Attachment) -> None:
        """Unfreeze what was frozen, unless another model inside is still attached."""
        self.attached.remove(attachment)
        attachment.surroundings = None
        if self.attached:
            self._freeze(self.attached[0])
            return
        for name, parameter in self.outer.named_parameters():
            if plain(name) in self.trained_before:
                parameter.requires_grad_(self.trained_before[plain(name)])
        for handle in self.handles:
            handle.remove()
        for name in (RECORD, "save_pretrained"):
            self.outer.__dict__.pop(name, None)

    def _freeze(self, attachment: Attachment) -> None:
        outer, paths = self.outer, [self._path(each) for each in self.attached]
        self.head = frozenset(
            name
            for name in head_names(outer, None) | new_parameters(outer, attachment.anatomy)
            if not any(inside(name, path) for path in paths)
        )
        theirs = {id(p) for each in self.attached for p in each.model.parameters()}
        self.size = 0
        for name, parameter in outer.named_parameters():
            if plain(name) not in self.head and id(parameter) not in theirs:
                self.trained_before.setdefault(plain(name), parameter.requires_grad)
                parameter.requires_grad_(False)
                self.size += parameter.numel()
        kept = self.head | moving_statistics(outer) | head_buffers(outer, self.head)
        names = {plain(name) for name in tensor_names(outer)} - kept
        self.base = frozenset(n for n in names if not any(inside(n, path) for path in paths))
        tensors = {name: t for name, t in named_tensors(outer).items() if name in self.base}
        self.fingerprint = fingerprint(outer.config, tensors)

    def _path(self, attachment: Attachment) -> str:
        modules = self.outer.named_modules()
        return plain(next(f"{n}." for n, m in modules if m is attachment.model)).rstrip(".")

    @property
    def frozen(self) -> frozenset[str]:
        """The names of the frozen part, without those that were unfrozen since."""
        parameters = self.outer.named_parameters(remove_duplicate=False)
        return self.base - {plain(name) for name, p in parameters if p.requires_grad}

    def train_head(self) -> None:
        """Set the modules of the head to train mode."""
        for path, module in self.outer.named_modules():
            if any(plain(f"{path}.{name}") in self.head for name in module._parameters):
                module.train()


# Functions of this module, not closures, so that a model with these hooks can be pickled.


def drop_base(module: nn.Module, state: dict, prefix: str, metadata: dict[str, Any]) -> None:
    """State-dict hook: drop the frozen part around attached models."""
    record: Surroundings = module.__dict__[RECORD]
    metadata[BACKBONE] = record.fingerprint
    frozen = record.frozen
    for name, rest in below(state, prefix):
        if plain(rest) in frozen:
            del state[name]


def compare_bases(
    module: nn.Module, state: dict, prefix: str, metadata: Mapping[str, Any], *_: Any
) -> None:
    """Load hook: warn if the part around is another one, or if ``state`` replaces some of it."""
    record: Surroundings = module.__dict__[RECORD]
    record.prefix = prefix
    name = type(module).__name__
    saved = metadata.get(BACKBONE)
    if other := differences(saved, record.fingerprint) if isinstance(saved, dict) else []:
        warnings.warn(
            f"the checkpoint was trained inside another {name}: {'; '.join(other)}. It computes "
            "something else here; load the model that it was trained in",
            stacklevel=2,
        )
    frozen = record.frozen
    if replaced := [rest for _, rest in below(state, prefix) if plain(rest) in frozen]:
        warnings.warn(
            f"the checkpoint holds {len(replaced)} tensors of {name} that are frozen here, such as "
            f"{replaced[0]}. Loading replaces them, and detach does not restore them",
            stacklevel=2,
        )


def forgive_base(module: nn.Module, incompatible: Any) -> None:
    """After loading: the frozen part is not missing, since the pretrained model holds it."""
    record: Surroundings = module.__dict__[RECORD]
    missing = incompatible.missing_keys
    own = {name for name, rest in below(missing, record.prefix) if plain(rest) in record.base}
    missing[:] = [name for name in missing if name not in own]


class _SaveAdapters:
    """Replaces ``save_pretrained`` of a model around attached ones: it writes the adapters."""

    def __init__(self, outer: PreTrainedModel) -> None:
        self.outer = outer

    def __call__(
        self, save_directory: str | Path, is_main_process: bool = True, **_options: Any
    ) -> None:
        """Write the adapters and the head around; the other options have no effect."""
        if not is_main_process:
            return
        warnings.warn(
            "save_pretrained of a model with a plan inside writes the adapters, as save_adapters "
            "does. To write the whole model, call merge(model) or detach(model) first",
            stacklevel=2,
        )
        save_adapters(self.outer, save_directory)
