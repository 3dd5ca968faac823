"""Checkpoints of what is ours: state-dict hooks that keep it, forgive the frozen rest, and refuse
everything else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import nn

from lightning_pelt.plan import Plan, from_config


class Owner(Protocol):
    """What the hooks ask of an attachment: whose names are whose."""

    plan: Plan
    owned: frozenset[str]
    base: frozenset[str]


# What FSDP1, torch.compile and activation checkpointing put between the parts of a name.
WRAPPERS = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")


def plain(name: str) -> str:
    """A state-dict name without the wrappers' parts."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _attachment(module: nn.Module) -> Owner:
    return module.__dict__["pelt_attachment"]


# The hooks are functions of this module, not closures, so that a model with them can be pickled.


def keep_owned(module: nn.Module, state: dict, prefix: str, _metadata: Any) -> None:
    """State-dict hook: drop the tensors of the frozen base below ``prefix``."""
    owned = _attachment(module).owned
    for name in [name for name in state if name.startswith(prefix)]:
        if plain(name.removeprefix(prefix)) not in owned:
            del state[name]


def refuse_foreign(
    module: nn.Module, state: dict, prefix: str, _metadata: Any, _strict: bool, *_lists: Any
) -> None:
    """Load hook: raise unless ``state`` holds every tensor of ours and nothing unknown.

    Raises:
        RuntimeError: naming what is missing and what is foreign, and by which methods.
    """
    attachment = _attachment(module)
    module.__dict__["pelt_loading_prefix"] = prefix
    given = {plain(name.removeprefix(prefix)) for name in state if name.startswith(prefix)}
    missing = attachment.owned - given
    foreign = given - attachment.owned - attachment.base
    if missing or foreign:
        raise RuntimeError(
            "the checkpoint does not fit the plan. "
            + _summary("It lacks", missing)
            + _summary("It holds what the plan does not have:", foreign)
            + f"The model's plan is {attachment.plan}. Load it into a model with the plan that it "
            "was trained with (`plan` in its hyperparameters, or adapter_config.json)."
        )
    _refuse_other_shapes(module, state, prefix)


def _refuse_other_shapes(module: nn.Module, state: dict, prefix: str) -> None:
    here = {plain(name): tensor for name, tensor in module.named_parameters()}
    for name, tensor in state.items():
        own = here.get(plain(name.removeprefix(prefix))) if name.startswith(prefix) else None
        if own is not None and own.shape != tensor.shape:
            raise RuntimeError(
                f"size mismatch: {plain(name)} is {tuple(tensor.shape)} there and "
                f"{tuple(own.shape)} here: the checkpoint was made with another head, or with "
                f"other options than {_attachment(module).plan}"
            )


def _summary(verb: str, names: Iterable[str]) -> str:
    listed = sorted(names)
    if not listed:
        return ""
    shown = ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
    return f"{verb} {len(listed)} tensor{'s' if len(listed) > 1 else ''}: {shown}. "


def forgive_base(module: nn.Module, incompatible: Any) -> None:
    """After loading: the base's own tensors are not missing, they come with the backbone."""
    prefix = module.__dict__.pop("pelt_loading_prefix", "")
    base = _attachment(module).base
    incompatible.missing_keys[:] = [
        name
        for name in incompatible.missing_keys
        if not (name.startswith(prefix) and plain(name.removeprefix(prefix)) in base)
    ]


def refuse_other_plan(saved: dict[str, Any] | None, plan: Plan) -> None:
    """Compare plans before tensors: some strategies load single tensors, without the hooks above.

    Args:
        saved: the configuration of the checkpoint's plan; None if it does not say.

    Raises:
        ValueError: the plans differ.
    """
    if saved is not None and from_config(saved) != plan:
        raise ValueError(
            f"the checkpoint was made with the plan {from_config(saved)}, and this run has {plan}: "
            "ask for the checkpoint's plan, or start anew without the checkpoint"
        )


def refuse_save_pretrained(*_: Any, **__: Any) -> None:
    """In the place of an attached model's own: it would write our tensors and lack the base's.

    Raises:
        ValueError: always; the message names what to call.
    """
    raise ValueError(
        "save_pretrained would write the submodules as if they were the model: call "
        "save_adapters(model, folder), or merge(model) or detach(model) first"
    )


def install(module: nn.Module) -> list[Any]:
    """Register the three hooks on the root of an attached model; returns their handles."""
    return [
        module.register_state_dict_post_hook(keep_owned),
        module.register_load_state_dict_pre_hook(refuse_foreign),
        module.register_load_state_dict_post_hook(forgive_base),
    ]
