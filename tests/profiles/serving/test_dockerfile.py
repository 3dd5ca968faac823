"""The Dockerfile of the server, as far as it can be read without Docker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
from jsonargparse import ArgumentParser

from lightning_pelt.profiles.serving.http import serve

ROOT = Path(__file__).parents[3]
FILE = ROOT / "docs" / "serving" / "Dockerfile"


def instructions(name: str) -> list[str]:
    lines = FILE.read_text().replace("\\\n", " ").splitlines()
    return [line.removeprefix(name).strip() for line in lines if line.startswith(f"{name} ")]


def test_the_command_has_the_options_of_the_server() -> None:
    (entry,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")
    words = json.loads(entry) + json.loads(command)
    assert f"{words[0]} = " in (ROOT / "pyproject.toml").read_text()
    assert words[1:3] == ["profiles", "serve"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(serve)
    given = parser.parse_args(words[3:])
    assert given.host == "0.0.0.0"
    assert given.token_file is not None
    assert str(given.port) in instructions("EXPOSE")
    (check,) = instructions("HEALTHCHECK")
    assert f"127.0.0.1:{given.port}/ready" in check


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    sources = [source for line in instructions("COPY") for source in line.split()[:-1]]
    kept = FILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    assert "lightning_pelt" in sources
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in kept
    needed = (ROOT / "pyproject.toml").read_text()
    for name in ("README.md", "LICENSE"):
        assert f'"{name}"' in needed and name in sources
    assert any(".[serve]" in line for line in instructions("RUN"))
