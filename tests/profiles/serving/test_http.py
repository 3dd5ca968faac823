"""A real server on loopback, compared with the server in process."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import http_load
import pytest
from profiles.serving.cases import (
    INVALID,
    MAX_BYTES,
    MAX_CHARACTERS,
    MAX_TEXTS,
    PEOPLE,
    TEXTS,
    TOO_LARGE,
    UNFIT,
    request,
    several,
    unfit,
)
from profiles.serving.service import (
    DEADLINE,
    Service,
    check_end,
    free_port,
    running,
    started,
)

from lightning_pelt import ProfileServer, ProfileStore

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
# A server takes ten seconds to start. `test_profile_api` and `test_request_validation` are fast.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(trained: tuple[Path, Path]) -> Iterator[Callable[[], Service]]:
    """Gives the server that tests share, or a new one after a test has ended it."""
    sizes = {"bytes": MAX_BYTES, "characters": MAX_CHARACTERS, "texts": MAX_TEXTS}
    limits = [f"--max_{name}={size}" for name, size in sizes.items()]
    current: list[Service] = []
    with ExitStack() as stack:

        def get() -> Service:
            if not current or current[-1].process.poll() is not None:
                server = running(trained, "--batch_timeout=0.2", *limits)
                current.append(stack.enter_context(server))
            return current[-1]

        yield get


@pytest.fixture
def service(shared: Callable[[], Service]) -> Service:
    return shared()


def assert_close(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    assert answer["label"] == expected["label"]
    assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_simultaneous_requests_get_the_answers_of_their_profiles(
    service: Service, in_process: ProfileServer
) -> None:
    people = [PEOPLE[i % 5] for i in range(20)]
    texts = [TEXTS[i % 10] for i in range(20)]
    expected = in_process.predict(texts, people)
    assert len({str(one) for one in in_process.predict(TEXTS[:1] * 5, PEOPLE)}) == 5
    answers = service.together([request(*row) for row in zip(texts, people, strict=True)])
    for (status, answer), single in zip(answers, expected, strict=True):
        assert status == 200
        assert answer.keys() == {"label", "probabilities"}
        assert_close(answer, single)


def test_several_texts_get_their_predictions_in_order(
    service: Service, in_process: ProfileServer
) -> None:
    bodies = [several(TEXTS[:4], "ann"), several(TEXTS[4:10], "bob"), several(["one"], "zoe")]
    first, second, unknown = service.together(bodies)
    assert (first[0], second[0], unknown[0]) == (200, 200, 404)
    found = first[1]["predictions"] + second[1]["predictions"]
    expected = in_process.predict(TEXTS, ["ann"] * 4 + ["bob"] * 6)
    for answer, single in zip(found, expected, strict=True):
        assert_close(answer, single)
    status, answer = service.ask(several(["one"] * (MAX_TEXTS + 1)))
    assert status == 413
    assert "has 7 texts, and 6 are allowed: " in answer["detail"]


def test_unknown_profiles_do_not_affect_other_rows_of_a_batch(
    service: Service, in_process: ProfileServer
) -> None:
    """All requests are in one batch, since they are simultaneous and its timeout is long."""
    people = ["ann", "zoe", "bob", "zed", "cid"]
    answers = service.together([request(TEXTS[3], name) for name in people])
    assert [status for status, _ in answers] == [200, 404, 200, 404, 200]
    assert answers[1][1] == {"detail": "there is no profile 'zoe'"}
    for index in (0, 2, 4):
        assert_close(answers[index][1], in_process.predict([TEXTS[3]], [people[index]])[0])


def test_a_damaged_profile_does_not_affect_other_rows_of_a_batch(
    trained: tuple[Path, Path], service: Service, in_process: ProfileServer
) -> None:
    with sqlite3.connect(trained[1]) as database:
        columns = "masks, norm, head, checksum + 1, 'sick', version"
        database.execute(
            "INSERT INTO xpeft_profiles (masks, norm, head, checksum, id, version) "
            f"SELECT {columns} FROM xpeft_profiles WHERE id = 'ann'"
        )
    database.close()
    answers = service.together([request("one", name) for name in ("ann", "sick", "zoe", "bob")])
    assert [status for status, _ in answers] == [200, 500, 404, 200]
    assert "'sick' is damaged: its checksum" in answers[1][1]["detail"]


def test_a_new_profile_is_served_immediately(trained: tuple[Path, Path], service: Service) -> None:
    assert service.ask(request("one", "late"))[0] == 404
    with ProfileStore(trained[1]) as store:
        store.put("late", store.get("dora"))
    status, answer = service.ask(request("one", "late"))
    assert status == 200
    assert answer == service.ask(request("one", "dora"))[1]


@pytest.mark.parametrize(("body", "message"), INVALID.values(), ids=INVALID)
def test_an_invalid_request_is_answered_with_422(service: Service, body: Any, message: str) -> None:
    status, answer = service.ask(body)
    assert status == 422
    assert message in answer["detail"]
    assert list(answer) == ["detail"]


@pytest.mark.parametrize("size", TOO_LARGE)
def test_a_large_request_is_answered_with_413(service: Service, size: int) -> None:
    body = json.dumps(request("a", "ann")).encode().ljust(size)
    status, answer = service.ask(body)
    assert status == 413
    assert "bytes, and 3000 are allowed: send fewer or shorter texts at a time" in answer["detail"]


def test_the_largest_requests_are_answered(service: Service) -> None:
    body = json.dumps(request("a" * MAX_CHARACTERS, "ann")).encode().ljust(MAX_BYTES)
    assert service.ask(body)[0] == 200


def test_a_body_is_read_as_json_with_any_content_type(service: Service) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # of curl -d
    assert service.ask(request("one", "ann"), form) == service.ask(request("one", "ann"))


def test_requests_may_contain_any_characters(service: Service) -> None:
    assert service.ask(request("één €uro 🙂 \u0000", "ann"))[0] == 200
    assert service.ask(request("one", "Zoë 🙂"))[1] == {"detail": "there is no profile 'Zoë 🙂'"}


@pytest.mark.nightly  # CI sends a signal to all processes, in `test_ends`
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_a_signal_ends_the_server_after_pending_requests(
    trained: tuple[Path, Path], number: signal.Signals, workers: int
) -> None:
    """The batch stays open for two seconds, and the signal arrives before they are over."""
    body = json.dumps(request("one", "ann")).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    options = ("--batch_timeout=2", "--max_batch_size=3", f"--workers={workers}")
    with running(trained, *options) as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
            connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
            # The server answers this when it waits for the body: the request is pending.
            assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
            connection.sendall(body)
            service.process.send_signal(number)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 200
            assert "probabilities" in json.loads(answer.read())
        check_end(service.process)
        with pytest.raises(OSError):
            service.ask(request("one", "ann"))


@pytest.mark.nightly  # CI tests both in one process
def test_a_token_is_asked_for_and_slow_clients_are_closed(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    options = [f"--token_file={tmp_path / 'token'}", "--request_seconds=2"]
    with running(trained, *options) as service:
        body = request(TEXTS[0], "ann")
        assert service.ask(body)[0] == 401
        assert service.ask(body, {"Authorization": "Bearer s3cret"})[0] == 200
        with socket.create_connection(("127.0.0.1", service.port), timeout=60) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\n")
            assert slow.recv(1) == b""
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        connection.request("GET", "/openapi.json", headers={"Authorization": "Bearer s3cret"})
        described = json.loads(connection.getresponse().read())
        connection.close()
        assert described["info"]["title"] == "lightning-pelt profiles"
        listed = Path(f"/proc/{service.process.pid}/cmdline")
        assert not listed.exists() or b"s3cret" not in listed.read_bytes()


@pytest.mark.nightly  # CI starts a worker in `test_profile_api`
def test_a_failed_start_is_reported_in_one_line(trained: tuple[Path, Path], tmp_path: Path) -> None:
    process = started(*unfit(trained, tmp_path, "bank"), f"--port={free_port()}")
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("lightning-pelt profiles serve: a worker could not start")
    assert UNFIT["bank"] in last


def test_the_load_test_measures_one_profile_and_many(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--profiles=5", "--requests=12", "--concurrency=6", "--rounds=2", "--words=5"]
    url = f"http://127.0.0.1:{service.port}/predict"
    figures = http_load.main([f"--url={url}", f"--store={service.store}", *options])
    assert figures["one rate"] > 0
    assert figures["p50"] == figures["many p50"] / figures["one p50"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["profiles", "1", "5", "many"]


def test_a_load_test_with_failed_requests_raises(service: Service) -> None:
    url = f"http://127.0.0.1:{service.port}/predict"
    with pytest.raises(RuntimeError, match=r"2 requests failed, the first with 404: .*'zoe'"):
        http_load.send_all(
            url, [request("one", "ann"), request("one", "zoe"), request("one", "zoe")], 2
        )
    with pytest.raises(ValueError, match="expected at least 99"):
        http_load.main([f"--url={url}", f"--store={service.store}", "--profiles=99"])


def test_the_death_of_a_worker_ends_the_server_with_an_error(service: Service) -> None:
    """A supervisor can restart the server, since its port is free."""
    main = service.process.pid
    children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    (worker,) = (child for child, command in commands.items() if b"spawn_main" in command)
    os.kill(worker, signal.SIGKILL)
    _, err = service.process.communicate(timeout=60)
    assert service.process.returncode not in (0, 2)
    assert "RuntimeError: a worker died" in err
    with pytest.raises(OSError):
        service.ask(request("one", "ann"))
