"""``lightning-pelt report``: one HTML file about a run, or about two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from lightning_pelt.cli.errors import one_line_errors
from lightning_pelt.cli.overview import OTHERS
from lightning_pelt.cli.parser import SuggestingParser
from lightning_pelt.reports.run_data import read_run
from lightning_pelt.reports.run_page import run_page
from lightning_pelt.utils.locations import write_bytes

PROG = "lightning-pelt report"
SUFFIXES = (".html", ".htm")


def main(args: Sequence[str]) -> None:
    """Run the command; print what the user can correct in a line and exit with status 2.

    Args:
        args: the options.
    """
    parser = SuggestingParser(prog=PROG, description=OTHERS["report"])
    run = "Folder or URL of a run of CSVLogger, or of its versions: the newest is taken."
    parser.add_argument("run", metavar="RUN", help=run)
    parser.add_argument("run2", metavar="RUN2", nargs="?", help="Another run, for comparison.")
    out = "File to write; by default report.html, or comparison.html, in the folder of RUN."
    parser.add_argument("--out", metavar="FILE", help=out)
    with one_line_errors(PROG):
        given = parser.parse_args(args)
        report(given.run, given.run2, out=given.out)


def report(run: str, run2: str | None = None, *, out: str | None = None) -> str:
    """Write the report of a run, or of two with shared scales, and print where it is.

    Args:
        run: path or URL of a run of Lightning's ``CSVLogger``, or of the folder of its versions.
        run2: another one.
        out: path or URL of the file; by default ``report.html`` in the folder of the run, and
            ``comparison.html`` for two.

    Returns:
        Path or URL of the file.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the folders or the file are not what they should be; the message says why.
    """
    if out is not None and PurePath(out).suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out {out} must be an HTML file: its name must end with .html")
    runs = [read_run(location) for location in (run, run2) if location is not None]
    if len({each.location for each in runs}) < len(runs):
        raise ValueError(
            f"{run} and {run2} are the same run, {runs[0].location}: name the folders of two "
            "versions, such as version_0 and version_1"
        )
    name = "report.html" if len(runs) == 1 else "comparison.html"
    file = out or f"{runs[0].location}/{name}"
    write_bytes(file, run_page(runs).encode("utf-8", errors="replace"))
    for each in runs:
        print(f"run: {each.location}")
    print(f"report: {file}")
    return file
