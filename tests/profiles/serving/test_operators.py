"""What the operator of a running server asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from profiles.serving.cases import PEOPLE, request
from profiles.serving.service import Service, running

from lightning_pelt.cli.profiles.stores import delete_profiles

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
pytestmark = pytest.mark.slow  # `test_routes`, `test_sweeps` and `test_metrics` are fast

TOKEN = {"Authorization": "Bearer s3cret"}


@pytest.fixture(scope="module")
def service(
    trained: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Two workers, a token, and profiles that can be deleted."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("s3cret\n")
    with running(trained, "--workers=2", f"--token_file={token}", "--allow_delete=true") as service:
        yield service


def test_a_profile_is_deleted_with_the_token_only(service: Service) -> None:
    for _ in range(4):
        assert service.ask(request("one", "ann"), TOKEN)[0] == 200
    assert service.call("DELETE", "/profiles/ann")[0] == 401
    assert service.ask(request("one", "ann"), TOKEN)[0] == 200
    assert service.call("DELETE", "/profiles/ann", headers=TOKEN) == (204, "")
    assert service.ask(request("one", "ann"), TOKEN)[0] == 404
    assert service.call("DELETE", "/profiles/ann", headers=TOKEN)[0] == 404
    delete_profiles(str(service.store), "bob")
    assert service.ask(request("one", "bob"), TOKEN)[0] == 404
    assert {service.ask(request("one", name), TOKEN)[0] for name in PEOPLE[2:]} == {200}
