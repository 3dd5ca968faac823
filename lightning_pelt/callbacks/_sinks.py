"""How each kind of logger takes a picture, a table or a text; what it cannot take is a file."""

from __future__ import annotations

import html
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import wandb
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from tabulate import tabulate

from lightning_pelt.reports.figures import pixels
from lightning_pelt.utils.locations import write_bytes
from lightning_pelt.utils.same_kind import same_kind


@dataclass(frozen=True)
class Table:
    """Rows of plain values.

    Attributes:
        columns: names of the columns.
        rows: one value for each column.
        bars: a column of labels and one of numbers, which W&B also draws as a bar chart.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    bars: tuple[str, str] | None = None


Media = Figure | Table | str


class Sink(ABC):
    """What takes pictures, tables and texts."""

    def take(self, name: str, media: Media, step: int) -> None:
        """Store ``media`` as ``name``, the way that suits its kind."""
        if isinstance(media, Figure):
            self.picture(name, media, step)
        elif isinstance(media, Table):
            self.table(name, media, step)
        else:
            self.text(name, media, step)

    @abstractmethod
    def picture(self, name: str, figure: Figure, step: int) -> None: ...

    @abstractmethod
    def table(self, name: str, table: Table, step: int) -> None: ...

    @abstractmethod
    def text(self, name: str, text: str, step: int) -> None: ...


class LoggerSink(Sink):
    """A logger that takes pictures, tables and texts itself."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger


class WandbSink(LoggerSink):
    """Media panels, tables, and a custom chart for the bars of a table."""

    def picture(self, name: str, figure: Figure, step: int) -> None:
        self.logger.log_image(name, [pixels(figure)], step=step)

    def table(self, name: str, table: Table, step: int) -> None:
        columns: list[Any] = list(table.columns)
        rows = [list(row) for row in table.rows]
        self.logger.log_table(name, columns=columns, data=rows, step=step)
        if table.bars is not None:
            label, number = table.bars
            values = wandb.Table(columns=columns, data=rows)
            chart = wandb.plot.bar(values, label, number, title=f"{number} by {label}")
            self.logger.log_metrics({f"{name}_chart": chart}, step=step)

    def text(self, name: str, text: str, step: int) -> None:
        self.logger.log_text(name, columns=["step", "text"], data=[[step, text]], step=step)


class TensorBoardSink(LoggerSink):
    """Images, and texts in Markdown."""

    def picture(self, name: str, figure: Figure, step: int) -> None:
        self.logger.experiment.add_image(name, pixels(figure), step, dataformats="HWC")

    def table(self, name: str, table: Table, step: int) -> None:
        self.text(name, markdown(table), step)

    def text(self, name: str, text: str, step: int) -> None:
        self.logger.experiment.add_text(name, text, step)


class MLFlowSink(LoggerSink):
    """Images with steps, and an artifact for each table and text.

    MLflow can append rows to a table, but downloads the whole table first.
    """

    def picture(self, name: str, figure: Figure, step: int) -> None:
        self._client.log_image(self.logger.run_id, pixels(figure), key=name, step=step)

    def table(self, name: str, table: Table, step: int) -> None:
        values = {c: [row[i] for row in table.rows] for i, c in enumerate(table.columns)}
        self._client.log_table(self.logger.run_id, values, f"{name}/{step:08d}.json")

    def text(self, name: str, text: str, step: int) -> None:
        self._client.log_text(self.logger.run_id, text, f"{name}/{step:08d}.txt")

    @property
    def _client(self) -> Any:
        return self.logger.experiment


class Files(Sink):
    """Files ``media/<name>/<step>.png``, ``.jsonl`` or ``.txt`` in a folder.

    A table is a JSON object per row.

    Args:
        folder: a path or a URL.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def picture(self, name: str, figure: Figure, step: int) -> None:
        content = BytesIO()
        figure.savefig(content, format="png")
        self._write(name, step, "png", content.getvalue())

    def table(self, name: str, table: Table, step: int) -> None:
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        self._write(name, step, "jsonl", "".join(lines).encode())

    def text(self, name: str, text: str, step: int) -> None:
        self._write(name, step, "txt", text.encode())

    def _write(self, name: str, step: int, kind: str, content: bytes) -> None:
        write_bytes(f"{self.folder.rstrip('/')}/media/{name}/{step:08d}.{kind}", content)


OWN_MEDIA: tuple[tuple[type, type[LoggerSink]], ...] = (
    (WandbLogger, WandbSink),
    (TensorBoardLogger, TensorBoardSink),
    (MLFlowLogger, MLFlowSink),
)


def sink_of(logger: Any, default_folder: str) -> Sink:
    """Where the pictures, tables and texts of a logger go.

    Args:
        logger: of Lightning.
        default_folder: of files, if the logger has no folder.
    """
    for kind, sink in OWN_MEDIA:
        if same_kind(logger, kind):
            return sink(logger)
    return Files(folder_of(logger) or default_folder)


def folder_of(logger: Any) -> str | None:
    """The folder of a logger's run; like that of its checkpoints if it has no ``log_dir``."""
    if logger.log_dir is not None:
        return str(logger.log_dir)
    if logger.save_dir is None:
        return None
    version = f"version_{logger.version}" if isinstance(logger.version, int) else logger.version
    parts = (str(logger.save_dir).rstrip("/"), logger.name, version)
    return "/".join(str(part) for part in parts if part not in (None, ""))


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown, which is how TensorBoard shows one."""
    rows = [[_cell(value) for value in row] for row in table.rows]
    return tabulate(rows, list(table.columns), tablefmt="github", disable_numparse=True)


def _cell(value: Any) -> str:
    """A value that cannot end its cell, nor be read as Markdown or HTML."""
    text = html.escape(str(value), quote=False)
    for character in r"\`*_[]|":
        text = text.replace(character, f"&#{ord(character)};")
    return text.replace("\n", "<br>")
