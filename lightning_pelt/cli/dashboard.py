"""``lightning-pelt dashboard``: gates, rates and counts of a W&B project, as a saved view."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_pelt.cli.errors import one_line_errors
from lightning_pelt.cli.overview import OTHERS
from lightning_pelt.cli.parser import SuggestingParser
from lightning_pelt.reports.dashboard import NAME, save_dashboard

PROG = "lightning-pelt dashboard"


def main(args: Sequence[str]) -> None:
    """Run the command; print what the user can correct in a line and exit with status 2.

    Args:
        args: the options.
    """
    parser = SuggestingParser(prog=PROG, description=OTHERS["dashboard"])
    parser.add_function_arguments(save)
    with one_line_errors(PROG):
        save(**parser.parse_args(args).as_dict())


def save(project: str = "lightning-pelt", entity: str | None = None, name: str = NAME) -> None:
    """Save the dashboard, and print its URL.

    Args:
        project: Project of W&B; it is made if it does not exist.
        entity: User or team that has the project; by default that of the login.
        name: Name of the view.

    Raises:
        ModuleNotFoundError: the extra ``dashboard`` is not installed.
        ConnectionError: see :func:`save_dashboard`.
    """
    print(f"dashboard: {save_dashboard(project, entity, name=name)}")
