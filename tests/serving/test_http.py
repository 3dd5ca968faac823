"""A real server on loopback against the server in process; and what is no request."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lightning.pytorch import Trainer
from small import LABELS, WORDS, bert

from lightning_pelt import XPEFT, PELTModule, Plan, RandomBank
from lightning_pelt.data import ProfileDataModule
from lightning_pelt.profiles.keeping import read_profile
from lightning_pelt.profiles.store import ProfileStore
from lightning_pelt.serving import ProfileServer, load
from lightning_pelt.serving.opening import load_model

pytest.importorskip("litserve", reason="LitServe is not installed")

PEOPLE = ["ann", "bob", "cid", "dora", "eve"]
TEXTS = [" ".join(WORDS[i : i + 1 + i % 4]) for i in range(10)]
DEADLINE = 180  # seconds for two interpreters to import torch on a busy machine
MAX_BYTES, MAX_CHARACTERS = 3000, 100


class Service(NamedTuple):
    """A process that serves, and what it serves."""

    process: subprocess.Popen[str]
    port: int
    checkpoint: Path
    store: Path

    def ask(self, body: object, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON of the answer; ``body`` is JSON unless it is bytes already."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", "/predict", data, headers or {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def together(self, bodies: list[Any]) -> list[tuple[int, Any]]:
        """The answers to requests that are sent at once."""
        answers: list[Any] = [None] * len(bodies)
        start = threading.Barrier(len(bodies))

        def ask(index: int) -> None:
            start.wait()
            answers[index] = self.ask(bodies[index])

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(bodies))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoint and store of a fit of two steps."""
    folder = tmp_path_factory.mktemp("http")
    rows = [
        {"text": text, "label": LABELS[i % 3], "profile": name}
        for i, text in enumerate(TEXTS)
        for name in PEOPLE
    ]
    table = folder / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    method = XPEFT(
        bank=RandomBank(size=20), k=5, scale=8.0, bottleneck=4, profiles=5, head="profile"
    )
    module = PELTModule(bert(folder / "bert"), Plan.uniform(method), labels=LABELS, lr=0.1)
    data = ProfileDataModule(
        str(folder / "bert"), train=str(table), labels=LABELS, max_length=16, dev_share=0
    )
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(folder / "fit.ckpt")
    with ProfileStore(folder / "profiles.db") as store:
        store.put_many((name, read_profile(module, n)) for n, name in enumerate(PEOPLE))
    return folder / "fit.ckpt", folder / "profiles.db"


