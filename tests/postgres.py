"""A PostgreSQL server of the tests' own, from the binaries of Debian's packages."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

# Nothing of a test's server has to outlive the machine.
SETTINGS = "-c listen_addresses='' -c fsync=off -c full_page_writes=off -c max_connections=50"


def find_binaries() -> Path | None:
    """The folder of the newest installed server's programs."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(found, key=lambda path: float(path.parent.name), default=None)


@contextmanager
def server(binaries: Path) -> Iterator[str]:
    """Run a server on a Unix socket in a temporary folder; gives the URL of its database."""
    # Not in pytest's folder: other users cannot enter that, and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    user, options = _unprivileged(folder)

    def run(program: str, *args: str) -> None:
        log = folder / "log"
        command = [str(binaries / program), "-D", str(folder / "data"), *args]
        with log.open("a") as out:
            code = subprocess.run(command, stdout=out, stderr=out, cwd=folder, **options).returncode
        if code != 0:
            raise RuntimeError(f"{program} failed:\n{log.read_text()}")

    try:
        run("initdb", "-A", "trust", "-U", user, "--no-sync", "-E", "UTF8", "--locale=C")
        run(
            "pg_ctl",
            "-w",
            "-l",
            str(folder / "server.log"),
            "-o",
            f"-k {folder} {SETTINGS}",
            "start",
        )
        try:
            yield f"postgresql://{user}@/postgres?host={quote(str(folder))}"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged(folder: Path) -> tuple[str, dict[str, Any]]:
    """Who runs the server, which refuses to be root, and how to start a process as that user."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name, {}
    names = [name for name in ("postgres", "nobody") if _exists(name)]
    account = pwd.getpwnam(names[0])
    os.chown(folder, account.pw_uid, account.pw_gid)
    ids = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    return names[0], ids


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
