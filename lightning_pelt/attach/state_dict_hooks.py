"""State-dict hooks of an attached model: they drop the frozen base and refuse what does not fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import nn

from lightning_pelt.plans.plan import Plan, from_config


class Owner(Protocol):
    """The part of an attachment that the hooks read."""

    plan: Plan
    owned: frozenset[str]
    base: frozenset[str]


# What FSDP1, torch.compile and activation checkpointing insert into names.
WRAPPERS = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")


def plain(name: str) -> str:
    """A state-dict name without the parts that wrappers insert."""
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
    """Load hook: raise unless ``state`` holds every owned tensor and no unknown one.

    Raises:
        RuntimeError: tensors are missing or unknown; the message names them.
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
    """After loading: the tensors of the base are not missing, since the backbone holds them."""
    prefix = module.__dict__.pop("pelt_loading_prefix", "")
    base = _attachment(module).base
    incompatible.missing_keys[:] = [
        name
        for name in incompatible.missing_keys
        if not (name.startswith(prefix) and plain(name.removeprefix(prefix)) in base)
    ]


def refuse_other_plan(saved: dict[str, Any] | None, plan: Plan) -> None:
    """Compare plans before tensors, since some strategies load tensors without these hooks.

    Args:
        saved: the configuration of the checkpoint's plan; None if it has none.

    Raises:
        ValueError: the plans differ.
    """
    if saved is not None and from_config(saved) != plan:
        raise ValueError(
            f"the checkpoint was made with the plan {from_config(saved)}, and this run has {plan}: "
            "use the checkpoint's plan, or start without the checkpoint"
        )


def refuse_save_pretrained(*_: Any, **__: Any) -> None:
    """Replaces ``save_pretrained`` of an attached model, which would leave out the base.

    Raises:
        ValueError: always; the message names what to call.
    """
    raise ValueError(
        "save_pretrained would write the submodules without the base: call "
        "save_adapters(model, folder), or merge(model) or detach(model) first"
    )


def install(module: nn.Module) -> list[Any]:
    """Register the three hooks on the root of an attached model; returns their handles."""
    return [
        module.register_state_dict_post_hook(keep_owned),
        module.register_load_state_dict_pre_hook(refuse_foreign),
        module.register_load_state_dict_post_hook(forgive_base),
    ]
