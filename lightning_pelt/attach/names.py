"""The names of tensors in a state dict, with and without the parts that wrappers insert."""

from __future__ import annotations

from typing import Any

from torch import nn

# What FSDP1, torch.compile and activation checkpointing insert into names.
WRAPPERS = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")
# Ends the name of a tensor of the base that a run has trained although the plan does not. Without
# the mark, no state may replace a tensor of the base.
TRAINED = ".pelt_trained"

SAVING = ("state_dict", "_save_to_state_dict", "get_extra_state")


def plain(name: str) -> str:
    """A state-dict name without the parts that wrappers insert."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def tensor_names(module: nn.Module) -> set[str]:
    """The names of all parameters and persistent buffers of ``module``, as in a state dict.

    Modules may override ``state_dict``; these names do not depend on it.
    """
    names = set()
    for path, child in module.named_modules(remove_duplicate=False):
        buffers = child._buffers.keys() - child._non_persistent_buffers_set
        tensors = {**child._parameters, **{name: child._buffers[name] for name in buffers}}
        for name, tensor in tensors.items():
            if tensor is not None and not name.startswith("_flat_param"):  # of FSDP1
                full = f"{path}.{name}" if path else name
                # These two wrappers take their part out of state dicts, torch.compile does not.
                names.add(full.replace(WRAPPERS[0], "").replace(WRAPPERS[2], ""))
    return names


def saves_otherwise(module: nn.Module) -> bool:
    """Whether the state dict of ``module`` may have other names than :func:`tensor_names`.

    A module inside may override ``state_dict`` or what it calls, or have hooks that change it.
    """
    modules = list(module.modules())
    classes = dict.fromkeys(map(type, modules))
    pairs = ((getattr(cls, name), getattr(nn.Module, name)) for cls in classes for name in SAVING)
    return any(own is not usual for own, usual in pairs) or any(
        each._state_dict_hooks or each._state_dict_pre_hooks for each in modules
    )


def below(state: dict, prefix: str) -> list[tuple[str, str]]:
    """The names in ``state`` that start with ``prefix``, each with the part after it."""
    return [(name, name.removeprefix(prefix)) for name in state if name.startswith(prefix)]


def match_names(module: nn.Module, state: dict, prefix: str, *_: Any) -> None:
    """Load hook: rename the tensors in ``state`` that were saved with other wrappers.

    A model that was compiled, or wrapped for data parallelism or activation checkpointing, loads
    into a plain one, and the reverse.
    """
    names = tensor_names(module)
    by_bare_name: dict[str, list[str]] = {}
    for name in names:
        by_bare_name.setdefault(_bare(name), []).append(name)
    for name, rest in below(state, prefix):
        unmarked = rest.removesuffix(TRAINED)
        if unmarked in names:
            continue
        found = by_bare_name.get(_bare(unmarked), [])
        if len(found) == 1:
            new = prefix + found[0] + (TRAINED if unmarked != rest else "")
            if new not in state:
                state[new] = state.pop(name)


def _bare(name: str) -> str:
    """A name without the parts of all wrappers, those of ``DistributedDataParallel`` too."""
    return ".".join(part for part in plain(name).split(".") if part != "module")
