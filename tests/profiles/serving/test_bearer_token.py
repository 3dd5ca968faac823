"""The token in front of an application."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse

from lightning_pelt.profiles.serving.bearer_token import BearerToken, read_token

TOKEN = "s3cret"


@pytest.fixture
def client() -> TestClient:
    return TestClient(BearerToken(PlainTextResponse("answered"), token=TOKEN))


@pytest.mark.parametrize(
    "sent",
    [None, "", TOKEN, "Bearer", "Bearer wrong", f"bearer {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"],
)
def test_without_the_token_there_is_no_answer(client: TestClient, sent: str | None) -> None:
    headers = {} if sent is None else {"authorization": sent.encode("latin-1")}
    got = client.post("/predict", headers=headers)
    assert got.status_code == 401
    assert got.headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer TOKEN" in got.json()["detail"]


def test_with_the_token_or_for_the_health_there_is_one(client: TestClient) -> None:
    for path in ("/predict", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": f"Bearer {TOKEN}"}).text == "answered"
    for path in ("/health", "/ready"):
        assert client.get(path).text == "answered"
    for path in ("/metrics", "/profiles/ann", "/healthy", "/ready/", "//ready"):
        assert client.get(path).status_code == 401
    twice = [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer x")]
    assert client.get("/predict", headers=twice).status_code == 401


@pytest.mark.parametrize("text", ["", " \n", "two words", "schlüssel"])
def test_a_file_without_a_token_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"token holds no token"):
        read_token(file)
    file.write_text(f"{TOKEN}\n")
    assert read_token(file) == TOKEN