def started(checkpoint: Path, store: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "lightning_pelt", "profiles", "serve", "--accelerator=cpu",
            f"--checkpoint={checkpoint}", f"--store={store}", *options,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ready(service: Service) -> None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if service.process.poll() is not None:
            pytest.fail(f"the server ended: {service.process.communicate()}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the server was not ready after {DEADLINE} seconds")


def run(trained: tuple[Path, Path], *options: str) -> Iterator[Service]:
    port = free_port()
    service = Service(started(*trained, f"--port={port}", *options), port, *trained)
    try:
        ready(service)
        yield service
    finally:
        service.process.send_signal(signal.SIGTERM)
        try:
            service.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            service.process.kill()
            raise


@pytest.fixture(scope="module")
def service(trained: tuple[Path, Path]) -> Iterator[Service]:
    limits = [f"--max_bytes={MAX_BYTES}", f"--max_characters={MAX_CHARACTERS}"]
    yield from run(trained, "--batch_timeout=0.2", *limits)


@pytest.fixture(scope="module")
def in_process(trained: tuple[Path, Path]) -> Iterator[ProfileServer]:
    with ProfileStore(trained[1]) as store:
        yield ProfileServer(load_model(trained[0]), store)


def asked(text: str, profile: str) -> dict[str, str]:
    return {"text": text, "profile": profile}


def assert_alike(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    assert answer["label"] == expected["label"]
    assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_users_who_ask_at_once_get_their_own_answers(
    service: Service, in_process: ProfileServer
) -> None:
    people = [PEOPLE[i % 5] for i in range(20)]
    texts = [TEXTS[i % 10] for i in range(20)]
    expected = in_process.predict(texts, people)
    assert len({str(one) for one in in_process.predict(TEXTS[:1] * 5, PEOPLE)}) == 5
    answers = service.together([asked(*row) for row in zip(texts, people, strict=True)])
    for (status, answer), alone in zip(answers, expected, strict=True):
        assert status == 200
        assert answer.keys() == {"label", "probabilities"}
        assert_alike(answer, alone)


def test_unknown_profiles_among_good_rows_of_a_batch(
    service: Service, in_process: ProfileServer
) -> None:
    """All wait for one batch: its timeout is long, and they are sent at once."""
    people = ["ann", "zoe", "bob", "zed", "cid"]
    answers = service.together([asked(TEXTS[3], name) for name in people])
    assert [status for status, _ in answers] == [200, 404, 200, 404, 200]
    assert answers[1][1] == {"detail": "there is no profile 'zoe'"}
    for index in (0, 2, 4):
        assert_alike(answers[index][1], in_process.predict([TEXTS[3]], [people[index]])[0])


def test_a_damaged_profile_among_good_rows(
    trained: tuple[Path, Path], service: Service, in_process: ProfileServer
) -> None:
    with sqlite3.connect(trained[1]) as database:
        columns = "masks, norm, head, checksum + 1, 'sick', version"
        database.execute(
            "INSERT INTO xpeft_profiles (masks, norm, head, checksum, id, version) "
            f"SELECT {columns} FROM xpeft_profiles WHERE id = 'ann'"
        )
    database.close()
    answers = service.together([asked("one", name) for name in ("ann", "sick", "zoe", "bob")])
    assert [status for status, _ in answers] == [200, 500, 404, 200]
    assert "'sick' is damaged: its checksum" in answers[1][1]["detail"]


def test_a_profile_that_is_put_is_served_at_once(
    trained: tuple[Path, Path], service: Service
) -> None:
    assert service.ask(asked("one", "late"))[0] == 404
    with ProfileStore(trained[1]) as store:
        store.put("late", store.get("dora"))
    status, answer = service.ask(asked("one", "late"))
    assert status == 200
    assert answer == service.ask(asked("one", "dora"))[1]


WRONG = {
    "not JSON": (b"{", "is not JSON"),
    "not text": (b"\xff\xfe\x00", "is not JSON"),
    "too deep": (b"[" * 2000, "is not JSON"),
    "nothing": (b"", "is not JSON"),
    "a list": ([asked("one", "ann")], "the request is a list"),
    "no text": ({"profile": "ann"}, "'text' is missing"),
    "no profile": ({"text": "one"}, "'profile' is missing"),
    "a number": (asked(7, "ann"), "'text' is a int"),  # type: ignore[arg-type]
    "null": ({"text": "one", "profile": None}, "'profile' is a NoneType"),
    "empty text": (asked(" \n", "ann"), "'text' is empty"),
    "empty profile": (asked("one", ""), "'profile' is empty"),
    "long text": (asked("a" * (MAX_CHARACTERS + 1), "ann"), "101 characters, and 100 are allowed"),
    "half a character": (b'{"text": "a \\ud800", "profile": "ann"}', "a lone surrogate"),
}


@pytest.mark.parametrize(("body", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_request_is_answered_with_422(service: Service, body: Any, message: str) -> None:
    status, answer = service.ask(body)
    assert status == 422
    assert message in answer["detail"]
    assert list(answer) == ["detail"]


@pytest.mark.parametrize("size", [MAX_BYTES + 1, 15 * MAX_BYTES, 4_000_000])
def test_a_large_request_is_answered_with_413(service: Service, size: int) -> None:
    body = json.dumps(asked("a", "ann")).encode().ljust(size)
    assert service.ask(body) == (413, {"detail": "the request has more than 3000 bytes"})


def test_the_largest_requests_are_answered(service: Service) -> None:
    body = json.dumps(asked("a" * MAX_CHARACTERS, "ann")).encode().ljust(MAX_BYTES)
    assert service.ask(body)[0] == 200


def test_a_body_is_read_as_json_whatever_it_is_called(service: Service) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl -d says
    assert service.ask(asked("one", "ann"), form) == service.ask(asked("one", "ann"))


def test_other_characters_than_ascii_are_answered(service: Service) -> None:
    assert service.ask(asked("één €uro 🙂 \u0000", "ann"))[0] == 200
    assert service.ask(asked("one", "Zoë 🙂"))[1] == {"detail": "there is no profile 'Zoë 🙂'"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_once_requests_in_flight_are_answered(
    trained: tuple[Path, Path], number: signal.Signals
) -> None:
    """A batch is kept open for two seconds, and the signal comes before they are over."""
    body = json.dumps(asked("one", "ann")).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    for service in run(trained, "--batch_timeout=2", "--max_batch_size=3", "--workers=2"):
        with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
            connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
            # So it says once it waits for the body: the request is in flight.
            assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
            connection.sendall(body)
            service.process.send_signal(number)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 200
            assert "probabilities" in json.loads(answer.read())
        out, err = service.process.communicate(timeout=60)
        assert service.process.returncode == 0, err
        assert "Traceback" not in out + err
        with pytest.raises(OSError):
            service.ask(asked("one", "ann"))


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_service_with_a_failure(trained: tuple[Path, Path]) -> None:
    """A supervisor can start it anew; nothing is left that would hold its port."""
    for service in run(trained):
        main = service.process.pid
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
        (worker,) = (child for child, command in commands.items() if b"spawn_main" in command)
        os.kill(worker, signal.SIGKILL)
        _, err = service.process.communicate(timeout=60)
        assert service.process.returncode not in (0, 2)
        assert "RuntimeError: a worker died" in err
        with pytest.raises(OSError):
            service.ask(asked("one", "ann"))


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["checkpoint", "store", "bank"])
def test_what_cannot_be_served_is_said_in_a_line(
    trained: tuple[Path, Path], tmp_path: Path, wrong: str
) -> None:
    checkpoint, store = trained
    if wrong == "checkpoint":
        checkpoint, message = tmp_path / "nothing.ckpt", "there is no checkpoint"
    elif wrong == "store":
        store, message = tmp_path / "nothing.db", "there is no store"
    else:
        message = "the store's profiles belong to the bank ffff"
        with ProfileStore(trained[1]) as own, ProfileStore(tmp_path / "other.db") as other:
            other.put("ann", replace(own.get("ann"), bank="f" * 64))
        store = tmp_path / "other.db"
    process = started(checkpoint, store, f"--port={free_port()}")
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("lightning-pelt profiles serve: a worker could not start")
    assert message in last
    assert not (tmp_path / "nothing.db").exists()


def test_the_load_test_measures_one_profile_and_many(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--profiles=5", "--requests=12", "--concurrency=6", "--rounds=2", "--words=5"]
    url = f"http://127.0.0.1:{service.port}/predict"
    figures = load.main([f"--url={url}", f"--store={service.store}", *options])
    assert figures["one rate"] > 0
    assert figures["p50"] == figures["many p50"] / figures["one p50"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["profiles", "1", "5", "many"]


def test_a_load_test_whose_requests_fail_is_no_measurement(service: Service) -> None:
    url = f"http://127.0.0.1:{service.port}/predict"
    with pytest.raises(RuntimeError, match=r"2 requests failed, the first with 404: .*'zoe'"):
        load.fire(url, [asked("one", "ann"), asked("one", "zoe"), asked("one", "zoe")], 2)
    with pytest.raises(ValueError, match="and 99 are asked for"):
        load.main([f"--url={url}", f"--store={service.store}", "--profiles=99"])


def test_percentiles_are_times_that_were_measured() -> None:
    hundred = load.Load(1.0, [float(n) for n in range(1, 101)])
    assert [hundred.percentile(share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert load.Load(1.0, [3.0]).percentile(0.99) == 3.0
    assert load.Load(1.0, [1.0, 2.0, 3.0]).percentile(0.5) == 2.0
