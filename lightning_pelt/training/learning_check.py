"""Warns of attached weights that cannot learn: no optimizer, no gradient, or a tiny rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from lightning_pelt.attach import Attachment, find_attachments

# Rates of full fine-tuning end here; those of submodules begin at about 1e-4.
TINY_RATE = 5e-5
TUNERS = ("lightning.pytorch.tuner", "pytorch_lightning.tuner")
Groups = dict[str, list[nn.Parameter]]  # by the name of the method, the head or the base
PATIENCE = 3  # backward passes in which a part of the model may be skipped by chance


class LearningCheck:
    """Looks at optimizers and gradients in the first backward passes of a fit, and warns once.

    The owner, a module or a callback, calls :meth:`on_fit_start` and :meth:`on_after_backward` in
    its hooks of these names. Nothing is raised: a run may leave a part untrained on purpose.

    Args:
        only: the parameters that the owner trains, if it freezes the others itself.
    """

    def __init__(self, only: Callable[[], Iterable[nn.Parameter]] | None = None) -> None:
        self._only = only
        self._steps_left = 0
        self._silent: dict[str, list[nn.Parameter]] = {}

    def on_fit_start(self) -> None:
        """Look again, in a new fit."""
        self._steps_left, self._silent = PATIENCE, {}

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        """Check the optimizers after the first backward, and gradients for some steps."""
        if not self._steps_left or _is_tuning(trainer):
            return
        first, self._steps_left = self._steps_left == PATIENCE, self._steps_left - 1
        if first:
            held = {p: g for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
            self._silent = _check_optimizers(self._groups(module), module, held)
        self._silent = {
            name: without
            for name, parameters in self._silent.items()
            if (without := [p for p in parameters if p.grad is None])
        }
        partly = self._silent if not self._steps_left else {}
        reported = {n: p for n, p in partly.items() if n not in _by_batch(module)}
        reported |= self._all_silent(module)
        if not self._silent:
            self._steps_left = 0
        elif reported:
            self._steps_left = 0
            _warn_of_no_gradient(self._groups(module), module, reported)

    def _all_silent(self, module: LightningModule) -> dict[str, list[nn.Parameter]]:
        """The methods that got no gradient at all, although one pass should reach everything."""
        if not module.automatic_optimization:
            return {}
        groups = self._groups(module)
        return {n: ps for n, ps in self._silent.items() if len(ps) == len(groups[n])}

    def _groups(self, module: LightningModule) -> Groups:
        groups = dict(_attached_groups(module))
        if self._only is None:
            return groups
        own = set(self._only())
        own_groups = {name: [p for p in ps if p in own] for name, ps in groups.items()}
        return {name: parameters for name, parameters in own_groups.items() if parameters}


def _check_optimizers(
    groups: Groups, module: LightningModule, held: dict[nn.Parameter, dict]
) -> dict[str, list[nn.Parameter]]:
    """Warn of what no optimizer holds; returns the parameters that should get gradients."""
    watched: dict[str, list[nn.Parameter]] = {}
    if not any(parameter in held for parameter in module.parameters()):
        return watched  # the strategy has flattened the parameters
    for name, parameters in groups.items():
        absent = [p for p in parameters if p not in held]
        frozen = [p for p in parameters if p in held and not p.requires_grad]
        if absent:
            _warn(
                f"no optimizer holds {_share(absent, parameters)} parameters of {name}, so they do "
                "not learn: let configure_optimizers build the optimizer, from the parameters that "
                "require gradients then",
                module,
                absent,
            )
        if frozen:
            _warn(
                f"{_share(frozen, parameters)} parameters of {name} are frozen, so they do not "
                "learn: something has frozen the model after the plan was attached",
                module,
                frozen,
            )
        rest = [p for p in parameters if p in held and p.requires_grad and p.numel()]
        # Where no parameter has a gradient, the strategy keeps them elsewhere. Full fine-tuning
        # may leave parts of a pretrained base unused.
        if name != "base" and any(p.grad is not None for p in held):
            watched[name] = rest
    _warn_of_outsiders(module, held)
    _warn_of_rates(module, held)
    return watched


def _warn_of_outsiders(module: LightningModule, held: Iterable[nn.Parameter]) -> None:
    own = set(module.parameters())
    outside = [p for p in held if p not in own]
    if outside:
        rank_zero_warn(
            f"an optimizer holds {len(outside)} parameters that {type(module).__name__} does not "
            "hold, so no checkpoint saves their values: make the module that holds them an "
            "attribute of it"
        )


def _warn_of_rates(module: LightningModule, held: dict[nn.Parameter, dict]) -> None:
    tiny: dict[float, list[str]] = {}
    for attachment in find_attachments(module).values():
        for name in attachment.submodules:
            parameters = attachment.parameters_of(name)
            groups = [held[p] for p in parameters if p in held]
            rates = [float(group.get("initial_lr", group["lr"])) for group in groups]
            if rates and 0 < max(rates) <= TINY_RATE:
                tiny.setdefault(max(rates), []).append(name)
    for rate, names in tiny.items():
        rank_zero_warn(
            f"the learning rate of {', '.join(names)} is {rate:g}, which suits full fine-tuning. "
            "Submodules start from nothing and need more, usually 1e-4 to 1e-2: set lr"
        )


def _warn_of_no_gradient(groups: Groups, module: LightningModule, silent: Groups) -> None:
    for name, without in silent.items():
        _warn(
            f"{_share(without, groups[name])} parameters of {name} got no gradient, so they do not "
            "learn: the loss does not depend on them, or the backbone runs under no_grad",
            module,
            without,
        )


def _warn(message: str, module: LightningModule, parameters: list[nn.Parameter]) -> None:
    chosen = {id(p) for p in parameters}
    first = next((name for name, p in module.named_parameters() if id(p) in chosen), None)
    rank_zero_warn(message + (f" (such as {first})" if first else ""))


def _share(some: list[nn.Parameter], of: list[nn.Parameter]) -> str:
    return f"the {len(of)}" if len(some) == len(of) else f"{len(some)} of {len(of)}"


def _by_batch(module: LightningModule) -> set[str]:
    """Groups of which a batch trains only what it names, such as the profiles of its rows."""
    found = find_attachments(module)
    return {
        f"{path}: {method.name}" if len(found) > 1 else method.name
        for path, attachment in found.items()
        for method in attachment.plan.methods
        if method.trained_by_rows
    }


def _attached_groups(module: LightningModule) -> Iterator[tuple[str, list[nn.Parameter]]]:
    """The trained parameters of every attached model, by a name for people."""
    found: dict[str, Attachment] = find_attachments(module)
    for path, attachment in found.items():
        for name, parameters in attachment.parameter_groups().items():
            yield (f"{path}: {name}" if len(found) > 1 else name), parameters


def _is_tuning(trainer: Trainer) -> bool:
    """Whether a search for a learning rate or batch size is running, with other rates."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return any(type(c).__module__.startswith(TUNERS) for c in callbacks)
