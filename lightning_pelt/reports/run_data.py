"""Read a run of Lightning's ``CSVLogger``: its scalars, settings, and what is odd in its files."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import yaml

from lightning_pelt.reports.run_folder import METRICS, SETTINGS, RunFolder, find_run

MOST_SETTINGS, DEEPEST, LONGEST = 2000, 12, 200  # entries, levels, characters of a value
PARAMETERS = "parameters/"


@dataclass
class Series:
    """One scalar over the steps, which rise. Values may be NaN or infinite."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, value: float) -> int:
        """Add a value; those of the same and of later steps were logged before a resume.

        Returns:
            How many values the new one replaces.
        """
        replaced = 0
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
            replaced += 1
        self.steps.append(step)
        self.values.append(value)
        return replaced

    def finite(self) -> list[tuple[int, float]]:
        """The steps and values that are numbers."""
        pairs = zip(self.steps, self.values, strict=True)
        return [(step, value) for step, value in pairs if math.isfinite(value)]


@dataclass
class Run:
    """What a run has logged.

    Attributes:
        name: the last two parts of its folder.
        location: path or URL of its folder.
        written: when ``metrics.csv`` was written last.
        series: scalars by name, without ``step`` and ``epoch``.
        epochs: the epoch by step.
        settings: hyperparameters as text, by dotted name.
        parameters: what ``ParameterCount`` has counted, without ``parameters/``.
        notes: what a reader of the run should know, as sentences.
    """

    name: str
    location: str
    written: datetime | None = None
    series: dict[str, Series] = field(default_factory=dict)
    epochs: Series = field(default_factory=Series)
    settings: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def last_step(self) -> int | None:
        """The last step with a value."""
        return max((each.steps[-1] for each in self.series.values()), default=None)


def read_run(location: str) -> Run:
    """Read a run, also one that is still being written.

    A last line that is not complete is left out. Where steps repeat or go back, as after a resume
    into the same file, the latest values count.

    Args:
        location: see :func:`find_run`.

    Raises:
        FileNotFoundError: there is no run; see :func:`find_run`.
        ValueError: ``metrics.csv`` is not one of the ``CSVLogger``.
    """
    folder = find_run(location)
    run = Run(folder.name, folder.location, folder.written(), notes=list(folder.notes))
    _read_metrics(run, _complete_lines(run, folder.read(METRICS) or b""))
    _read_settings(run, folder)
    return run


def _complete_lines(run: Run, content: bytes) -> str:
    """The text up to the last end of a line: what follows is still being written."""
    text = content.decode("utf-8-sig", errors="replace")
    end = text.rfind("\n") + 1
    if text[end:].strip():
        run.notes.append(
            f"The last line of {METRICS} is not complete and is left out: the run is writing, or "
            "was stopped."
        )
    return text[:end]


def _read_metrics(run: Run, text: str) -> None:
    rows = csv.reader(io.StringIO(text, newline=""))
    where = f"{run.location}/{METRICS}"
    try:
        header = next(rows, None)
        if header is None:
            run.notes.append(f"{METRICS} has no values yet.")
            return
        if "step" not in header:
            seen = ", ".join(map(repr, header[:5]))
            raise ValueError(f"{where} has no column 'step', which CSVLogger writes; it has {seen}")
        names = _distinct(header)
        columns = {name: run.series.setdefault(name, Series()) for name in names}
        counts = Counter[str]()
        for row in rows:
            _read_row(names, row, columns, counts)
    except csv.Error as error:
        raise ValueError(f"{where}, line {rows.line_num}: {error}") from error
    run.series.pop("step")
    run.epochs = run.series.pop("epoch", run.epochs)
    run.series = {name: series for name, series in run.series.items() if series.steps}
    _describe(run, counts)


