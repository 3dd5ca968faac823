"""The dashboard of a W&B project: its layout as plain data, and how it is saved."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
import wandb

from lightning_pelt.cli.main import script
from lightning_pelt.reports.dashboard import SECTIONS, Lines, dashboard, save_dashboard

workspaces = pytest.importorskip("wandb_workspaces.workspaces")


def layout(**options: Any) -> Any:
    """What would be sent to W&B."""
    view = dashboard("mine", "ann", **options)._to_model()
    return json.loads(view.model_dump_json(by_alias=True))


def titles(name: str) -> set[str]:
    """The line charts that show a scalar."""
    lines = [p for section in SECTIONS for p in section.panels if isinstance(p, Lines)]
    return {panel.title for panel in lines if re.match(panel.pattern, name)}


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("train/loss", "loss"),
        ("val/loss", "loss"),
        ("val/accuracy", "validation"),
        ("val/macro_f1", "validation"),
        ("test/lift", "test"),
        ("gate/mean/lora", "mean gate of each method"),
        ("gate/spread/lora", "spread over the examples of a batch"),
        ("gate/00/lora.query", "each gate"),
        ("gate/encoder.07/prefix", "each gate"),
        ("gate/net.bert.decoder.11/adapter", "each gate"),
        ("lr-AdamW/head", "learning rate of each parameter group"),
        ("lr-AdamW", "learning rate of each parameter group"),
        ("schedule/lora/open", "schedule"),
        ("schedule/pruned", "schedule"),
        ("epoch", None),
        ("gate/heatmap", None),
        ("gate/over_time", None),
    ],
)
def test_a_scalar_is_in_one_chart(name: str, title: str | None) -> None:
    assert titles(name) == ({title} if title else set())


def test_the_layout() -> None:
    view = layout(name="first")
    assert (view["entity"], view["project"], view["displayName"]) == ("ann", "mine", "first")
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    assert [each["name"] for each in sections] == [each.name for each in SECTIONS]
    assert all(each["isOpen"] for each in sections)
    lines = [p["config"] for s in sections for p in s["panels"] if "Line" in p["viewType"]]
    assert {line["xAxis"] for line in lines} == {"trainer/global_step"}
    assert all(line["useMetricRegex"] and line["metricRegex"] for line in lines)
    pictures = [p["config"] for p in sections[1]["panels"] if p["viewType"] == "Media Browser"]
    assert [each["mediaKeys"] for each in pictures] == [["gate/heatmap"], ["gate/over_time"]]
    (points,) = sections[4]["panels"]
    assert points["config"]["xAxis"] == "config:job.value.parameters"
    assert points["config"]["yAxis"] == "summary:score"
    assert view["spec"]["section"]["settings"]["shouldAutoGeneratePanels"]


def test_the_bars_are_those_that_wandb_itself_makes_of_the_table() -> None:
    table = wandb.Table(columns=["method", "trained"], data=[["lora", 8]])
    own = wandb.plot.bar(table, "method", "trained", title="trained parameters of each method")
    own.set_key("parameters/methods_chart")
    expected = own.spec.config_value["panel_config"]
    (panel,) = layout()["spec"]["section"]["panelBankConfig"]["sections"][3]["panels"]
    found = panel["config"]
    for name in ("panelDefId", "fieldSettings", "stringSettings", "transform"):
        assert found[name] == expected[name], name
    queries = [each["userQuery"]["queryFields"][0] for each in (found, expected)]
    selected, of_wandb = [
        {
            each["name"]: [(a["name"], a["value"]) for a in each.get("args") or []]
            for each in q["fields"]
        }
        for q in queries
    ]
    assert selected == of_wandb


class Api:
    """A login; records the projects that are made."""

    default_entity = "ann"
    made: list[tuple[str, str]] = []  # noqa: RUF012

    def create_project(self, name: str, entity: str) -> None:
        self.made.append((name, entity))


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The views that are saved."""
    views: list[Any] = []
    monkeypatch.setattr(Api, "made", [])
    monkeypatch.setattr("wandb.Api", Api)
    monkeypatch.setattr(workspaces.Workspace, "save", lambda self: views.append(self))
    monkeypatch.setattr(
        workspaces.Workspace, "url", property(lambda self: f"wandb/{self.entity}/{self.project}")
    )
    return views


def test_the_command_saves_a_view_in_the_project_of_the_login(
    saved: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-pelt", "dashboard", "--project=mine"])
    with pytest.raises(SystemExit) as ended:
        script()
    assert not ended.value.code
    assert capsys.readouterr().out == "dashboard: wandb/ann/mine\n"
    (view,) = saved
    assert (view.entity, view.project, view.name) == ("ann", "mine", "Gates, rates and counts")
    assert Api.made == [("mine", "ann")]


def test_a_team_and_a_name_can_be_given(saved: list[Any]) -> None:
    assert save_dashboard("mine", "team", name="ours") == "wandb/team/mine"
    assert (saved[0].entity, saved[0].name) == ("team", "ours")


def test_without_a_login_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr("wandb.Api", fails)
    with pytest.raises(ConnectionError, match=r"'mine': No API key configured\..*`wandb login`"):
        save_dashboard("mine")
