"""Docstrings for the manual: the roles and tables of reStructuredText, as Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(\w+):`~?([^`]+)`")
# What formulas of docstrings have, in characters.
TEX = {r"\sigma": "σ", r"\phi": "φ", r"\sum": "Σ", r"\in": "∈"}  # noqa: RUF001
TEX |= {r"\cdot": "·", r"\otimes": "⊗", r"\odot": "⊙", r"\top": "T", r"\,": "", r"\ ": " "}
RULE = re.compile(r"^[ =]*={3,}[ =]*$")


class Roles(griffe.Extension):
    """Rewrites ``:class:`~a.B``` to `B`, formulas to code, and simple tables to blocks."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """``text`` without roles, and with tables that Markdown shows unchanged."""
    lines, inside, rules = [], False, 0
    for line in text.split("\n"):
        if RULE.match(line.strip()) and line.strip():
            rules += 1
            if rules == 1:
                indent = line[: len(line) - len(line.lstrip())]
                lines += [f"{indent}```text"]
                inside = True
            lines.append(line)
            if rules == 3:
                lines.append(f"{indent}```")
                inside, rules = False, 0
            continue
        lines.append(line.replace("``", "") if inside else ROLE.sub(_code, line))
    return "\n".join(lines)


def _code(match: re.Match[str]) -> str:
    role, target = match.groups()
    if role == "math":
        target = re.sub(r"\\(?:operatorname|mathrm|text)\{(\w+)\}", r"\1", target)
        for tex, character in TEX.items():
            target = target.replace(tex, character)
        return f"`{target}`"
    return f"`{target.rpartition('.')[2]}`"
