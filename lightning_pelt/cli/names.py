"""The names that a recipe may have, and the nearest of them to a misspelt one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pydoc import locate

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer

from lightning_pelt.data import RowsDataModule, TextDataModule
from lightning_pelt.methods.base import Method
from lightning_pelt.plans import Plan
from lightning_pelt.tasks import Task

# The kinds of classes that a recipe names.
KINDS: dict[type, str] = {
    Plan: "plan",
    Method: "method",
    Task: "task",
    RowsDataModule: "data module",
    Callback: "callback",
    Logger: "logger",
    Optimizer: "optimizer",
}
WORD = re.compile(r"[^\W_]+")


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that is probably meant: of equal letters, initials or words, or nearly equal.

    Example:
        >>> nearest("learning_rate", ["plan", "lr"]), nearest("epochs", ["max_epochs", "devices"])
        ('lr', 'max_epochs')
    """
    folded: dict[str, str] = {}
    for option in names:
        folded.setdefault(_fold(option), option)
    wanted, words = _fold(name), _words(name)
    initials = "".join(word[0] for word in WORD.findall(name)).lower()
    close = [get_close_matches(wanted, folded, n=1, cutoff=cutoff) for cutoff in (0.7, 0.5)]
    guesses = [
        *(each for each in (wanted, initials) if each in folded),
        *(each for each in folded if words and words <= _words(folded[each])),
        *close[0],
        *(each for each in folded if words & _words(folded[each])),
        *close[1],
    ]
    return folded[guesses[0]] if guesses else None


def nearest_option(name: str, options: Sequence[str]) -> str | None:
    """The option that is probably meant, in the group that ``name`` has before its last dot.

    Example:
        >>> options = ["config", "model.plan", "model.lr", "trainer.max_epochs"]
        >>> nearest_option("model.learning_rate", options), nearest_option("max_epoch", options)
        ('model.lr', 'trainer.max_epochs')
    """
    group, _, leaf = name.rpartition(".")
    inside = in_group(group, options)
    if inside:
        return _by_leaf(leaf, inside)
    top = nearest(name, [option for option in options if "." not in option])
    arguments = dict.fromkeys([*_own_arguments(RowsDataModule), *_own_arguments(TextDataModule)])
    data = [f"data.init_args.{argument}" for argument in arguments]
    return top or _by_leaf(leaf, [*options, *data])


def in_group(group: str, options: Sequence[str]) -> list[str]:
    """The options of a group, or of the one whose name is nearest."""
    groups = dict.fromkeys(option.rpartition(".")[0] for option in options if "." in option)
    known = group if group in groups else nearest(group, groups) if group else None
    return [option for option in options if known and option.startswith(f"{known}.")]


def class_names(kind: type) -> list[str]:
    """The names of ``kind`` and its children, without those that cannot be built."""
    names, classes = [], [kind]
    while classes:
        cls = classes.pop(0)
        if not cls.__name__.startswith("_") and not inspect.isabstract(cls):
            names.append(cls.__name__)
        classes += type.__subclasses__(cls)
    return list(dict.fromkeys(names))


def argument_names(path: str) -> list[str]:
    """The arguments of the class at ``path`` and of its parents, to which it passes the rest."""
    parents = getattr(locate(path), "__mro__", ())
    found = dict.fromkeys(name for parent in parents for name in _own_arguments(parent))
    return [name for name in found if name not in ("params", "defaults")]  # of optimizers


def _own_arguments(cls: type) -> list[str]:
    if "__init__" not in vars(cls) or cls is object:
        return []
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    return [each.name for each in parameters if each.name != "self" and each.kind not in rest]


def _by_leaf(leaf: str, options: Sequence[str]) -> str | None:
    leaves: dict[str, str] = {}
    for option in options:
        leaves.setdefault(option.rpartition(".")[2], option)
    leaves.pop("help", None)
    found = nearest(leaf, leaves)
    return leaves[found] if found else None


def _fold(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _words(name: str) -> set[str]:
    return {word for word in WORD.findall(name.lower()) if len(word) > 2}
