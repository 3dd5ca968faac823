"""A bad row of a batch: it gets its own answer, and the others theirs."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from profiles.serving.cases import PEOPLE, TEXTS, request
from profiles.stores import raw
from sqlalchemy import text

from lightning_pelt import ProfileServer, ProfileStore
from lightning_pelt.profiles.serving.loading import load_model
from lightning_pelt.profiles.store import DamagedProfile, UnknownProfile

LONG = " ".join(TEXTS) * 20


@pytest.fixture(scope="module")
def store(trained: tuple[Path, Path]) -> Iterator[ProfileStore]:
    """With profiles that cannot be served."""
    with ProfileStore(trained[1]) as store:
        ann = store.get("ann")
        store.put("narrow", replace(ann, masks=ann.masks[:1], norm=None))
        store.put("other scale", replace(ann, scale=1.0))
        store.put("no head", replace(ann, head=None))
        assert ann.head is not None
        huge = {name: np.full_like(tensor, 3e38) for name, tensor in ann.head.items()}
        store.put("huge", replace(ann, head=huge))
        store.put("sick", ann)
        with raw(str(trained[1])) as connection:
            nan = {"masks": np.full(40, np.nan, np.float32).tobytes()}
            connection.execute(
                text("UPDATE xpeft_profiles SET masks = :masks WHERE id = 'sick'"), nan
            )
        yield store


@pytest.fixture(scope="module")
def server(trained: tuple[Path, Path], store: ProfileStore) -> ProfileServer:
    with pytest.warns(UserWarning, match="texts are cut to 32 tokens, for which the model has"):
        return ProfileServer(load_model(trained[0]), store)


# Texts and profiles that cannot be answered; errors of a row, and the status of its answer.
BAD: dict[str, tuple[Any, Any, type[Exception], str, int]] = {
    "unknown": ("one", "zoe", UnknownProfile, "has no profile 'zoe'", 404),
    "damaged": ("one", "sick", DamagedProfile, "checksum does not match", 500),
    "another shape": ("one", "narrow", ValueError, "the profile has masks of shape", 422),
    "another scale": ("one", "other scale", ValueError, "the profile has scale 1.0", 422),
    "no head": ("one", "no head", ValueError, "the profile has a head of shape None", 422),
    "not finite": ("one", "huge", ValueError, "the profile 'huge' is not finite", 422),
    "empty": (" \n", "ann", ValueError, "is empty", 422),
    "surrogate": ("a \ud800", "ann", ValueError, "lone surrogate", 422),
    "not tokenized": ("poison", "ann", ValueError, "cannot be tokenized: no", 422),
    "no tokens": ("nothing", "ann", ValueError, "'nothing' has no tokens", 422),
    "a bug": ("bug", "ann", ArithmeticError, "a bug", 500),
    "a null": (None, "ann", ValueError, "is empty", 422),
}


@pytest.fixture
def faulty(server: ProfileServer, monkeypatch: pytest.MonkeyPatch) -> ProfileServer:
    """A server whose tokenizer and model fail for some texts."""
    tokenizer, forward = server.module.tokenizer, server._forward

    class Tokenizer:
        def __call__(self, texts: list[str], **options: Any) -> Any:
            if "poison" in texts:
                raise TypeError("no")
            tokens = tokenizer(texts, **options)
            for row, one in enumerate(texts):
                if one == "nothing":
                    tokens["attention_mask"][row] = [0] * len(tokens["input_ids"][row])
            return tokens

    def fails(texts: list[str], profiles: list[str]) -> Any:
        if "bug" in texts:
            raise ArithmeticError("a bug")
        return forward(texts, profiles)

    monkeypatch.setitem(vars(server.module), "tokenizer", Tokenizer())
    monkeypatch.setattr(server, "_forward", fails)
    return server


def mixed(*bad: tuple[Any, Any]) -> tuple[list[Any], list[Any]]:
    """Ten good rows with bad ones between them."""
    rows: list[tuple[Any, Any]] = [(TEXTS[i], PEOPLE[i % 5]) for i in range(10)]
    for number, row in enumerate(bad):
        rows.insert(3 * number + 1, row)
    return [row[0] for row in rows], [row[1] for row in rows]


def check_good(answers: list[Any], expected: list[dict[str, Any]]) -> None:
    good = [answer for answer in answers if not isinstance(answer, Exception)]
    assert [answer["label"] for answer in good] == [answer["label"] for answer in expected]
    for answer, one in zip(good, expected, strict=True):
        assert answer["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_gets_its_error_and_the_others_their_predictions(
    server: ProfileServer, faulty: ProfileServer, name: str
) -> None:
    expected = server.predict(*mixed())
    bad, profile, kind, message, _ = BAD[name]
    answers = faulty.answer(*mixed((bad, profile)))
    (error,) = [answer for answer in answers if isinstance(answer, Exception)]
    assert answers.index(error) == 1
    assert type(error) is kind and message in str(error)
    check_good(answers, expected)


def test_all_kinds_of_bad_rows_in_one_batch(server: ProfileServer, faulty: ProfileServer) -> None:
    expected = server.predict(*mixed())
    rows = [(bad, profile) for bad, profile, *_ in BAD.values()]
    texts, profiles = mixed(*rows)
    answers = faulty.answer(texts, profiles)
    for bad, profile, kind, message, _ in BAD.values():
        at = next(i for i in range(len(texts)) if (texts[i], profiles[i]) == (bad, profile))
        assert type(answers[at]) is kind and message in str(answers[at])
    check_good(answers, expected)
    assert faulty.answer([], []) == []


def test_a_text_beyond_the_positions_of_the_model_is_cut(server: ProfileServer) -> None:
    """As the data modules cut it: the prediction is that of its first 32 tokens."""
    expected = server.predict(*mixed())
    answers = server.answer(*mixed((LONG, "ann")))
    check_good([answers[0], *answers[2:]], expected)
    tokenizer = server.module.tokenizer
    first = next(
        words
        for words in (" ".join(LONG.split()[:count]) for count in range(32, 0, -1))
        if tokenizer(words)["input_ids"]
        == tokenizer(LONG, truncation=True, max_length=32)["input_ids"]
    )
    (alone,) = server.predict([first], ["ann"])
    assert answers[1]["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


def test_a_model_without_positions_for_a_text_is_refused(
    server: ProfileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.module, "most_tokens", 0)
    with pytest.raises(ValueError, match="no positions for a text"):
        ProfileServer(server.module, server.store)
    with pytest.raises(ValueError, match="max_length=0"):
        ProfileServer(server.module, server.store, max_length=0)


def test_a_store_that_cannot_be_read_is_the_answer_to_all_rows(
    server: ProfileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def lost(ids: Any) -> Any:
        asked.append(ids)
        raise ConnectionError("postgresql://host/db cannot be reached")

    monkeypatch.setattr(server.store, "latest", lost)
    assert {type(answer) for answer in server.answer(*mixed())} == {ConnectionError}
    assert len(asked) == 1  # not once for every row


def test_the_http_answers_name_the_reason(
    server: ProfileServer,
    faulty: ProfileServer,
    monkeypatch: pytest.MonkeyPatch,
    metrics_folder: str,
) -> None:
    pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
    from lightning_pelt.profiles.serving.worker import ProfileAPI

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    options: dict[str, Any] = {"workers": 1, "slots": 8, "max_length": 32, "max_batch_size": 8}
    options |= {"metrics_folder": metrics_folder}
    api = ProfileAPI("", "", batch_timeout=0.0, **options)  # type: ignore[arg-type]
    api.server = faulty
    rows = [(bad, profile) for bad, profile, *_ in BAD.values()]
    answers = api.predict([request(*row) for row in [*rows, ("one", "ann")]])
    assert [one.status_code for one in answers] == [*(status for *_, status in BAD.values()), 200]
    details = [json.loads(bytes(one.body)).get("detail") for one in answers]
    for detail, (_, _, kind, message, status) in zip(details, BAD.values(), strict=False):
        shown = "there is no profile 'zoe'" if status == 404 else message
        assert (shown in detail) if kind is not ArithmeticError else "ArithmeticError" in detail
    lost = ConnectionError("postgresql://host/db cannot be reached")
    monkeypatch.setattr(faulty.store, "latest", lambda ids: (_ for _ in ()).throw(lost))
    (answer,) = api.predict([request("one", "ann")])
    assert answer.status_code == 503
    assert b"postgresql" not in bytes(answer.body)
