"""Explains a mistake in a line: the wrong name, its place, and the nearest name of its kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pydoc import locate
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from lightning.pytorch import Trainer

from lightning_pelt.cli.names import (
    KINDS,
    argument_names,
    class_names,
    in_group,
    nearest,
    nearest_option,
)
from lightning_pelt.data import RowsDataModule
from lightning_pelt.methods.base import Method
from lightning_pelt.training.module import PELTModule

# The classes whose arguments are the options of a group.
GROUPS = {"model": PELTModule, "trainer": Trainer}
MAX_OPTIONS, MAX_CLASSES = 24, 16  # names that a message lists

# How jsonargparse refuses an unknown command, option, argument of a class, and class.
COMMAND = re.compile(r"invalid choice: '([\w-]+)' \(choose from (.*)\)")
OPTION = re.compile(
    r"unrecognized arguments: --([\w.+-]+)|(?:does not accept option|^Option) '([\w.]+)'"
)
ARGUMENT = re.compile(
    r"class_path '([\w.]+)':(?:(?!class_path ').)*?Option '([\w.]+)' is not accepted", re.DOTALL
)
# The same where a class is given for a callable.
MADE = re.compile(r"Option '([\w.]+)' is not accepted.*Namespace\(class_path='([\w.]+)'")
CLASS = re.compile(
    r"Expected a dot import path string: ([\w.]+)$"
    r"|class_path '([\w.]+)':\s+(?:module '[\w.]+' has no attribute|No module named)"
    r"|does not correspond to a subclass.*Given value: ([\w.]+)$",
    re.MULTILINE | re.DOTALL,
)
NO_CLASS = re.compile(r"Expected an instantiatable class, but|Not a valid subclass of")
REQUIRED = re.compile(
    r'Parser key "([\w.]+)":\s+Expected a .*\. Got value: None$'
    r"|the following arguments are required: (?:(?:fit|validate|test|predict)\.)?([\w., ]+)"
)
KEY = re.compile(r'Parser key "([\w.]+)":')
OWNER = re.compile(r"Problem with given class_path '([\w.]+)':")
# Lines of a message that do not name a reason.
NOISE = re.compile(
    r"Expected a path but|Does not validate against|Expected a <class 'NoneType'>|Subtypes|Errors$"
    r"|Given value|Problem with|Not a valid subclass|Subclass types|a (class path|dict)"
)


class Place(NamedTuple):
    """Where in a recipe a mistake is.

    Attributes:
        path: the options from the outermost on: ``model.plan.groups.methods``.
        kinds: the classes whose children are expected there.
    """

    path: str
    kinds: list[type]


def explain(message: str, options: Sequence[str]) -> str:
    """A message of jsonargparse in one line, with the nearest name to a misspelt one.

    Args:
        message: of the parser.
        options: the names of the parser's options, without dashes.
    """
    if found := COMMAND.search(message):
        commands = re.findall(r"[\w-]+", found[2])
        return _unknown(f"unknown command {found[1]!r}", nearest(found[1], commands), commands)
    if found := OPTION.search(message):
        return unknown_option((found[1] or found[2]).rstrip("+"), options)
    place = _place(message)
    start = f"{place.path}: " if place.path else ""
    made, argument = MADE.search(message), ARGUMENT.search(message)
    if made or argument:
        name, cls = made.groups() if made else reversed(argument.groups())  # type: ignore[union-attr]
        names = argument_names(cls)
        wrong = f"{start}{cls.rpartition('.')[2]} has no option {name!r}"
        return _unknown(wrong, nearest(name, names), names)
    if found := CLASS.search(message):
        return start + _wrong_class(found[1] or found[2] or found[3], place.kinds)
    if NO_CLASS.search(message):
        return f"{start}name its class before its options{_listed(place.kinds)}"
    if found := REQUIRED.search(message):
        missing = found[1] or found[2]
        return f"{missing} {'are' if ', ' in missing else 'is'} required"
    return shorten(message)


def unknown_option(name: str, options: Sequence[str]) -> str:
    """The message for an option that does not exist, named with its group: ``model.learning``."""
    if name.startswith("print_shtab"):
        return f"unknown option {name!r}: `lightning-pelt completion SHELL` prints the script"
    group = in_group(name.rpartition(".")[0], options)
    return _unknown(f"unknown option {name!r}", nearest_option(name, options), group)


def without_class(arguments: Sequence[str], options: Sequence[str]) -> str | None:
    """The message for a help option inside a class, if no class is named; otherwise None.

    The parser answers ``--model.plan.groups.help`` with a mistake in ``--model.plan``.

    Args:
        arguments: of the command line.
        options: the names of the parser's options, without dashes.
    """
    for argument, value in pairwise([*arguments, ""]):
        name = argument.removeprefix("--")
        if not name.endswith(".help") or name in options or (value and value[0] != "-"):
            continue
        owners = [o for o in options if o.endswith(".help") and name.startswith(o[:-4])]
        if owners:
            return (
                f"{argument} needs the name of a class: `--{max(owners, key=len)} CLASS` lists the "
                "options of a class, and `lightning-pelt methods NAME` those of a method or of Gate"
            )
    return None


def shorten(message: str) -> str:
    """The reasons in a message of jsonargparse, in one line, after the option with the mistake.

    Example:
        >>> shorten('Parser key "model.lr":\\n  Expected a <class \\'float\\'>. Got value: high')
        "model.lr: Expected a <class 'float'>. Got value: high"
    """
    reasons = []
    for line in message.splitlines():
        text = KEY.sub("", line).strip().removeprefix("- ").rstrip(":")
        if text and not NOISE.match(text) and text not in reasons:
            reasons.append(text)
    path = _place(message).path
    if not path or not reasons:
        return " ".join(message.split())
    given = re.search(r"Given value: (\S+)$", message)
    return f"{path}: {'; or: '.join(reasons)}" + (f". Got value: {given[1]}" if given else "")


def _unknown(start: str, meant: str | None, names: Sequence[str]) -> str:
    if meant:
        return f"{start}: did you mean {meant!r}?"
    shown = [name for name in names if not name.endswith(".help")]
    return f"{start}: there are {', '.join(shown)}" if 0 < len(shown) <= MAX_OPTIONS else start


def _wrong_class(name: str, kinds: Sequence[type]) -> str:
    if name.endswith((".yaml", ".yml")):
        return f"there is no file {name}"
    short = name.rpartition(".")[2]
    found = [label for kind, label in KINDS.items() if short in class_names(kind)]
    if KINDS[Method] in found and not kinds:
        return f"{short!r} is a method: `lightning-pelt methods {short}` lists its options"
    expected = " or ".join(_label(kind) for kind in kinds) or "class that a recipe may name"
    # A class of another kind is not misspelt, so that no name is near to it.
    names = [] if found else [n for kind in kinds or KINDS for n in class_names(kind)]
    meant = nearest(short, names)
    is_other = f"is {_a(found[0])}, not" if found else "is not"
    hint = f": did you mean {meant!r}?" if meant else ""
    return f"{name!r} {is_other} {_a(expected)}{_listed(kinds)}{hint}"


def _listed(kinds: Sequence[type]) -> str:
    names = sorted({name for kind in kinds for name in class_names(kind)})
    return f" ({', '.join(names)})" if 0 < len(names) <= MAX_CLASSES else ""


def _label(kind: type) -> str:
    return KINDS.get(kind) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _place(message: str) -> Place:
    """The place that the first reason of a message is about."""
    first = message.partition("Given value")[0]
    keys = [found[1] for found in KEY.finditer(first)]
    if not keys:
        return Place("", [])
    group, _, name = keys[-1].rpartition(".")
    owner = GROUPS.get(group)
    owners = OWNER.findall(first[: first.rindex(f'"{keys[-1]}"')])
    if owners:
        owner, name = locate(owners[-1]), keys[-1]  # type: ignore[assignment]
    return Place(".".join(keys), [RowsDataModule] if keys == ["data"] else _kinds(owner, name))


def _kinds(owner: Any, argument: str) -> list[type]:
    """The classes in the type of an argument of ``owner``."""
    try:
        return list(dict.fromkeys(_classes(get_type_hints(owner.__init__).get(argument))))
    except (AttributeError, NameError, TypeError):
        return []


def _classes(hint: Any) -> list[type]:
    if isinstance(hint, type) and not get_args(hint):
        return [hint] if hint.__module__ not in ("builtins", "types") else []
    made = get_origin(hint) is Callable  # given as the class of what it returns
    return [cls for each in get_args(hint)[-1 if made else 0 :] for cls in _classes(each)]
