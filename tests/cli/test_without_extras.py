"""The commands without the packages of their extras: help works, and running names the extra."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ROWS = {"class_path": "TextClassification", "init_args": {"train": "rows.csv"}}
SEARCH = ["--backbone=b", f"--tasks={json.dumps({'t': {'data': ROWS}})}", '--fit={"max_steps": 1}']
HELP = {
    "": ["--help"],
    "plan": ["plan", "--help"],
    "dashboard": ["dashboard", "--help"],
    "search": ["search", "--help"],
    "profiles": ["profiles", "--help"],
    "profiles train": ["profiles", "train", "--help"],
    "profiles add": ["profiles", "add", "--help"],
    "profiles evaluate": ["profiles", "evaluate", "--help"],
}
RUN = {
    "dashboard": ["dashboard"],
    "search": ["search", *SEARCH],
    "profiles list": ["profiles", "list", "--store=s.db"],
    "profiles serve": ["profiles", "serve"],
}
CODE = """
import builtins, contextlib, io, json, sys
from lightning_pelt.search import EXTRA

def refuse(name, globals=None, *rest, real=builtins.__import__, **options):
    # Other packages need SciPy, filelock and psutil too.
    importer = (globals or {}).get("__name__", "")
    if importer.startswith("lightning_pelt") and name.partition(".")[0] in EXTRA:
        raise ModuleNotFoundError(f"{importer} imports {name}")
    return real(name, globals, *rest, **options)

builtins.__import__ = refuse
commands, found = json.loads(sys.argv[1]), []
for name in ("optuna", "sqlalchemy", "psycopg", "litserve", "wandb_workspaces"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
from lightning_pelt.cli.main import script
for command in commands:
    if command[-1] == "serve":
        del sys.modules["sqlalchemy"]  # the extra `serve` includes `profiles`
    sys.argv = ["lightning-pelt", *command]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            script()
        except SystemExit as ended:
            found.append([ended.code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], tuple[int, str, str]]:
    """Exit status, stdout and stderr of every command, all run by one process."""
    commands = {("help", name): args for name, args in HELP.items()}
    commands |= {("run", name): args for name, args in RUN.items()}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps([*commands.values()])],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", HELP, ids=lambda name: name or "all")
def test_help_needs_no_extra(found, name: str) -> None:
    status, out, err = found["help", name]
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: lightning-pelt {name}".rstrip())
    if name == "search":
        assert "--search_budget" in out and "--worker" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "extra"), zip(RUN, ("dashboard", "search", "profiles", "serve"), strict=True)
)
def test_running_names_the_extra(found, name: str, extra: str) -> None:
    status, out, err = found["run", name]
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"lightning-pelt {name}: ")
    assert err.endswith(f"pip install 'lightning-pelt[{extra}]'\n")
