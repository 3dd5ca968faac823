"""The table of families as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import transformers

from families.catalogue import KINDS, families
from families.check import METHODS, WITHOUT_PREFIX, Verdict, judge_all, place_of
from families.family import Family
from families.left_out import LEFT_OUT

HEADER = (
    f"| Family | Checkpoint | {' | '.join(METHODS)} | Why not |\n|{'---|' * (3 + len(METHODS))}"
)


class Row(NamedTuple):
    """What was found of a family.

    Attributes:
        label: of the family.
        verdicts: by method.
        fault: what does not hold; empty if all does.
    """

    label: str
    verdicts: dict[str, Verdict]
    fault: str = ""


def examined(family: Family) -> Row:
    """Check a family; never raises."""
    verdicts: dict[str, Verdict] = {}
    try:
        place = place_of(family)
        assert place == family.place, f"found {place}, expected {family.place}"
        verdicts = judge_all(family)
    except Exception as error:
        return Row(family.label, verdicts, f"{type(error).__name__}: {error}")
    return Row(family.label, verdicts)


def markdown(rows: Iterable[Row]) -> str:
    """The whole page."""
    found = {row.label: row for row in rows}
    lines = [_head(list(found.values()))]
    for kind, entries in families().items():
        lines += [f"\n## {kind}\n", HEADER]
        lines += [_line(family, found[family.label]) for family in entries]
    lines += ["\n## Types that are not listed\n"]
    lines += [f"- {reason}: {', '.join(sorted(names))}" for reason, names in LEFT_OUT.items()]
    return "\n".join(lines) + "\n"


def _head(rows: list[Row]) -> str:
    counts = ", ".join(f"{method} {sum(_takes(row, method) for row in rows)}" for method in METHODS)
    every = sum(all(_takes(row, method) for method in METHODS) for row in rows)
    without = sum(_takes(row, WITHOUT_PREFIX) for row in rows)
    return HEAD.format(
        version=transformers.__version__,
        entries=len(rows),
        kinds=len(KINDS),
        counts=counts,
        every=every,
        without=without,
    )


HEAD = """# Families of transformers

Printed by `python -m families` in `tests/`, with transformers {version}. {entries} entries in
{kinds} kinds; {counts}; all four: {every}, and all but the
prefix: {without}.

Every entry is a tiny random model with the options of the checkpoint beside it. *Yes* means:

- the method sits where the entry says, which was read in the model's code where its structure is
  unusual, and else compared with the known form of such blocks;
- every trained tensor gets a gradient that is finite and not zero, and the base gets none;
- padding, later tokens, a cache and other rows of the batch change no output that they do not
  change in the base;
- `detach` leaves the model as it was, and it computes the same, bit for bit.

*Yes, with inputs* means that `attach` needs `example_inputs=`. UniPELT is here an adapter, a prefix
and LoRA; *without a prefix* is `UniPELT(methods=[Adapter(), LoRA()])`, checked in the same way,
where the prefix is the only reason against all three."""


def _takes(row: Row, method: str) -> bool:
    verdict = row.verdicts.get(method)
    return not row.fault and verdict is not None and verdict.takes


def _line(family: Family, row: Row) -> str:
    if row.fault:
        cells, why = ["fault"] * len(METHODS), row.fault
    else:
        cells = [_cell(row.verdicts[method]) for method in METHODS]
        if _takes(row, WITHOUT_PREFIX):
            cells[-1] = "without a prefix"
        why = "; ".join(dict.fromkeys(family.without.values()))
    checkpoint = family.checkpoint.replace("|", " ")
    return f"| {family.label} | {checkpoint} | {' | '.join(cells)} | {why.replace('|', ' ')} |"


def _cell(verdict: Verdict) -> str:
    if not verdict.takes:
        return "no"
    return "yes, with inputs" if verdict.examples else "yes"