def _distinct(names: list[str]) -> list[str]:
    """Names of columns, with a number after those that repeat."""
    seen = Counter[str]()
    for name in names:
        seen[name] += 1
    taken = Counter[str]()
    distinct = []
    for name in names:
        taken[name] += 1
        distinct.append(f"{name} ({taken[name]})" if taken[name] > 1 else name)
    return distinct


def _read_row(
    names: list[str], row: list[str], columns: Mapping[str, Series], counts: Counter[str]
) -> None:
    if not row:
        return
    cells = dict(zip(names, row, strict=False))
    step = _number(cells.pop("step", ""))
    if len(row) != len(names) or step is None or not math.isfinite(step):
        counts["lines"] += 1
        return
    for name, cell in cells.items():
        if cell == "":
            continue
        value = _number(cell)
        if value is None:
            counts["cells"] += 1
        else:
            replaced = columns[name].add(int(step), value)
            counts["replaced"] += replaced if name != "epoch" else 0


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _describe(run: Run, counts: Counter[str]) -> None:
    """Notes on what was left out or cannot be drawn."""
    if not run.series:
        run.notes.append(f"{METRICS} has no values yet.")
    if counts["replaced"]:
        run.notes.append(
            f"Steps repeat or go back, as in a resumed run: {counts['replaced']:,} earlier values "
            "are replaced by later ones."
        )
    if counts["lines"]:
        run.notes.append(
            f"Left out: {counts['lines']:,} lines of {METRICS} without a step or with too few or "
            "too many values."
        )
    if counts["cells"]:
        run.notes.append(f"Left out: {counts['cells']:,} values of {METRICS} that are no numbers.")
    for name, series in run.series.items():
        bad = [s for s, v in zip(series.steps, series.values, strict=True) if not math.isfinite(v)]
        if bad:
            run.notes.append(
                f"{name} is NaN or infinite {len(bad):,} times, first at step {bad[0]:,}."
            )


class _PlainLoader(yaml.SafeLoader):
    """Reads plain data; an object of Python is the text of its tag."""


def _tag(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else f"<{suffix}>"


_PlainLoader.add_multi_constructor("", _tag)


def _read_settings(run: Run, folder: RunFolder) -> None:
    content = folder.read(SETTINGS)
    if content is None:
        run.notes.append(f"There is no {SETTINGS}, so settings and parameters are not known.")
        return
    try:
        loaded = yaml.load(content, _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError, UnicodeDecodeError) as error:
        first = str(error).partition("\n")[0]
        run.notes.append(f"{SETTINGS} cannot be read: {first}")
        return
    if not isinstance(loaded, dict):
        run.notes.append(f"{SETTINGS} has no settings by name.")
        return
    loaded = {str(name): value for name, value in loaded.items()}
    for name, value in loaded.items():
        if name.startswith(PARAMETERS) and isinstance(value, (int, float)):
            run.parameters[name.removeprefix(PARAMETERS)] = float(value)
    rest = {name: value for name, value in loaded.items() if not name.startswith(PARAMETERS)}
    for number, (name, value) in enumerate(_flat(rest)):
        if number == MOST_SETTINGS:
            run.notes.append(
                f"{SETTINGS} has more than {MOST_SETTINGS:,} entries; the others are left out."
            )
            return
        run.settings[name] = value


def _flat(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Entries of nested settings by dotted name."""
    inner: Iterator[tuple[Any, Any]] | None = None
    if isinstance(value, dict) and value:
        inner = iter(value.items())
    elif isinstance(value, list) and any(isinstance(each, (dict, list)) for each in value):
        inner = iter(enumerate(value))
    if inner is None or depth == DEEPEST:
        yield name, _text(value) if inner is None else "..."
        return
    for key, each in inner:
        yield from _flat(each, f"{name}.{key}" if name else str(key), depth + 1)


def _text(value: Any) -> str:
    if isinstance(value, list):
        text = f"[{', '.join(str(each) for each in value[:LONGEST])}]"
    else:
        text = (
            "null"
            if value is None
            else str(value).lower()
            if isinstance(value, bool)
            else str(value)
        )
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
