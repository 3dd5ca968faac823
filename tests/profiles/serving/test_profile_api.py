"""The worker of the HTTP server, in this process."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path

import pytest
from profiles.serving.cases import TEXTS, UNFIT, request, unfit
from profiles.stores import raw
from sqlalchemy import text

from lightning_pelt import ProfileServer

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
from lightning_pelt.profiles.serving.http import ProfileAPI


@pytest.fixture(autouse=True)
def _process_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker changes these for its process."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(logging, "disable", lambda: None)


def api(checkpoint: Path, store: Path) -> ProfileAPI:
    options = {"workers": 1, "slots": 8, "max_length": 16, "max_batch_size": 8}
    return ProfileAPI(str(checkpoint), str(store), batch_timeout=0.0, **options)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    people = ["ann", "zoe", "bob", "sick", "zed", "cid"]
    return [request(TEXTS[3], name) for name in people]


def test_unknown_and_damaged_profiles_do_not_affect_other_rows(
    trained: tuple[Path, Path], in_process: ProfileServer, rows: list[dict[str, str]]
) -> None:
    with raw(str(trained[1])) as connection:
        columns = "masks, norm, head, checksum + 1, 'sick', version"
        connection.execute(
            text(
                "INSERT INTO xpeft_profiles (masks, norm, head, checksum, id, version) "
                f"SELECT {columns} FROM xpeft_profiles WHERE id = 'ann'"
            )
        )
    worker = api(*trained)
    worker.setup("cpu")
    answers = worker.predict(rows)
    worker.store.close()
    assert [answer.status_code for answer in answers] == [200, 404, 200, 500, 404, 200]
    contents = [json.loads(bytes(answer.body)) for answer in answers]
    assert contents[1] == {"detail": "there is no profile 'zoe'"}
    assert "'sick' is damaged: its checksum" in contents[3]["detail"]
    for index in (0, 2, 5):
        (expected,) = in_process.predict([rows[index]["text"]], [rows[index]["profile"]])
        assert contents[index]["label"] == expected["label"]
        assert contents[index]["probabilities"] == pytest.approx(
            expected["probabilities"], abs=1e-5
        )


@pytest.mark.parametrize(("wrong", "message"), UNFIT.items(), ids=UNFIT)
def test_a_worker_reports_why_it_cannot_start(
    trained: tuple[Path, Path], tmp_path: Path, wrong: str, message: str
) -> None:
    worker = api(*unfit(trained, tmp_path, wrong))
    with pytest.raises((OSError, ValueError), match=message):
        worker.setup("cpu")
    assert message in worker.setup_errors.get()
    assert not (tmp_path / "nothing.db").exists()
