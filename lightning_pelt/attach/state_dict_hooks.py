"""State-dict hooks of an attached model: they drop the frozen base and refuse what does not fit."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_pelt.attach.awaiting import Awaited
from lightning_pelt.attach.fingerprint import differences
from lightning_pelt.attach.names import TRAINED, below, match_names, plain
from lightning_pelt.attach.tensor_checks import refuse_unfit
from lightning_pelt.plans.plan import Plan, from_config


class Owner(Protocol):
    """The part of an attachment that the hooks read."""

    plan: Plan
    base: frozenset[str]
    fingerprint: dict[str, Any]
    awaited: Awaited

    def arrive(self, given: Iterable[str]) -> None: ...

    @property
    def head(self) -> frozenset[str]: ...

    @property
    def owned(self) -> frozenset[str]: ...

    @property
    def trained_base(self) -> frozenset[str]: ...

    def remember(self, names: Iterable[str]) -> None: ...


# The entry for the fingerprint of the base in the metadata that torch keeps beside a state dict.
BACKBONE = "pelt_backbone"
ADAPTER = "pelt_adapter"  # the entry for the name of the adapter, where there are several
LOADING = "pelt_loading"  # the attribute of a model between the hooks before and after loading
OUTSIDE = "pelt_outside"  # the attribute of a model whose base a wrapper drops
SEVERAL = "pelt_adapters"  # the attribute of a model that refers to its named adapters


def _attachment(module: nn.Module) -> Owner:
    return module.__dict__["pelt_attachment"]


# The hooks are functions of this module, not closures, so that a model with them can be pickled.


def keep_owned(module: nn.Module, state: dict, prefix: str, metadata: dict[str, Any]) -> None:
    """State-dict hook: drop the frozen base below ``prefix``, and mark what was trained of it."""
    metadata[BACKBONE] = _attachment(module).fingerprint
    if (several := module.__dict__.get(SEVERAL)) is not None:
        metadata[ADAPTER] = several.active
        several.tell_left_out()
    if not module.__dict__.get(OUTSIDE):
        _drop_base(module, state, prefix)


def _drop_base(module: nn.Module, state: dict, prefix: str) -> None:
    owned, trained = _attachment(module).owned, _attachment(module).trained_base
    for name, rest in below(state, prefix):
        if plain(rest) in owned:
            continue
        tensor = state.pop(name)
        if plain(rest) in trained:
            state[name + TRAINED] = tensor


def refuse_foreign(
    module: nn.Module,
    state: dict,
    prefix: str,
    metadata: dict[str, Any],
    *_: Any,
) -> None:
    """Load hook: raise unless ``state`` holds every owned tensor and no other.

    Or, where the plan was attached on the meta device, tensors that the base awaits.

    Raises:
        RuntimeError: see :func:`check`.
    """
    replaced = check(module, state, prefix, metadata)
    given = [plain(rest) for _, rest in below(state, prefix)]
    module.__dict__[LOADING] = prefix, given, _attachment(module).awaited.are_in(given)
    if (several := module.__dict__.get(SEVERAL)) is not None:
        several.tell_other_name(metadata.get(ADAPTER))
    if replaced:
        verb = "the run of this checkpoint has trained parts of the base too. Loading replaces"
        warnings.warn(_summary(verb, replaced) + "`detach` restores them.", stacklevel=2)
        _attachment(module).remember(replaced)


def check(
    module: nn.Module, state: dict, prefix: str, metadata: Mapping[str, Any]
) -> frozenset[str]:
    """Compare ``state`` with what an attached model owns, and rename its tensors accordingly.

    Returns:
        The names of the tensors of the base that ``state`` replaces, since its run trained them.

    Raises:
        RuntimeError: tensors are missing, unknown, or of the base, or have other shapes or dtypes
            or no finite values; the message names them.
    """
    attachment = _attachment(module)
    match_names(module, state, prefix)
    marked = [name for name, _ in below(state, prefix) if name.endswith(TRAINED)]
    given = {plain(rest) for name, rest in below(state, prefix) if not name.endswith(TRAINED)}
    trained = {plain(name.removeprefix(prefix).removesuffix(TRAINED)) for name in marked}
    missing = attachment.owned - given - trained
    awaited = attachment.awaited
    base = (given & attachment.base) - awaited.names
    if awaited.are_in(given):
        _refuse_unfit(module, state, prefix)
        return frozenset()
    if awaited.names - attachment.head:
        raise RuntimeError(
            "the plan was attached on the meta device, and its base has no values yet: load the "
            "base before the adapters, model.load_state_dict(state, assign=True). Loaders that ask "
            "state_dict() for the names (accelerate, torch.distributed.checkpoint) find the base "
            "before the plan is attached only"
        )
    foreign = (given | trained) - attachment.owned - attachment.base
    if missing or foreign or base:
        raise RuntimeError(
            "the checkpoint does not fit the plan. "
            + _summary("It lacks", missing)
            + _summary("It holds what the plan does not have:", foreign)
            + _summary("It would replace the frozen base:", base)
            + ("If its run trained them, name their modules in head=[...]. " if base else "")
            + f"The model's plan is {attachment.plan}. Load it into a model with the plan that it "
            "was trained with (`plan` in its hyperparameters, or adapter_config.json)."
        )
    for name in marked:
        state[name.removesuffix(TRAINED)] = state.pop(name)
    _refuse_unfit(module, state, prefix)
    _compare_backbones(attachment, metadata.get(BACKBONE))
    return attachment.base & trained


def _refuse_unfit(module: nn.Module, state: dict, prefix: str) -> None:
    if module.__dict__.get(OUTSIDE):  # its parameters are flat, and FSDP1 compares them itself
        return
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    given = {plain(rest): state[name] for name, rest in below(state, prefix)}
    for name in given.keys() & _attachment(module).awaited.names:
        if isinstance(given[name], Tensor):  # of a large base: its shapes alone
            given[name] = torch.empty_like(given[name], device="meta")
    try:
        refuse_unfit(given, {plain(name): tensor for name, tensor in tensors})
    except RuntimeError as error:
        raise RuntimeError(f"{error}. The model's plan is {_attachment(module).plan}") from error


def _compare_backbones(attachment: Owner, saved: Any) -> None:
    """Warn if the base is not the one that a checkpoint was trained on."""
    other = differences(saved, attachment.fingerprint) if isinstance(saved, dict) else []
    if other:
        name = f" {saved['name']!r}" if saved.get("name") else ""
        warnings.warn(
            f"the checkpoint was trained on another backbone{name}: {'; '.join(other)}. It "
            "computes something else here; load the backbone that it was trained on",
            stacklevel=2,
        )


def _summary(verb: str, names: Iterable[str]) -> str:
    listed = sorted(names)
    if not listed:
        return ""
    shown = ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
    return f"{verb} {len(listed)} tensor{'s' if len(listed) > 1 else ''}: {shown}. "


def forgive_base(module: nn.Module, incompatible: Any) -> None:
    """After loading: the tensors of the base are not missing, since the backbone holds them.

    In a file of the base they are, where it awaits them, and nothing else is.
    """
    prefix, given, of_base = module.__dict__.pop(LOADING, ("", (), False))
    attachment, missing = _attachment(module), incompatible.missing_keys
    attachment.arrive(given)
    awaited = attachment.awaited.names
    for name, rest in below(dict.fromkeys(missing), prefix):
        own = plain(rest)
        if own not in awaited if of_base else own in attachment.base:
            missing.remove(name)


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


def refuse_unsaved(module: nn.Module, owned: Iterable[str]) -> None:
    """Raise if the state dict of ``module`` leaves out tensors that training changes.

    Raises:
        ValueError: a module inside overrides ``state_dict``; the message names it.
    """
    state = {plain(name) for name in module.state_dict()}
    unsaved = sorted(name for name in owned if name not in state)
    if not unsaved:
        return
    hosts = [
        f"{path} ({type(child).__name__})"
        for path, child in module.named_modules()
        if any(name.startswith(f"{path}.") for name in unsaved)
        and type(child).state_dict is not nn.Module.state_dict
    ]
    where = hosts[0] if hosts else unsaved[0]
    raise ValueError(
        f"{where} overrides state_dict. {_summary('It leaves out', unsaved)}The plan trains them, "
        "and no checkpoint would hold them: attach to other sites, or load the base in another "
        "quantisation"
    )


def install(module: nn.Module) -> list[Any]:
    """Register the hooks of an attached model; returns their handles."""
    return [
        module.register_state_dict_post_hook(keep_owned),
        module.register_load_state_dict_pre_hook(refuse_foreign),
        module.register_load_state_dict_post_hook(forgive_base),
    ]


class Matching:
    """Matches names in a module that holds an attached model.

    Wrappers between the two change the names of the model's tensors, and only the outer module sees
    these names.
    """

    def __init__(self, outer: nn.Module) -> None:
        self.outer = outer
        self.handle = outer.register_load_state_dict_pre_hook(match_names)

    def remove(self) -> None:
        self.handle.remove()


class DropOutside:
    """Drops the base of an attached model in the state dict of the wrapper that holds the model.

    FSDP1 wraps modules from outside, and has to find the tensors of a unit in the state dict before
    it gives them back, after the hooks of the modules inside.
    """

    def __init__(self, outer: nn.Module, model: nn.Module) -> None:
        self.model = model
        (self.path,) = (plain(f"{n}.") for n, each in outer.named_modules() if each is model)
        model.__dict__[OUTSIDE] = True
        outer.register_state_dict_post_hook(self)

    def __call__(self, outer: nn.Module, state: dict, prefix: str, metadata: Any) -> None:
        _drop_base(self.model, state, prefix + self.path)
