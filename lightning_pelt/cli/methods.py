"""``lightning-pelt methods``: what a plan can have, and the options of each method."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from textwrap import fill

import docstring_parser
from tabulate import tabulate

from lightning_pelt import methods
from lightning_pelt.cli.errors import one_line_errors
from lightning_pelt.cli.overview import OTHERS
from lightning_pelt.cli.parser import SuggestingParser
from lightning_pelt.cli.plugins import load_plugins
from lightning_pelt.methods.base import Method
from lightning_pelt.methods.config import public_path
from lightning_pelt.methods.gate import Gate
from lightning_pelt.utils.errors import unknown

PROG = "lightning-pelt methods"
ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?([^`]+)`")
WIDTH = 96  # columns of the output


def main(args: Sequence[str]) -> None:
    """Print the methods, or the options of one.

    Args:
        args: nothing, or the name of a method, or ``Gate``.
    """
    parser = SuggestingParser(prog=PROG, description=OTHERS["methods"])
    parser.add_argument("name", nargs="?", help="Method, or Gate; by default all are listed.")
    with one_line_errors(PROG):
        name = parser.parse_args(args).name
        print(overview() if name is None else options_of(_find(name)))


def overview() -> str:
    """A table of the methods: name, what it is, and its sites by default."""
    rows = [
        (name, _summary(kind), ", ".join(_sites(kind))) for name, kind in sorted(_methods().items())
    ]
    table = tabulate(rows, ["method", "what it is", "sites"], maxcolwidths=[None, 56, 24])
    return f"{table}\n\nTo see the options of one, or of gates:  {PROG} NAME"


def options_of(kind: type) -> str:
    """A method's options with their defaults, and how a recipe names it."""
    text = docstring_parser.parse(kind.__doc__ or "")
    described = {param.arg_name: _plain(param.description or "") for param in text.params}
    rows = [
        (field.name, _default(field), described.get(field.name, ""))
        for field in dataclasses.fields(kind)
    ]
    table = tabulate(rows, ["option", "default", ""], maxcolwidths=[None, 18, 56])
    title = fill(_summary(kind), WIDTH)
    name = public_path(kind).rpartition(".")[2]
    example = f"{{class_path: {name}, init_args: {{{rows[0][0]}: ...}}}}"
    if kind is Gate:
        example = f"gate: {{{rows[0][0]}: masked}}"
    return f"{name}\n{title}\n\n{table}\n\nIn a recipe:  {example}"


def names() -> list[str]:
    """What :func:`main` takes."""
    return sorted([*_methods(), "Gate"])


def _methods() -> dict[str, type[Method]]:
    found = {name: getattr(methods, name) for name in methods.__all__} | load_plugins()
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, Method) and dataclasses.is_dataclass(kind)
    }


def _find(name: str) -> type:
    known: dict[str, type] = {**_methods(), "Gate": Gate}
    folded = {each.lower(): kind for each, kind in known.items()}
    if name.lower() not in folded:
        raise unknown("method", name, sorted(known))
    return folded[name.lower()]


def _summary(kind: type) -> str:
    """The first sentence of the docstring, up to its formula."""
    text = docstring_parser.parse(kind.__doc__ or "")
    first = f"{text.short_description or ''} {text.long_description or ''}"
    before_formula = re.split(r"[,:]? :math:", _plain(first))[0]
    return before_formula.split(". ")[0].rstrip(".:") + "."


def _plain(text: str) -> str:
    plain = ROLE.sub(lambda role: role[0] if role[0].startswith(":math") else role[1], text)
    return " ".join(plain.replace("``", "").split())


def _sites(kind: type[Method]) -> list[str]:
    sites = {field.name: field.default for field in dataclasses.fields(kind)}.get("sites")  # type: ignore[arg-type]
    if sites is None or sites is dataclasses.MISSING:
        return []
    return [sites] if isinstance(sites, str) else list(sites)


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "(required)"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(str, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)  # as YAML has it
    return str(value)
