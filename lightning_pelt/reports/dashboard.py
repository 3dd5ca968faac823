"""The dashboard of a W&B project: which charts of a run stand where, and how it is saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import wandb

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

STEP = "trainer/global_step"  # what Lightning's WandbLogger logs the step as
NAME = "Gates, rates and counts"


@dataclass(frozen=True)
class Lines:
    """A line chart over the steps, of all scalars whose names match ``pattern``.

    The pattern is anchored. It has no lookahead, which not every engine knows.
    """

    title: str
    pattern: str


@dataclass(frozen=True)
class Pictures:
    """The pictures of ``names``, with a slider over the steps."""

    title: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Bars:
    """A bar for each row of a logged table: the number in one column by the label in another."""

    title: str
    table: str
    label: str
    number: str


@dataclass(frozen=True)
class Points:
    """A point for each run: two values of its configuration (``job.seed``) or its summary."""

    title: str
    x: str
    y: str


@dataclass(frozen=True)
class Section:
    """A section of the dashboard, of panels in their order."""

    name: str
    panels: tuple[Lines | Pictures | Bars | Points, ...]


SECTIONS = (
    Section(
        "Result",
        (
            Lines("loss", r"^(train|val|test)/lo.*$"),
            Lines("validation", r"^val/([^l]|l[^o]).*$"),
            Lines("test", r"^test/([^l]|l[^o]).*$"),
        ),
    ),
    Section(
        "Gates",
        (
            Lines("mean gate of each method", r"^gate/mean/.*$"),
            Lines("spread over the examples of a batch", r"^gate/spread/.*$"),
            Pictures("mean gate by block and site", ("gate/heatmap",)),
            Pictures("gates over time", ("gate/over_time",)),
            # A block is "07", and may follow the paths of its model and stack: "net.encoder.07".
            Lines("each gate", r"^gate/([^/]*\.)?[0-9]+/.*$"),
        ),
    ),
    Section(
        "Rates",
        (
            Lines("learning rate of each parameter group", r"^lr-.*$"),
            Lines("schedule", r"^schedule/.*$"),
        ),
    ),
    Section(
        "Counts",
        (
            Bars(
                "trained parameters of each method",
                "parameters/methods_chart_table",
                label="method",
                number="trained",
            ),
        ),
    ),
    Section(
        "Search",
        (Points("score by number of parameters, a point for each fit", "job.parameters", "score"),),
    ),
)


def dashboard(
    project: str, entity: str, *, name: str = NAME, sections: Sequence[Section] = SECTIONS
) -> Workspace:
    """The dashboard as an object of `wandb-workspaces`; nothing is sent.

    Args:
        project: of W&B.
        entity: user or team that has the project.
        name: of the dashboard.
        sections: in their order.

    Raises:
        ModuleNotFoundError: the extra ``dashboard`` is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a dashboard needs wandb-workspaces: pip install 'lightning-pelt[dashboard]'",
            name=error.name,
        ) from error
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        settings=ws.WorkspaceSettings(x_axis=STEP),
        auto_generate_panels=True,  # of what else the runs log, below these sections
        sections=[
            ws.Section(name=each.name, panels=[_panel(p) for p in each.panels], is_open=True)
            for each in sections
        ],
    )


def _panel(panel: Lines | Pictures | Bars | Points) -> Any:
    import wandb_workspaces.reports.v2 as wr

    if isinstance(panel, Lines):
        return wr.LinePlot(title=panel.title, x=STEP, metric_regex=panel.pattern)
    if isinstance(panel, Pictures):
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.names))
    if isinstance(panel, Points):
        return wr.ScatterPlot(
            title=panel.title, x=wr.Config(panel.x), y=wr.SummaryMetric(panel.y), log_x=True
        )
    return wr.CustomChart(
        query=dict.fromkeys(("id", "name", "_defaultColorIndex"))
        | {"summaryTable": {"tableKey": panel.table}},
        chart_name="wandb/bar/v0",
        chart_fields={"label": panel.label, "value": panel.number},
        chart_strings={"title": panel.title},
    )


def save_dashboard(project: str, entity: str | None = None, *, name: str = NAME) -> str:
    """Save the dashboard as a view of a W&B project, which is made if it does not exist.

    Each call makes another view. The charts show the runs that the project has now and later.

    Args:
        project: of W&B.
        entity: user or team that has the project; by default that of the login.
        name: of the dashboard.

    Returns:
        The URL of the view.

    Raises:
        ModuleNotFoundError: the extra ``dashboard`` is not installed.
        ConnectionError: nobody is logged in to W&B, or W&B refuses or cannot be reached.

    Example::

        save_dashboard("lightning-pelt")
    """
    made = dashboard(project, entity or "", name=name)
    try:
        api = wandb.Api()
        made.entity = entity or api.default_entity or ""
        api.create_project(project, made.entity)
        made.save()
    except (wandb.Error, OSError) as error:
        raise ConnectionError(
            f"W&B did not save the dashboard of the project {project!r}: {error}. Run `wandb login`"
            " first, and check the network, the project and the entity"
        ) from error
    return str(made.url)
