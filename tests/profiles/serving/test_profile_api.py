"""The worker of the HTTP server, in this process."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from profiles.serving.cases import TEXTS, UNFIT, request, several, unfit
from profiles.stores import raw
from sqlalchemy import text

from lightning_pelt import ProfileServer

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
from lightning_pelt.profiles.serving.worker import ProfileAPI


@pytest.fixture(autouse=True)
def _process_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker changes these for its process."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(logging, "disable", lambda: None)


def api(checkpoint: Path, store: Path, **changed: Any) -> ProfileAPI:
    options = {"workers": 1, "slots": 8, "max_length": 16, "max_batch_size": 8, **changed}
    options.setdefault("metrics_folder", "")
    return ProfileAPI(str(checkpoint), str(store), batch_timeout=0.0, **options)


@pytest.fixture
def worker(trained: tuple[Path, Path], metrics_folder: str) -> Iterator[ProfileAPI]:
    """A worker that allows 30 tokens a request, which are ten short texts."""
    worker = api(*trained, max_tokens=30, metrics_folder=metrics_folder)
    worker.setup("cpu")
    yield worker
    worker.store.close()


def content(answer: Any) -> Any:
    return json.loads(bytes(answer.body))


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    people = ["ann", "zoe", "bob", "sick", "zed", "cid"]
    return [request(TEXTS[3], name) for name in people]


def test_unknown_and_damaged_profiles_do_not_affect_other_rows(
    trained: tuple[Path, Path],
    worker: ProfileAPI,
    in_process: ProfileServer,
    rows: list[dict[str, str]],
) -> None:
    with raw(str(trained[1])) as connection:
        columns = "masks, norm, head, checksum + 1, 'sick', version"
        connection.execute(
            text(
                "INSERT INTO xpeft_profiles (masks, norm, head, checksum, id, version) "
                f"SELECT {columns} FROM xpeft_profiles WHERE id = 'ann'"
            )
        )
    answers = worker.predict(rows)
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


def test_several_texts_get_their_predictions_in_order(
    worker: ProfileAPI, in_process: ProfileServer
) -> None:
    """Between other requests, and also when they do not fit into one forward of eight rows."""
    bodies = [request(TEXTS[1], "bob"), several(TEXTS[:6]), several(TEXTS[6:], "cid")]
    assert sum(map(worker.count_rows, bodies)) == 11
    single, first, second = [content(answer) for answer in worker.predict(bodies)]
    people = ["bob"] + ["ann"] * 6 + ["cid"] * 4
    expected = in_process.predict([TEXTS[1], *TEXTS], people)
    found = [single, *first["predictions"], *second["predictions"]]
    assert len({str(one) for one in found}) > 8
    for one, other in zip(found, expected, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_an_error_of_several_texts_names_the_first(
    worker: ProfileAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request has no predictions then, and other requests of the batch have theirs."""
    answer = worker.server.answer

    def fails(texts: list[str], profiles: list[str]) -> list[Any]:
        return [
            ValueError(f"the text {text!r} has no tokens") if text == "nothing" else one
            for text, one in zip(texts, answer(texts, profiles), strict=True)
        ]

    monkeypatch.setattr(worker.server, "answer", fails)
    bodies = [several(["one", "nothing", "nothing"]), several(["one"]), several(["one"], "zoe")]
    bad, good, unknown = worker.predict(bodies)
    assert (bad.status_code, good.status_code, unknown.status_code) == (422, 200, 404)
    assert content(bad) == {"detail": "'texts'[1]: the text 'nothing' has no tokens"}
    assert content(unknown) == {"detail": "there is no profile 'zoe'"}


def test_too_many_tokens_are_answered_with_413(worker: ProfileAPI) -> None:
    """Tokens beyond those to which each text is cut do not count."""
    tokens = len(worker.server.module.tokenizer("one two")["input_ids"])
    texts, long = ["one two"] * (30 // tokens + 1), [" ".join(["one"] * 100)]
    refused, fits, cut = worker.predict([several(texts), several(texts[1:]), several(long)])
    assert refused.status_code == 413
    assert content(refused)["detail"].startswith(
        f"the request has {tokens * len(texts)} tokens, and 30 are allowed: send fewer or shorter"
    )
    assert len(content(fits)["predictions"]) == len(texts) - 1
    assert len(content(cut)["predictions"]) == 1
    assert worker.server.count_tokens(long) == 16


def test_a_worker_counts_texts_and_profiles(worker: ProfileAPI) -> None:
    worker.predict([several(["one", "two"], "ann"), request("one", "bob"), request("one", "zoe")])
    worker.predict([request("two", "bob")])
    lines = worker.metrics.expose().decode().splitlines()
    for line in (
        'lightning_pelt_texts_total{status="200"} 4.0',
        'lightning_pelt_texts_total{status="404"} 1.0',
        "lightning_pelt_batch_texts_count 2.0",
        "lightning_pelt_batch_texts_sum 5.0",
        "lightning_pelt_batch_seconds_count 2.0",
        "lightning_pelt_loaded_profiles_total 2.0",
        "lightning_pelt_cached_profiles 2.0",
    ):
        assert line in lines
    worker.server.forget()
    worker._forget_deleted()
    assert "lightning_pelt_cached_profiles 0.0" in worker.metrics.expose().decode().splitlines()


@pytest.mark.parametrize(("wrong", "message"), UNFIT.items(), ids=UNFIT)
def test_a_worker_reports_why_it_cannot_start(
    trained: tuple[Path, Path], tmp_path: Path, wrong: str, message: str
) -> None:
    worker = api(*unfit(trained, tmp_path, wrong))
    with pytest.raises((OSError, ValueError), match=message):
        worker.setup("cpu")
    assert message in worker.setup_errors.get()
    assert not (tmp_path / "nothing.db").exists()
